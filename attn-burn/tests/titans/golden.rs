//! The layers against golden files, whose weights they are given.

use std::path::Path;

use attn_burn::attn_titans::{Combination, Config, LayerConfig};
use attn_burn::nn::{Titans, TitansConfig};
use attn_core::testing::golden::{GoldenFile, files};
use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Device, Gradients, Tensor};

use crate::common::{deviation, device, read, tensor};

/// Outputs and gradients over the largest element, by the paper's specification.
const OUT: f64 = 2e-5;
const GRAD: f64 = 1e-4;

fn golden(file: &GoldenFile, kind: &str, device: &Device) {
    let number = |key: &str| file.number(key).unwrap() as usize;
    let (heads, d_model) = (number("H"), number("d_model"));
    let memory = Config::deep(heads, d_model / heads, number("Dh"));
    let memory = memory.with_chunk(number("memory_chunk"));
    let memory = memory.with_coefficient(file.number("grad_coef").unwrap());
    let combination = match kind {
        "mac" => Combination::Context { segment: number("segment") },
        "mag" => Combination::Gate { window: number("window") },
        _ => Combination::Layer { window: number("window") },
    };
    let theta_max = file.number("theta_max").unwrap();
    let config = LayerConfig::new(memory, combination).with_theta_max(theta_max);
    let extents = TitansConfig::new(d_model).with_kernel(number("conv_kernel"));
    let extents = extents.with_persistent(number("persistent_tokens"));
    let module = extents.init(config.clone(), device).unwrap();
    let module = load(module, file, device);

    let x = values(file, "x");
    let shape: [usize; 3] = file.f32("x").unwrap().shape().try_into().unwrap();
    let x = tensor(&x, shape, device).require_grad();
    let (out, state) = module.forward_with_state(x.clone()).unwrap();
    close(file, "o", read(out.clone()), OUT);
    let [w, s] = module.memory.memory().layers(&state).unwrap();
    for (i, (w, s)) in w.into_iter().zip(s).enumerate() {
        close(file, &format!("w{i}_final"), read(w), OUT);
        close(file, &format!("s{i}_final"), read(s), OUT);
    }
    let grads = (out * tensor(&values(file, "d_o"), shape, device)).sum().backward();
    close(file, "d_x", read(x.grad(&grads).unwrap()), GRAD);
    gradients(&module, file, &grads);
    if file.contains("o_literal") {
        let mut literal = config;
        literal.combination = Combination::LiteralContext { segment: number("segment") };
        let module = load(extents.init(literal, device).unwrap(), file, device);
        close(file, "o_literal", read(module.forward(x).unwrap()), OUT);
    }
}

fn values(file: &GoldenFile, name: &str) -> Vec<f32> {
    file.f32(name).unwrap().iter().copied().collect()
}

fn close(file: &GoldenFile, name: &str, got: Vec<f32>, bound: f64) {
    let apart = deviation(&got, &values(file, name));
    assert!(apart < bound, "{}: {name}: {apart:e}", file.name);
}

type Named<'a, T> = Vec<(&'static str, &'a mut T)>;

/// Maps and vectors of a module with their names in files.
fn named(module: &mut Titans) -> (Named<'_, Linear>, Named<'_, Param<Tensor<1>>>) {
    let memory = &mut module.memory;
    let mut maps =
        vec![("w_q", &mut memory.w_q), ("w_k", &mut memory.w_k), ("w_v", &mut memory.w_v)];
    maps.extend([
        ("g_theta", &mut memory.g_theta),
        ("g_eta", &mut memory.g_eta),
        ("g_alpha", &mut memory.g_alpha),
    ]);
    let mut vectors = Vec::new();
    if let Some(attention) = &mut module.attention {
        maps.extend([
            ("a_q", &mut attention.query),
            ("a_k", &mut attention.key),
            ("a_v", &mut attention.value),
            ("a_o", &mut attention.output),
        ]);
    }
    if let Some(readout) = &mut module.readout {
        maps.extend([("w_gate", &mut readout.w_gate), ("w_out", &mut readout.w_out)]);
        vectors.push(("g_out", &mut readout.g_out.gamma));
    }
    if let Some(gate) = &mut module.gate {
        vectors.extend([("gam_y", &mut gate.gam_y.gamma), ("gam_m", &mut gate.gam_m.gamma)]);
    }
    (maps, vectors)
}

