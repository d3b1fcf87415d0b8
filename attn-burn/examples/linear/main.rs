//! The small experiments of three papers, trained through the kernels: a byte model with lightning attention,
//! with and without decay, and with Flow-Attention; and a toy for Aaren. The first steps are repeated with
//! each mechanism's definition in burn's own operations. Prints figures, and draws the losses as SVG.
//!
//! `cargo run -p attn-burn --example attn-burn-linear -- [lightning | flowformer | aaren] [steps] [seed]`

mod bytes;
#[path = "../moby-dick/chart.rs"]
mod chart;
mod largest;
mod plain;
mod train;

use std::time::Instant;

use burn::module::Module;
use burn::tensor::Device;

use bytes::Kind;
use train::{Failure, difference, train};

/// Steps that are repeated by definition.
const COMPARED: usize = 30;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let which = args.first().map(String::as_str);
    let number = |at: usize, default: usize| -> Result<usize, Failure> {
        Ok(args.get(at).map_or(Ok(default), |text| text.parse())?)
    };
    let device = attn_burn::device()?.autodiff();
    let seed = number(2, 1)? as u64;
    if which.is_none_or(|name| name == "lightning") {
        let kinds = [("decay", Kind::Lightning), ("no decay", Kind::NoDecay)];
        text("lightning", &kinds, &device, seed, number(1, 250)?)?;
    }
    if which.is_none_or(|name| name == "flowformer") {
        text("flowformer", &[("flow", Kind::Flow)], &device, seed, number(1, 250)?)?;
    }
    if which.is_none_or(|name| name == "aaren") {
        toy(&device, seed, number(1, 400)?)?;
    }
    Ok(())
}

fn text(
    name: &str,
    kinds: &[(&'static str, Kind)],
    device: &Device,
    seed: u64,
    steps: usize,
) -> Result<(), Failure> {
    let mut curves = Vec::new();
    for &(label, kind) in kinds {
        let make = || bytes::Model::new(kind, device);
        let start = Instant::now();
        let (model, losses) = train(make, device, seed, steps, false)?;
        let seconds = start.elapsed().as_secs_f64();
        let held_back = model.valid().held_back()?;
        let apart = difference(make, device, seed, &losses[..steps.min(COMPARED)])?;
        println!(
            "{label}: {held_back:.3} nats a byte held back after {steps} steps in {seconds:.0} s; first \
             losses by definition within {apart:.1e}"
        );
        curves.push((label, losses));
    }
    save(name, "loss, nats a byte", &curves)
}

fn toy(device: &Device, seed: u64, steps: usize) -> Result<(), Failure> {
    let mut curves = Vec::new();
    for (label, seed) in [("first seed", seed), ("second", seed + 1), ("third", seed + 2)] {
        let make = || largest::Model::new(device);
        let start = Instant::now();
        let (model, losses) = train(make, device, seed, steps, false)?;
        let seconds = start.elapsed().as_secs_f64();
        let model = model.valid();
        let [error, double, long] = [32, 64, 256].map(|tokens| model.test(tokens));
        let apart = difference(make, device, seed, &losses[..steps.min(COMPARED)])?;
        println!(
            "seed {seed}: mean squared error {:.3} at 32 tokens, {:.3} at 64, {:.3} at 256 after {steps} \
             steps in {seconds:.0} s; first losses by definition within {apart:.1e}",
            error?, double?, long?
        );
        curves.push((label, losses));
    }
    save("aaren", "mean squared error", &curves)
}

fn save(name: &str, label: &str, curves: &[(&str, Vec<f64>)]) -> Result<(), Failure> {
    let curves: Vec<_> = curves.iter().map(|(name, losses)| (*name, losses.as_slice())).collect();
    let path = format!("{name}.svg");
    std::fs::write(&path, chart::draw(label, &curves))?;
    println!("{path}");
    Ok(())
}
