//! Associative recall with Titans, trained through the kernels: the memory alone, and as gate of attention
//! whose window does not reach the pairs. Each with three seeds and with a memory that never learns. The first
//! steps are repeated with the definition, token by token, in burn's own operations. Prints figures, and draws
//! the losses as SVG.
//!
//! `cargo run -p attn-burn --example attn-burn-titans -- [alone | gate] [steps] [seed]`

#[path = "../moby-dick/chart.rs"]
mod chart;
mod plain;
mod recall;
#[path = "../linear/train.rs"]
mod train;

use std::time::Instant;

use burn::module::Module;
use burn::tensor::Device;

use recall::{Kind, Model};
use train::{Failure, difference, train};

/// Steps that are repeated by definition.
const COMPARED: usize = 20;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let which = args.first().map(String::as_str);
    let number = |at: usize, default: usize| -> Result<usize, Failure> {
        Ok(args.get(at).map_or(Ok(default), |text| text.parse())?)
    };
    let device = attn_burn::device()?.autodiff();
    let seed = number(2, 1)? as u64;
    for (name, kind, steps) in [("alone", Kind::Alone, 200), ("gate", Kind::Gate, 250)] {
        if which.is_none_or(|which| which == name) {
            recall(name, kind, &device, seed, number(1, steps)?)?;
        }
    }
    Ok(())
}

fn recall(name: &str, kind: Kind, device: &Device, seed: u64, steps: usize) -> Result<(), Failure> {
    let mut curves: Vec<(&str, Vec<f64>)> = Vec::new();
    for (label, seed, theta_max) in [
        ("first seed", seed, 1.0),
        ("second", seed + 1, 1.0),
        ("third", seed + 2, 1.0),
        ("no steps", seed, 0.0),
    ] {
        let make = || Model::new(kind, theta_max, device);
        let start = Instant::now();
        let (model, losses) = train(make, device, seed, steps, false)?;
        let seconds = start.elapsed().as_secs_f64();
        let right = model.valid().accuracy()?;
        let apart = difference(make, device, seed, &losses[..steps.min(COMPARED)])?;
        println!(
            "{name}, {label}: {:.1} % right after {steps} steps in {seconds:.0} s; first losses by \
             definition within {apart:.1e}",
            100.0 * right
        );
        curves.push((label, losses));
    }
    let curves: Vec<_> = curves.iter().map(|(name, losses)| (*name, losses.as_slice())).collect();
    let path = format!("titans-{name}.svg");
    std::fs::write(&path, chart::draw("cross entropy, nats", &curves))?;
    println!("{path}");
    Ok(())
}
