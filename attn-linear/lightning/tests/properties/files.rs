//! States and weights in files.

use std::path::PathBuf;

use attn_core::ArrayFile;
use attn_lightning::reference::State;
use attn_lightning::reference::layer::Weights;
use half::{bf16, f16};
use ndarray::{Array4, arr0};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::support::tensor;

/// A path of this process alone.
fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("attn-lightning-{}-{name}.safetensors", std::process::id()))
}

fn write(name: &str, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> PathBuf {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let path = path(name);
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    path
}

#[test]
fn a_state_comes_back_bit_by_bit() {
    for (shape, position) in [((2, 3, 4, 5), 1 << 40), ((0, 1, 2, 3), 0)] {
        let state = State::from_kv(tensor(7, 0, shape) / 3.0, position);
        let path = path("state");
        state.save(&path).unwrap();
        assert_eq!(State::load(&path).unwrap(), state);
        assert_eq!(state.bytes(), shape.0 * shape.1 * shape.2 * shape.3 * 8);
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn what_is_no_state_is_refused() {
    let zeros = |shape: [usize; 4]| Array4::<f64>::zeros(shape);
    let file = |name: &str, kind: &str, kv: Option<Array4<f64>>, position: Option<f64>| {
        let path = path(name);
        let mut file = ArrayFile::new(kind);
        if let Some(kv) = &kv {
            file = file.with("kv", kv.view());
        }
        if let Some(position) = position {
            file = file.with("position", arr0(position).view());
        }
        file.write(&path).unwrap();
        path
    };
    let (kind, one) = ("lightning state", || Some(zeros([1, 1, 1, 1])));
    for (path, part) in [
        (path("missing"), "o such file"),
        (file("kind", "aaren state", one(), Some(3.0)), "expected `lightning state`"),
        (file("kv", kind, None, Some(3.0)), "`kv`"),
        (file("position", kind, one(), None), "`position`"),
        (file("negative", kind, one(), Some(-3.0)), "`position` is -3"),
        (file("part", kind, one(), Some(0.5)), "`position` is 0.5"),
        (file("nan", kind, one(), Some(f64::NAN)), "`position` is NaN"),
    ] {
        let message = State::load(&path).unwrap_err().to_string();
        assert!(message.contains(part), "{message:?} lacks {part:?}");
        let _ = std::fs::remove_file(path);
    }
    let damaged = path("damaged");
    std::fs::write(&damaged, [7; 20]).unwrap();
    assert!(State::load(&damaged).is_err());
    std::fs::remove_file(damaged).unwrap();
    assert!(State::new(1, 1, 1, 1).save(std::env::temp_dir()).is_err());
}

/// All element types hold these numbers.
#[test]
fn weights_may_be_of_any_floating_point_type() {
    let numbers = [0.5_f32, -1.25, 3.0, 0.0];
    let bytes: [(Dtype, Vec<u8>); 4] = [
        (Dtype::F16, numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect()),
        (Dtype::BF16, numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect()),
        (Dtype::F32, numbers.iter().flat_map(|x| x.to_le_bytes()).collect()),
        (Dtype::F64, numbers.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect()),
    ];
    for (dtype, bytes) in bytes {
        let names = ["w_qkvu", "w_out", "w_v", "w_u", "w_o"].map(|name| format!("layers.3.{name}"));
        let tensors: Vec<_> =
            names.iter().map(|name| (name.as_str(), dtype, vec![2, 2], bytes.clone())).collect();
        let path = write("weights", &tensors);
        let weights = Weights::load(&path, "layers.3.").unwrap();
        for matrix in [&weights.w_qkvu, &weights.w_out, &weights.w_v, &weights.w_u, &weights.w_o] {
            assert_eq!(*matrix, ndarray::arr2(&[[0.5, -1.25], [3.0, 0.0]]));
        }
        assert!(weights.theta.is_none());
        let message = Weights::load(&path, "layers.4.").unwrap_err().to_string();
        assert!(message.contains("layers.4.w_qkvu"), "{message}");
        std::fs::remove_file(path).unwrap();
    }
}
