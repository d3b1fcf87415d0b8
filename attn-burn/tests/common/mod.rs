//! Devices and data of the tests.
#![allow(dead_code)]

pub mod case;

use std::sync::{Mutex, PoisonError};

use attn_burn::{Error, Gpu};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};

/// The device that the tests of one program share; `None`, with a notice, where there is no adapter.
pub fn device() -> Option<Device> {
    match attn_burn::device() {
        Err(Error::NoAdapter { .. }) => {
            println!("skipped: no adapter on this machine");
            None
        }
        device => Some(device.unwrap()),
    }
}

/// A model with weights from one seed. Burn has one seed for all threads and draws weights when they are first
/// looked at, so models are made one by one, and looked at as a whole.
pub fn seeded<M: Module>(device: &Device, make: impl FnOnce() -> M) -> M {
    static SEED: Mutex<()> = Mutex::new(());
    let _alone = SEED.lock().unwrap_or_else(PoisonError::into_inner);
    device.seed(7);
    let model = make();
    model.visit(&mut Look);
    device.sync().unwrap();
    model
}

struct Look;

impl ModuleVisitor for Look {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        param.val();
    }
}

/// A tensor of `attn-wgpu` on the same device.
pub fn ours(gpu: &Gpu, data: &[f32], shape: &[usize]) -> attn_burn::attn_wgpu::Tensor {
    attn_burn::attn_wgpu::Tensor::from_slice(gpu, data, shape).unwrap()
}

/// About normally distributed numbers, the same for the same seed.
pub fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f64 / (1u64 << 24) as f64
    };
    let one =
        |uniform: &mut dyn FnMut() -> f64| (0..12).map(|_| uniform()).sum::<f64>() as f32 - 6.0;
    (0..count).map(|_| one(&mut uniform)).collect()
}

pub fn tensor<const D: usize>(data: &[f32], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(data.to_vec(), shape), device)
}

pub fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// Largest difference over the largest magnitude.
pub fn deviation(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let most = b.iter().fold(1e-30, |most, x| x.abs().max(most));
    a.iter().zip(b).fold(0.0, |worst, (a, b)| {
        assert!(a.is_finite() && b.is_finite());
        f64::from((a - b).abs() / most).max(worst)
    })
}
