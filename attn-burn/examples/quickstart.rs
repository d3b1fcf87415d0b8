//! One step of training through dense attention, with burn's own optimiser.

use attn_burn::nn::AttentionConfig;
use attn_burn::{Error, device};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Distribution, Tensor};

fn main() -> Result<(), Error> {
    // Burn's wgpu device, shared with the kernels of this crate.
    let device = match device() {
        Err(Error::NoAdapter { .. }) => {
            println!("no GPU and no software driver on this machine");
            return Ok(());
        }
        device => device?.autodiff(),
    };

    // A burn module: 4 heads of 16 elements, causal.
    let attention = AttentionConfig::new(64, 4).init(&device)?;
    let x = Tensor::<3>::random([2, 128, 64], Distribution::Default, &device);
    let loss = attention.forward(x.clone())?.square().mean();
    let gradients = GradientsParams::from_grads(loss.backward(), &attention);
    let attention = AdamConfig::new().init().step(1e-3, attention, gradients);
    println!("{} -> {}", loss.into_data(), attention.forward(x)?.square().mean().into_data());
    Ok(())
}
