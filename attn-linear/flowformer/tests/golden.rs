//! Vectors from the authors' code and from the equations. `ATTN_GOLDEN_DIR` adds a folder of more.

use std::path::PathBuf;

use attn_core::Result;
use attn_core::testing::golden::{self, GoldenFile};
use attn_flowformer::reference::{Cotangents, Inputs, backward, forward, prefill};
use attn_flowformer::{Config, Flowformer, Tensor};
use attn_wgpu::testing::gpu;
use ndarray::{Array, Array2, Array3, Axis, Dimension, Ix4};

/// Tolerances of the specification, relative to the largest element, for files of anybody's. Those of this
/// crate were made in f64 and rounded to f32, which is all that they may differ by.
const OUT: f64 = 1e-5;
const GRAD: f64 = 5e-5;
const ROUNDING: f64 = 1e-7;

#[test]
fn flowformer() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let files = golden::files(&folder, "flowformer").unwrap();
    assert!(files.iter().any(|file| file.shipped), "no file in {}", folder.display());
    for file in files {
        let known = file.has(&["q", "k", "v", "d_o", "o", "flow_in", "flow_out", "alloc", "comp"]);
        let sigmoid = file.config()["phi"].as_str() == Some("sigmoid");
        assert!(known && sigmoid, "{}: of no known kind", file.path().display());
        println!("{}", file.path().display());
        check(&file).unwrap();
    }
}

fn close<D: Dimension>(file: &GoldenFile, name: &str, got: &Array<f64, D>, bound: f64) {
    let want = file.f64(name).unwrap();
    assert_eq!(got.shape(), want.shape(), "{name}");
    let largest = want.iter().fold(f64::MIN_POSITIVE, |largest, x| largest.max(x.abs()));
    let error = |(a, b): (&f64, &f64)| match (a - b).abs() {
        error if error.is_finite() => error / largest,
        _ => f64::INFINITY,
    };
    let worst = got.iter().zip(&want).map(error).fold(0.0, f64::max);
    println!("  {name}: {worst:.1e}");
    let bound = if file.shipped { ROUNDING } else { bound };
    assert!(worst <= bound, "{name}: {worst:e} above {bound:e}");
}

fn check(file: &GoldenFile) -> Result<()> {
    let mut config = Config::new().with_epsilon(file.number("eps")?);
    config.causal = file.config()["causal"].as_bool().unwrap();
    config.clamp = file.config()["clamp"].as_f64();
    let read = |name| file.f64(name).unwrap().into_dimensionality::<Ix4>().unwrap();
    let [q, k, v, d_out] = ["q", "k", "v", "d_o"].map(read);
    let mask = |name| -> Option<Array2<bool>> {
        let mask = file.contains(name).then(|| file.i32(name).unwrap().mapv(|x| x != 0));
        mask.map(|mask| mask.into_dimensionality().unwrap())
    };
    let (valid_q, valid_k) = (mask("q_mask"), mask("k_mask"));
    let mut inputs = Inputs::new(q.view(), k.view(), v.view());
    inputs.valid_q = valid_q.as_ref().map(|valid| valid.view());
    inputs.valid_k = valid_k.as_ref().map(|valid| valid.view());

    let mut outputs = vec![forward(inputs, &config)?];
    if config.causal {
        let (output, state) = prefill(inputs, &config)?;
        outputs.push(output);
        close(file, "state_k", &state.k(), OUT);
        close(file, "state_q", &state.q(), OUT);
        close(file, "state_khat", &state.k_hat(), OUT);
        close(file, "state_qhat", &state.q_hat(), OUT);
        let sum: Array3<f64> = (state.max().exp() * state.sum()).insert_axis(Axis(2));
        close(file, "state_e", &sum, OUT);
        close(file, "state_kv", &state.memory(), OUT);
    }
    for output in &outputs {
        let flows = &output.flows;
        close(file, "o", &output.out, OUT);
        close(file, "flow_in", &flows.incoming, OUT);
        close(file, "flow_out", &flows.outgoing, OUT);
        close(file, "cons_sink", &flows.conserved_sink, OUT);
        close(file, "cons_source", &flows.conserved_source, OUT);
        close(file, "alloc", &flows.allocation, OUT);
        close(file, "comp", &flows.competition, OUT);
        close(file, if config.causal { "state_kv" } else { "kv" }, &output.memory, OUT);
    }
    let grads = backward(inputs, &config, Cotangents { out: d_out.view() })?;
    close(file, "d_q", &grads.dq, GRAD);
    close(file, "d_k", &grads.dk, GRAD);
    close(file, "d_v", &grads.dv, GRAD);
    on_the_device(file, config)
}

