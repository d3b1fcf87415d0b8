//! The layers, with all derivatives.

use attn_core::Result;
use attn_core::testing::golden::GoldenFile;
use attn_titans::layer::Layer;
use attn_titans::reference::layer::{self, Weights};
use attn_titans::{Combination, LayerConfig, Tensor};
use attn_wgpu::testing::gpu;
use ndarray::{Array3, Ix3, Ix4};

use super::{GRAD, OUT, close, close_in_f32, config, read};

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
        on_the_device(file, "o_literal", &weights, &literal);
    }
    on_the_device(file, "o", &weights, &config);

    let d_out = read::<Ix3>(file, "d_o")?;
    let grads = layer::backward(x.view(), &weights, d_out.view(), &config)?;
    close(file, "d_x", &grads.dx, GRAD);
    for (name, d) in grads.weights.named() {
        close(file, &format!("d_{name}"), &d.to_owned(), GRAD);
    }
    Ok(())
}

/// What a device computes; `out` is the name of the layer's output.
fn on_the_device(file: &GoldenFile, out: &str, weights: &Weights, config: &LayerConfig) {
    let Some(gpu) = gpu() else { return };
    let x = Tensor::from_array(&gpu, &file.f32("x").unwrap().view()).unwrap();
    let layer = Layer::new(&gpu, config.clone(), weights).unwrap();
    let output = layer.forward(&x, None).unwrap();
    let check = |name: &str, got: &Tensor| {
        let got = got.to_array::<f32>().unwrap().mapv(f64::from);
        let got: Array3<f64> = got.into_dimensionality().unwrap();
        close_in_f32(file, name, &got, OUT);
    };
    check(out, &output.out);
    if out != "o" {
        return;
    }
    for name in ["mem_out", "mem_context"].into_iter().filter(|name| file.contains(name)) {
        check(name, &output.memory);
    }
    if let Some(attention) = output.attention.as_ref().filter(|_| file.contains("attn_y")) {
        check("attn_y", attention);
    }
    let state = output.state.memory().download(&config.memory).unwrap();
    for (i, (w, s)) in state.w().iter().zip(state.s()).enumerate() {
        close_in_f32::<Ix4>(file, &format!("w{i}_final"), w, OUT);
        close_in_f32::<Ix4>(file, &format!("s{i}_final"), s, OUT);
    }
}
