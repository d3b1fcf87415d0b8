//! The ranking papers through burn: outputs and gradients of golden files and of the crates themselves.

mod blockrank;
#[path = "../common/mod.rs"]
mod common;
mod dare;

use attn_core::testing::golden::GoldenFile;
use burn::tensor::{Device, Int, Tensor, TensorData};
use common::{deviation, tensor};

fn values(file: &GoldenFile, name: &str) -> Vec<f32> {
    file.f32(name).unwrap().iter().copied().collect()
}

fn one<const D: usize>(file: &GoldenFile, name: &str, device: &Device) -> Tensor<D> {
    let shape = file.f32(name).unwrap().shape().try_into().unwrap();
    tensor(&values(file, name), shape, device)
}

fn ints<const D: usize>(file: &GoldenFile, name: &str, device: &Device) -> Tensor<D, Int> {
    let all = file.i32(name).unwrap();
    let shape: [usize; D] = all.shape().try_into().unwrap();
    Tensor::from_data(TensorData::new(all.iter().copied().collect(), shape), device)
}

/// Over the largest element.
fn close(file: &GoldenFile, name: &str, got: &[f32], bound: f64) {
    let apart = deviation(got, &values(file, name));
    assert!(apart < bound, "{}: {name}: {apart:e}", file.name);
}