fn on_the_device(file: &GoldenFile, config: Config) -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let upload = |name: &str| Tensor::from_array(&gpu, &file.f32(name).unwrap().view()).unwrap();
    let [q, k, v, d_out] = ["q", "k", "v", "d_o"].map(upload);
    let mask = |name: &str| {
        let counts =
            file.contains(name).then(|| file.i32(name).unwrap().mapv(|x| u32::from(x != 0)));
        counts.map(|counts| Tensor::from_array(&gpu, &counts.view()).unwrap())
    };
    let (valid_q, valid_k) = (mask("q_mask"), mask("k_mask"));
    let mut inputs = attn_flowformer::Inputs::new(&q, &k, &v);
    (inputs.valid_q, inputs.valid_k) = (valid_q.as_ref(), valid_k.as_ref());
    let held = |name: &str, got: &Tensor, bound: f64, padding: bool| {
        let got = got.to_array::<f32>().unwrap().mapv(f64::from);
        let want = file.f64(name).unwrap();
        assert_eq!(got.shape(), want.shape(), "{name}");
        let largest = want.iter().fold(f64::MIN_POSITIVE, |largest, x| largest.max(x.abs()));
        // Flows of padding say nothing on the device, and are 0 in files.
        let pairs = got.iter().zip(&want).filter(|(_, want)| padding || **want != 0.0);
        let error = |(a, b): (&f64, &f64)| match (a - b).abs() {
            error if error.is_finite() => error / largest,
            _ => f64::INFINITY,
        };
        let worst = pairs.map(error).fold(0.0, f64::max);
        println!("  {name} on the device: {worst:.1e}");
        assert!(worst <= bound, "{name} on the device: {worst:e} above {bound:e}");
    };
    let causal = config.causal;
    let flowformer = Flowformer::new(&gpu, config).unwrap();
    let (output, saved) = flowformer.forward_saved(inputs).unwrap();
    let flows = output.flows.unwrap();
    held("o", &output.out, OUT, true);
    held("flow_in", &flows.incoming, OUT, false);
    held("flow_out", &flows.outgoing, OUT, false);
    held("cons_sink", &flows.conserved_sink, OUT, true);
    held("cons_source", &flows.conserved_source, OUT, true);
    held("alloc", &flows.allocation, OUT, true);
    held("comp", &flows.competition, OUT, true);
    held(if causal { "state_kv" } else { "kv" }, &output.memory, OUT, true);
    if let Some(state) = &output.state {
        held("state_k", &state.k(), OUT, true);
        held("state_q", &state.q(), OUT, true);
        held("state_khat", &state.k_hat(), OUT, true);
        held("state_qhat", &state.q_hat(), OUT, true);
        let (max, sum) = (state.max().unwrap().to_array::<f32>().unwrap(), state.sum().unwrap());
        let sum = max.mapv(f32::exp) * sum.to_array::<f32>().unwrap();
        let sum = Tensor::from_array(&gpu, &sum.insert_axis(Axis(2)).view()).unwrap();
        held("state_e", &sum, OUT, true);
    }
    let cotangents = attn_flowformer::Cotangents { out: &d_out };
    let grads = flowformer.backward(&saved, cotangents).unwrap();
    held("d_q", &grads.dq, GRAD, true);
    held("d_k", &grads.dk, GRAD, true);
    held("d_v", &grads.dv, GRAD, true);
    Ok(())
}
