//! The layers, with all derivatives.

use attn_core::Result;
use attn_core::testing::golden::GoldenFile;
use attn_titans::reference::layer::{self, Weights};
use attn_titans::{Combination, LayerConfig};
use ndarray::{Ix3, Ix4};

use super::{GRAD, OUT, close, config, read};

pub fn check(file: &GoldenFile) -> Result<()> {
    let number = |key: &str| file.number(key).unwrap();
    let (heads, d_model) = (number("H") as usize, number("d_model") as usize);
    let dim = d_model / heads;
    let memory = config(file, heads, [dim, dim], "memory_chunk", "memory_depth");
    let combination = match file.kind() {
        Some("mac") => Combination::Context { segment: number("segment") as usize },
        Some("mag") => Combination::Gate { window: number("window") as usize },
        Some("mal") => Combination::Layer { window: number("window") as usize },
        _ => Combination::Alone,
    };
    let mut config = LayerConfig::new(memory, combination).with_theta_max(number("theta_max"));
    (config.l2_epsilon, config.rms_epsilon) = (number("l2_eps"), number("rms_eps"));
    let weights = Weights::load(file.path(), "")?;
    assert_eq!(weights.persistent.nrows(), number("persistent_tokens") as usize);
    let kernel = weights.conv.as_ref().map_or(0, |conv| conv[0].nrows());
    assert_eq!(kernel, number("conv_kernel") as usize);

    let x = read::<Ix3>(file, "x")?;
    let output = layer::forward(x.view(), &weights, &config)?;
    close(file, "o", &output.out, OUT);
    for name in ["mem_out", "mem_context"] {
        if file.contains(name) {
            close(file, name, &output.memory, OUT);
        }
    }
    if let Some(attention) = output.attention.as_ref().filter(|_| file.contains("attn_y")) {
        close(file, "attn_y", attention, OUT);
    }
    for (i, (w, s)) in output.state.w().iter().zip(output.state.s()).enumerate() {
        close::<Ix4>(file, &format!("w{i}_final"), w, OUT);
        close::<Ix4>(file, &format!("s{i}_final"), s, OUT);
    }
    if file.contains("o_literal") {
        let segment = number("segment") as usize;
        let mut literal = config.clone();
        literal.combination = Combination::LiteralContext { segment };
        close(file, "o_literal", &layer::forward(x.view(), &weights, &literal)?.out, OUT);
    }

    let d_out = read::<Ix3>(file, "d_o")?;
    let grads = layer::backward(x.view(), &weights, d_out.view(), &config)?;
    close(file, "d_x", &grads.dx, GRAD);
    for (name, d) in grads.weights.named() {
        close(file, &format!("d_{name}"), &d.to_owned(), GRAD);
    }
    Ok(())
}
