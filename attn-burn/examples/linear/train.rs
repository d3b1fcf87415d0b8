//! Training of a model whose batches come from a seed.

use burn::grad_clipping::GradientClippingConfig;
use burn::module::Module;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Tensor};

pub type Failure = Box<dyn std::error::Error>;

pub trait Task: Module {
    /// Of Adam.
    const RATE: f64 = 3e-3;
    /// Norm to which the gradient of each tensor is clipped.
    const CLIP: Option<f32> = Some(1.0);

    /// Of the next batch, by kernels or by their definition in burn's tensor operations.
    fn loss(&self, random: &mut Random, by_definition: bool) -> Result<Tensor<1>, Failure>;
}

/// A linear congruential generator.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        (0..8).for_each(|_| {
            random.uniform();
        });
        random
    }

    /// In `[0, 1)`.
    pub fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }

    pub fn below(&mut self, count: usize) -> usize {
        (f64::from(self.uniform()) * count as f64) as usize
    }
}

/// The trained model and the loss of each step. Weights and batches come from `seed` alone.
pub fn train<M: Task>(
    make: impl FnOnce() -> Result<M, Failure>,
    device: &Device,
    seed: u64,
    steps: usize,
    by_definition: bool,
) -> Result<(M, Vec<f64>), Failure> {
    device.seed(seed);
    let mut model = make()?;
    // Burn clips the gradient of each tensor on its own.
    let clip = M::CLIP.map(GradientClippingConfig::Norm);
    let mut adam = AdamConfig::new().with_grad_clipping(clip).init();
    let mut random = Random::new(seed);
    let mut losses = Vec::new();
    for _ in 0..steps {
        let loss = model.loss(&mut random, by_definition)?;
        losses.push(loss.clone().detach());
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = adam.step(M::RATE, model, gradients);
    }
    let losses = losses.into_iter().map(number).collect::<Result<_, _>>()?;
    Ok((model, losses))
}

/// Largest difference of losses by kernels and by definition in the first steps.
pub fn difference<M: Task>(
    make: impl FnOnce() -> Result<M, Failure>,
    device: &Device,
    seed: u64,
    losses: &[f64],
) -> Result<f64, Failure> {
    let (_, others) = train(make, device, seed, losses.len(), true)?;
    Ok(losses.iter().zip(others).fold(0.0, |most, (a, b)| (a - b).abs().max(most)))
}

pub fn number(loss: Tensor<1>) -> Result<f64, Failure> {
    Ok(loss.try_into_scalar::<f32>().map(f64::from)?)
}
