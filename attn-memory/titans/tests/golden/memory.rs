//! The memory alone: both forms, both derivatives.

use attn_core::Result;
use attn_core::testing::golden::GoldenFile;
use attn_titans::reference::{
    Cotangents, Grads, Inputs, Output, State, backward, backward_chunked, forward, forward_chunked,
};
use attn_titans::{Config, Tensor, Titans};
use ndarray::{Array, Array3, Array4, Axis, Dimension, Ix3, Ix4};

use super::{GRAD, OUT, close, close_in_f32, config, read};

/// The tensors `{prefix}0{suffix}`, `{prefix}1{suffix}`, ..
fn layers(
    file: &GoldenFile,
    prefix: &str,
    suffix: &str,
    config: &Config,
) -> Result<Vec<Array4<f64>>> {
    (0..config.depth()).map(|i| read::<Ix4>(file, &format!("{prefix}{i}{suffix}"))).collect()
}

pub fn check(file: &GoldenFile) -> Result<()> {
    let [q, k, v]: [Array4<f64>; 3] = [read::<Ix4>(file, "q")?, read(file, "k")?, read(file, "v")?];
    let [theta, eta, alpha]: [Array3<f64>; 3] =
        [read::<Ix3>(file, "theta")?, read(file, "eta")?, read(file, "alpha")?];
    let (batch, heads, tokens, dim_qk) = q.dim();
    let config = config(file, heads, [dim_qk, v.dim().3], "chunk", "depth");
    let shared = file.config()["initial_state_per_batch"].as_bool() == Some(false);
    let state = match shared {
        true => {
            let learned: Result<Vec<Array3<f64>>> =
                (0..config.depth()).map(|i| read(file, &format!("w{i}_init"))).collect();
            let learned = learned?;
            let views: Vec<_> = learned.iter().map(|layer| layer.view()).collect();
            State::new(&views, batch, &config)?
        }
        false => {
            let (w, s) =
                (layers(file, "w", "_init", &config)?, layers(file, "s", "_init", &config)?);
            State::from_parts(w, s, &config)?
        }
    };
    let inputs = Inputs {
        q: q.view(),
        k: k.view(),
        v: v.view(),
        theta: theta.view(),
        eta: eta.view(),
        alpha: alpha.view(),
    };
    let d_y = read::<Ix4>(file, "d_y")?;
    let d_w = layers(file, "d_w", "_final", &config)?;
    let d_s = layers(file, "d_s", "_final", &config)?;
    let cotangents = Cotangents::new(d_y.view()).with_state(&d_w, &d_s);
    for (forward, backward) in [
        (forward as fn(_, &_, &_) -> _, backward as fn(_, &_, &_, _) -> _),
        (forward_chunked, backward_chunked),
    ] {
        outputs(file, &config, &forward(inputs, &state, &config)?);
        let grads: Grads = backward(inputs, &state, &config, cotangents)?;
        derivatives(file, shared, &grads);
    }
    on_the_device(file, shared, &state, &config)?;
    first_chunk(file, inputs, &state, &config, tokens)
}

fn outputs(file: &GoldenFile, config: &Config, output: &Output) {
    close(file, "y", &output.y, OUT);
    for i in 0..config.depth() {
        close(file, &format!("w{i}_final"), &output.state.w()[i], OUT);
        close(file, &format!("s{i}_final"), &output.state.s()[i], OUT);
    }
}

fn derivatives(file: &GoldenFile, shared: bool, grads: &Grads) {
    close(file, "d_q", &grads.dq, GRAD);
    close(file, "d_k", &grads.dk, GRAD);
    close(file, "d_v", &grads.dv, GRAD);
    close(file, "d_theta", &grads.d_theta, GRAD);
    close(file, "d_eta", &grads.d_eta, GRAD);
    close(file, "d_alpha", &grads.d_alpha, GRAD);
    for (i, (d_w, learned)) in grads.d_w.iter().zip(grads.d_learned()).enumerate() {
        match shared {
            true => close(file, &format!("d_w{i}_init"), &learned, GRAD),
            false => {
                close(file, &format!("d_w{i}_init"), d_w, GRAD);
                close(file, &format!("d_s{i}_init"), &grads.d_s[i], GRAD);
            }
        }
    }
}

