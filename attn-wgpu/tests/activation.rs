//! Activation functions on the device against f64.

mod common;

use attn_wgpu::{Activation, Call, Constants, DType, Gpu, KernelSource, Tensor, ops};
use common::gpu;

const APPLY: KernelSource = KernelSource {
    name: "apply",
    text: "
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // [n]
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>; // [n]
#import \"activation\"
@compute @workgroup_size(16)
fn apply(@builtin(global_invocation_id) id: vec3<u32>) {
  y[id.x] = activate(x[id.x]);
}
",
    imports: ops::SNIPPETS,
};

fn apply(gpu: &Gpu, activation: Activation, x: &[f32]) -> Vec<f32> {
    let mut padded = x.to_vec();
    padded.resize(x.len().next_multiple_of(64), 0.0);
    let x_device = Tensor::from_slice(gpu, &padded, &[padded.len()]).unwrap();
    let y = Tensor::uninit(gpu, &[padded.len()], DType::F32).unwrap();
    let kernel = gpu.kernel(&APPLY, activation.constants(Constants::new())).unwrap();
    let groups = (padded.len() / 64) as u64;
    let bindings = [x_device.binding().0, y.binding().0];
    kernel.dispatch(gpu, &Call { bindings: &bindings, params: &[], groups, work: 0.0 }).unwrap();
    let mut y = y.to_vec().unwrap();
    y.truncate(x.len());
    y
}

/// Small, large and huge arguments of both signs. The bound is a few roundings of the argument,
/// and what an exponential of a software driver loses (4e-6 of a value that is below `|x| / 5` where
/// that matters).
#[test]
fn smoke_activations_of_any_size() {
    let Some(gpu) = gpu() else { return };
    let mut x: Vec<f32> = (-4000..=4000).map(|i| i as f32 * 0.005).collect();
    for exponent in -30..=30 {
        let size = 10f32.powi(exponent);
        x.extend([size, -size, 3.7 * size, -3.7 * size]);
    }
    x.extend([0.0, -0.0, 86.9, -86.9, -87.1, 88.1, -88.1, 13.0, -13.0, -13.1, 103.0, -103.0]);
    for activation in Activation::ALL {
        for (&x, got) in x.iter().zip(apply(&gpu, activation, &x)) {
            let want = activation.reference(f64::from(x));
            let bound = 1e-6 * f64::from(x.abs().min(20.0)).min(want.abs().max(1.0));
            let bound = bound.max(2e-7 * want.abs()).max(1e-37);
            let error = (f64::from(got) - want).abs();
            assert!(error <= bound, "{}({x}) = {got}, want {want}: {error:e}", activation.name());
        }
    }
}

#[test]
fn nan_stays_nan() {
    let Some(gpu) = gpu() else { return };
    for activation in Activation::ALL {
        let got = apply(&gpu, activation, &[f32::NAN, 1.0]);
        assert!(got[0].is_nan() && got[1].is_finite(), "{}: {got:?}", activation.name());
    }
}
