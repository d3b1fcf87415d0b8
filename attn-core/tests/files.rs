//! Files that are as they should be, and files that somebody damaged.

use std::collections::HashMap;
use std::path::PathBuf;

use attn_core::testing::{Capture, TensorFile};
use attn_core::{Error, Mask};
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

struct Tensor {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn tensor(name: &'static str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Tensor {
    Tensor { name, dtype, shape: shape.to_vec(), bytes }
}

fn halves(name: &'static str, shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let bytes = (0..count).flat_map(|i| f16::from_f32(i as f32).to_le_bytes()).collect();
    tensor(name, Dtype::F16, shape, bytes)
}

/// The bytes of a file. Tensors are written in the order given, without any alignment.
fn write(config: &str, tensors: &[Tensor]) -> Vec<u8> {
    let metadata = serde_json::json!({ "config": config });
    let mut header = serde_json::json!({ "__metadata__": metadata });
    let mut data = Vec::new();
    for tensor in tensors {
        let start = data.len();
        data.extend(&tensor.bytes);
        header[tensor.name] = serde_json::json!({
            "dtype": format!("{:?}", tensor.dtype),
            "shape": tensor.shape,
            "data_offsets": [start, data.len()],
        });
    }
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

const CONFIG: &str =
    r#"{"heads": 4, "heads_kv": 2, "dim": 3, "scale": 0.5, "causal": true, "layers": [7, 3]}"#;

fn layers() -> Vec<Tensor> {
    vec![
        halves("layer7.q", &[1, 4, 5, 3]),
        halves("layer7.k", &[1, 2, 5, 3]),
        halves("layer7.v", &[1, 2, 5, 3]),
        halves("layer3.q", &[1, 4, 5, 3]),
        halves("layer3.k", &[1, 2, 5, 3]),
        halves("layer3.v", &[1, 2, 5, 3]),
    ]
}

fn capture(bytes: &[u8]) -> Result<Capture, Error> {
    Capture::from_file(&TensorFile::parse("capture.safetensors", bytes)?)
}

/// The reason why a capture is refused.
fn refused(config: &str, tensors: &[Tensor]) -> String {
    match capture(&write(config, tensors)) {
        Err(Error::File { path, reason }) => {
            assert_eq!(path, PathBuf::from("capture.safetensors"));
            reason
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_capture_is_read() {
    let capture = capture(&write(CONFIG, &layers())).unwrap();
    assert_eq!(capture.layers().collect::<Vec<_>>(), [3, 7]);
    assert_eq!(capture.config().mask, Mask::Causal);
    assert_eq!(capture.config().scale, Some(0.5));
    let layer = capture.layer(7).unwrap();
    assert_eq!(layer.shape.q(), [1, 4, 5, 3]);
    assert_eq!(layer.shape.v(), [1, 2, 5, 3]);
    assert_eq!(layer.k, (0..30).map(|i| i as f32).collect::<Vec<_>>());
    assert_eq!(capture.layer(8), None);
    let short = capture.truncated(2);
    assert_eq!(
        short.layer(3).unwrap().k,
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 15.0, 16.0, 17.0, 18.0, 19.0, 20.0]
    );
    assert_eq!(capture.truncated(5), capture);
}

#[test]
fn tensors_may_lie_at_odd_bytes() {
    let mut tensors = layers();
    tensors.insert(0, tensor("a", Dtype::U8, &[3], vec![1, 2, 3]));
    let bytes = write(CONFIG, &tensors);
    assert_eq!(capture(&bytes), capture(&write(CONFIG, &layers())));
    // Whatever the header's length is, one of these starts is odd in memory.
    let mut shifted = vec![0];
    shifted.extend(&bytes);
    assert!(capture(&shifted[1..]).is_ok());
}

#[test]
fn a_capture_that_breaks_its_promise_is_refused() {
    let without = |name: &str| layers().into_iter().filter(|t| t.name != name).collect::<Vec<_>>();
    let with = |other: Tensor| {
        let replace = |t: Tensor| {
            if t.name == other.name {
                tensor(other.name, other.dtype, &other.shape, other.bytes.clone())
            } else {
                t
            }
        };
        layers().into_iter().map(replace).collect::<Vec<_>>()
    };
    assert_eq!(refused(CONFIG, &without("layer3.v")), "no tensor `layer3.v`");
    let integers = tensor("layer3.k", Dtype::I32, &[1, 2, 5, 3], vec![0; 120]);
    assert!(refused(CONFIG, &with(integers)).contains("`layer3.k` does not hold floating-point"));
    assert!(
        refused(CONFIG, &with(halves("layer3.k", &[2, 5, 3]))).contains("`k` has shape [2, 5, 3]")
    );
    assert!(
        refused(CONFIG, &with(halves("layer3.k", &[1, 3, 5, 3]))).contains("divide the 4 heads")
    );
    assert!(refused(CONFIG, &with(halves("layer3.v", &[1, 2, 4, 3]))).contains("keys 5 as in k"));
    assert!(refused(CONFIG, &with(halves("layer3.q", &[1, 4, 4, 3]))).contains("config promises"));
    let wide: Vec<_> = layers()
        .into_iter()
        .map(|t| {
            let shape = [&t.shape[..3], &[4]].concat();
            halves(t.name, &shape)
        })
        .collect();
    assert!(refused(CONFIG, &wide).contains("config promises"));
}

#[test]
fn a_broken_configuration_is_refused() {
    for (from, to, reason) in [
        ("4", "-4", "config has `heads` = -4, expected a size"),
        ("2", "null", "config has `heads_kv` = null, expected a size"),
        ("\"dim\": 3, ", "", "config has `dim` = null, expected a size"),
        ("0.5", "\"0.5\"", "config has `scale` = \"0.5\", expected a number"),
        ("true", "1", "config has `causal` = 1, expected true or false"),
        ("[7, 3]", "[7, 3.5]", "config has `layers` = [7,3.5], expected a list of layer numbers"),
        ("[7, 3]", "7", "config has `layers` = 7, expected a list of layer numbers"),
        ("[7, 3]", "[7, 18446744073709551615]", "no tensor `layer18446744073709551615.q`"),
    ] {
        assert_eq!(refused(&CONFIG.replacen(from, to, 1), &layers()), reason);
    }
    assert!(refused("{", &layers()).starts_with("metadata `config`: "));
    assert!(refused("[]", &layers()).starts_with("config has `heads` = null"));
}

#[test]
fn damaged_files_are_refused() {
    let good = write(CONFIG, &layers());
    for length in (0..good.len()).step_by(7).chain(good.len() - 9..good.len()) {
        assert!(
            matches!(capture(&good[..length]), Err(Error::File { .. })),
            "cut to {length} bytes"
        );
    }
    let mut longer = good.clone();
    longer.push(0);
    assert!(matches!(capture(&longer), Err(Error::File { .. })), "a byte too many");
    for length in [0, 1, 7, 1 << 20, 1 << 40, u64::MAX / 2, u64::MAX] {
        let mut bytes = good.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        assert!(matches!(capture(&bytes), Err(Error::File { .. })), "a header of {length} bytes");
    }
    let header = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    for text in [
        "",
        "{",
        "[]",
        "null",
        r#"{"x": 3}"#,
        r#"{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}"#,
        r#"{"x": {"dtype": "F32", "shape": [0], "data_offsets": [4, 0]}}"#,
        r#"{"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}}"#,
        r#"{"x": {"dtype": "F99", "shape": [0], "data_offsets": [0, 0]}}"#,
        r#"{"x": {"dtype": "F32", "shape": [4294967296, 4294967296, 4294967296], "data_offsets": [0, 0]}}"#,
    ] {
        let result = TensorFile::parse("x", &header(text));
        assert!(matches!(result, Err(Error::File { .. })), "{text}");
    }
    // An empty tensor may claim any other extent, but no array can have this one.
    let text =
        r#"{"x": {"dtype": "F32", "shape": [0, 9223372036854775807, 9], "data_offsets": [0, 0]}}"#;
    let result = TensorFile::parse("x", &header(text)).and_then(|file| file.f64("x"));
    assert!(matches!(result, Err(Error::File { .. })), "{result:?}");
    let invalid_utf8 = [&2_u64.to_le_bytes()[..], &[0xFF, 0xFE]].concat();
    assert!(matches!(TensorFile::parse("x", &invalid_utf8), Err(Error::File { .. })));
}

#[test]
fn every_element_type() {
    let file = write(
        "null",
        &[
            tensor("odd", Dtype::U8, &[1], vec![255]),
            tensor("bool", Dtype::BOOL, &[2], vec![0, 1]),
            tensor("i8", Dtype::I8, &[1], vec![0xFF]),
            tensor("i16", Dtype::I16, &[1], (-300_i16).to_le_bytes().into()),
            tensor("u16", Dtype::U16, &[1], 65_535_u16.to_le_bytes().into()),
            tensor("i32", Dtype::I32, &[1], i32::MIN.to_le_bytes().into()),
            tensor("u32", Dtype::U32, &[1], u32::MAX.to_le_bytes().into()),
            tensor("i64", Dtype::I64, &[1], (-5_i64).to_le_bytes().into()),
            tensor("u64", Dtype::U64, &[1], 7_u64.to_le_bytes().into()),
            tensor("f16", Dtype::F16, &[1], f16::from_f32(-1.5).to_le_bytes().into()),
            tensor("bf16", Dtype::BF16, &[1], bf16::from_f32(3e38).to_le_bytes().into()),
            tensor(
                "f32",
                Dtype::F32,
                &[3],
                [-3e38_f32, f32::NEG_INFINITY, -2.5].iter().flat_map(|x| x.to_le_bytes()).collect(),
            ),
            tensor("f64", Dtype::F64, &[], 0.1_f64.to_le_bytes().into()),
        ],
    );
    let file = TensorFile::parse("types", &file).unwrap();
    let number = |name: &str| *file.f64(name).unwrap().first().unwrap();
    assert_eq!(number("odd"), 255.0);
    assert_eq!(number("i8"), -1.0);
    assert_eq!(number("i16"), -300.0);
    assert_eq!(number("u16"), 65_535.0);
    assert_eq!(number("u32"), f64::from(u32::MAX));
    assert_eq!(number("f16"), -1.5);
    assert_eq!(number("bf16"), bf16::from_f32(3e38).to_f64());
    assert_eq!(number("f64"), 0.1);
    assert_eq!(file.f32("f64").unwrap().first(), Some(&0.1_f32));
    assert_eq!(file.u8("bool").unwrap().as_slice(), Some(&[0, 1][..]));
    assert_eq!(file.i32("i32").unwrap().first(), Some(&i32::MIN));
    assert_eq!(file.i32("i64").unwrap().first(), Some(&-5));
    assert_eq!(file.i32("u64").unwrap().first(), Some(&7));
    let inf = f64::NEG_INFINITY;
    assert_eq!(file.lse("f32").unwrap().as_slice(), Some(&[inf, inf, -2.5][..]));
    for result in [
        file.i32("u32").map(drop),
        file.i32("f32").map(drop),
        file.u8("u16").map(drop),
        file.u8("i8").map(drop),
        file.f64("none").map(drop),
    ] {
        assert!(matches!(result, Err(Error::File { .. })));
    }
    assert_eq!(file.names().count(), 13);
    assert_eq!(file.config(), &serde_json::Value::Null);
}

#[test]
fn a_capture_on_disk() {
    let path =
        std::env::temp_dir().join(format!("attn-core-capture-{}.safetensors", std::process::id()));
    let tensors = layers();
    let views = tensors
        .iter()
        .map(|t| (t.name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
    let metadata = HashMap::from([("config".to_owned(), CONFIG.to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), &path).unwrap();
    let read = Capture::load(&path);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(read, capture(&write(CONFIG, &layers())));
    let gone = Capture::load(&path).unwrap_err();
    assert!(gone.to_string().starts_with(path.to_str().unwrap()), "{gone}");
}