/// What a device reads, the state that it leaves, and the derivatives.
fn on_the_device(file: &GoldenFile, shared: bool, state: &State, config: &Config) -> Result<()> {
    let Some(gpu) = attn_wgpu::testing::gpu() else { return Ok(()) };
    let upload = |name: &str| Tensor::from_array(&gpu, &file.f32(name).unwrap().view()).unwrap();
    let [q, k, v, theta, eta, alpha] = ["q", "k", "v", "theta", "eta", "alpha"].map(upload);
    let given =
        attn_titans::Inputs { q: &q, k: &k, v: &v, theta: &theta, eta: &eta, alpha: &alpha };
    let state = attn_titans::State::upload(&gpu, state).unwrap();
    let titans = Titans::new(&gpu, config.clone()).unwrap();
    let (output, saved) = titans.forward_saved(given, &state).unwrap();
    close_in_f32(file, "y", &download::<Ix4>(&output.y), OUT);
    let last = output.state.download(config).unwrap();
    for i in 0..config.depth() {
        close_in_f32(file, &format!("w{i}_final"), &last.w()[i], OUT);
        close_in_f32(file, &format!("s{i}_final"), &last.s()[i], OUT);
    }
    let final_state = |part: &str| -> Vec<Tensor> {
        (0..config.depth()).map(|i| upload(&format!("d_{part}{i}_final"))).collect()
    };
    let (d_y, d_w, d_s) = (upload("d_y"), final_state("w"), final_state("s"));
    let cotangents = attn_titans::Cotangents::new(&d_y).with_state(&d_w, &d_s);
    let grads = titans.backward(&saved, cotangents).unwrap();
    for (name, grad) in [("d_q", &grads.dq), ("d_k", &grads.dk), ("d_v", &grads.dv)] {
        close_in_f32(file, name, &download::<Ix4>(grad), GRAD);
    }
    let gates = [("d_theta", &grads.d_theta), ("d_eta", &grads.d_eta), ("d_alpha", &grads.d_alpha)];
    for (name, grad) in gates {
        close_in_f32(file, name, &download::<Ix3>(grad), GRAD);
    }
    for i in 0..config.depth() {
        let (d_w, d_s) = (download::<Ix4>(&grads.d_w[i]), download::<Ix4>(&grads.d_s[i]));
        let name = format!("d_w{i}_init");
        if shared {
            close_in_f32(file, &name, &d_w.sum_axis(Axis(0)), GRAD);
        } else {
            close_in_f32(file, &name, &d_w, GRAD);
            close_in_f32(file, &format!("d_s{i}_init"), &d_s, GRAD);
        }
    }
    Ok(())
}

fn download<D: Dimension>(x: &Tensor) -> Array<f64, D> {
    x.to_array::<f32>().unwrap().mapv(f64::from).into_dimensionality().unwrap()
}

fn first_chunk(
    file: &GoldenFile,
    inputs: Inputs<'_>,
    state: &State,
    config: &Config,
    tokens: usize,
) -> Result<()> {
    let end = config.chunk.min(tokens);
    let rows = ndarray::s![.., .., ..end, ..];
    let gates = ndarray::s![.., .., ..end];
    let first = Inputs {
        q: inputs.q.slice(rows),
        k: inputs.k.slice(rows),
        v: inputs.v.slice(rows),
        theta: inputs.theta.slice(gates),
        eta: inputs.eta.slice(gates),
        alpha: inputs.alpha.slice(gates),
    };
    let output = forward(first, state, config)?;
    for (i, w) in output.state.w().iter().enumerate() {
        close(file, &format!("w{i}_first_chunk_end"), w, OUT);
    }
    Ok(())
}