fn load(mut module: Titans, file: &GoldenFile, device: &Device) -> Titans {
    fn one<const D: usize>(file: &GoldenFile, name: &str, device: &Device) -> Tensor<D> {
        let shape = file.f32(name).unwrap().shape().try_into().unwrap();
        tensor(&values(file, name), shape, device)
    }
    let (maps, vectors) = named(&mut module);
    for (name, map) in maps {
        // Files have rows for what comes out, burn for what goes in.
        map.weight = Param::from_tensor(one::<2>(file, name, device).transpose());
        if let Some(bias) = &mut map.bias {
            *bias = Param::from_tensor(one(file, &name.replace("g_", "gb_"), device));
        }
    }
    for (name, vector) in vectors {
        *vector = Param::from_tensor(one(file, name, device));
    }
    let memory = &mut module.memory;
    memory.m_w0 = Param::from_tensor(one(file, "m_w0", device));
    memory.m_w1 = Some(Param::from_tensor(one(file, "m_w1", device)));
    for (name, kernel) in [
        ("conv_q", &mut memory.conv_q),
        ("conv_k", &mut memory.conv_k),
        ("conv_v", &mut memory.conv_v),
    ] {
        if let Some(kernel) = kernel {
            *kernel = Param::from_tensor(one(file, name, device));
        }
    }
    if let Some(persist) = &mut module.persist {
        *persist = Param::from_tensor(one(file, "persist", device));
    }
    module
}

/// Every `d_*` of the file, and no other.
fn gradients(module: &Titans, file: &GoldenFile, grads: &Gradients) {
    let mut checked = vec!["d_o".to_owned(), "d_x".to_owned()];
    let mut check = |name: &str, got: Vec<f32>| {
        let name = format!("d_{name}");
        close(file, &name, got, GRAD);
        checked.push(name);
    };
    let mut copy = module.clone();
    let (maps, vectors) = named(&mut copy);
    for (name, map) in maps {
        check(name, read(map.weight.val().grad(grads).unwrap().transpose()));
        if let Some(bias) = &map.bias {
            check(&name.replace("g_", "gb_"), read(bias.val().grad(grads).unwrap()));
        }
    }
    for (name, vector) in vectors {
        check(name, read(vector.val().grad(grads).unwrap()));
    }
    let memory = &module.memory;
    for (name, w) in [("m_w0", Some(&memory.m_w0)), ("m_w1", memory.m_w1.as_ref())] {
        check(name, read(w.unwrap().val().grad(grads).unwrap()));
    }
    let kernels = [
        ("conv_q", &memory.conv_q),
        ("conv_k", &memory.conv_k),
        ("conv_v", &memory.conv_v),
        ("persist", &module.persist),
    ];
    for (name, kernel) in kernels {
        if let Some(kernel) = kernel {
            check(name, read(kernel.val().grad(grads).unwrap()));
        }
    }
    let all = file.names().filter(|name| name.starts_with("d_"));
    let missing: Vec<_> = all.filter(|name| !checked.iter().any(|own| own == name)).collect();
    assert!(missing.is_empty(), "{}: {missing:?}", file.name);
}

#[test]
fn layers_are_those_of_golden_files() {
    let Some(device) = device() else { return };
    let device = device.autodiff();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../attn-memory/titans/tests/data");
    let mut seen = Vec::new();
    for file in files(&folder, "titans").unwrap() {
        if let Some(kind @ ("mac" | "mag" | "mal")) = file.kind() {
            golden(&file, kind, &device);
            println!("checked {}", file.name);
            seen.push(kind.to_owned());
        }
    }
    for kind in ["mac", "mag", "mal"] {
        assert!(seen.iter().any(|seen| seen == kind), "{kind}");
    }
}
