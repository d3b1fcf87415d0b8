//! Vectors from the authors' code and from the paper's equations. `ATTN_GOLDEN_DIR` adds a folder of
//! more.

use std::path::PathBuf;

use attn_core::Result;
use attn_core::testing::golden::{self, GoldenFile};
use attn_lightning::reference::{
    Cotangents, Inputs, Sglu, backward, backward_chunked, forward, forward_chunked, layer, lrpe,
    lrpe_backward, sglu, sglu_backward, srmsnorm, srmsnorm_backward,
};
use attn_lightning::{self as device, Config, Gpu, Lightning, Lrpe, Slopes, Tensor};
use attn_wgpu::norm::{simple_rms_norm, simple_rms_norm_backward};
use ndarray::{Array, Array1, Dimension, Ix1, Ix2, Ix3, Ix4};

/// Tolerances of the specification for f32, of the largest absolute number of a tensor, which bind the
/// files of others. The shipped ones were computed in f64 from numbers that f32 holds, and then rounded:
/// an f64 reference differs from them by that rounding alone.
const OUT: f64 = 1e-5;
const GRAD: f64 = 3e-5;
const SHIPPED: f64 = 6.1e-8;

#[test]
fn lightning() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let files = golden::files(&folder, "lightning").unwrap();
    assert!(files.iter().any(|file| file.shipped), "no file in {}", folder.display());
    let gpu = attn_wgpu::testing::open();
    for file in files {
        println!("{}", file.path().display());
        if let Some(gpu) = &gpu {
            on_device(&file, gpu).unwrap();
        }
        match file.kind() {
            Some("decay_linear_attention") => attention(&file).unwrap(),
            Some("lrpe") => positions(&file).unwrap(),
            Some("sglu(srmsnorm(x))") => unit(&file).unwrap(),
            Some("decoder_layer") => decoder_layer(&file).unwrap(),
            kind => panic!("{}: of no known kind: {kind:?}", file.path().display()),
        }
    }
}

fn read<D: Dimension>(file: &GoldenFile, name: &str) -> Array<f64, D> {
    file.f64(name).unwrap().into_dimensionality().unwrap()
}

fn held<D: Dimension>(file: &GoldenFile, name: &str, got: &Array<f64, D>, bound: f64) {
    let want = read::<D>(file, name);
    assert_eq!(got.shape(), want.shape(), "{name}");
    let bound = if file.shipped { SHIPPED } else { bound };
    let largest = want.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
    let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest;
    assert!(worst <= bound, "{name}: {worst:e} above {bound:e}");
    println!("  {name}: {worst:.1e}");
}

/// With the slopes of the file, in blocks of `block`.
fn config(slopes: &Array1<f64>, block: usize) -> Config {
    Config::new(slopes.len()).with_slopes(Slopes::Given(slopes.to_vec())).with_block(block)
}

fn attention(file: &GoldenFile) -> Result<()> {
    let [q, k, v] = ["q", "k", "v"].map(|name| read::<Ix4>(file, name));
    let slopes = read::<Ix1>(file, "slopes");
    let [d_o, d_kv] = ["d_o", "d_kv_final"].map(|name| {
        // A file without a cotangent of the state has none.
        if file.contains(name) { read::<Ix4>(file, name) } else { Array::zeros((0, 0, 0, 0)) }
    });
    let kv = file.contains("kv0").then(|| read::<Ix4>(file, "kv0"));
    let inputs = Inputs::new(q.view(), k.view(), v.view());
    let inputs = Inputs { kv: kv.as_ref().map(|kv| kv.view()), ..inputs };
    let cotangents = match d_kv.is_empty() {
        true => Cotangents::new(d_o.view()),
        false => Cotangents::new(d_o.view()).with_state(d_kv.view()),
    };
    let mut runs = vec![(
        forward(inputs, &config(&slopes, 64))?,
        backward(inputs, cotangents, &config(&slopes, 64))?,
    )];
    for block in [16, 32, 64] {
        let config = config(&slopes, block);
        let grads = backward_chunked(inputs, cotangents, &config)?;
        runs.push((forward_chunked(inputs, &config)?, grads));
    }
    for (output, grads) in runs {
        held(file, "o", &output.out, OUT);
        held(file, "kv_final", &output.kv, OUT);
        held(file, "d_q", &grads.dq, GRAD);
        held(file, "d_k", &grads.dk, GRAD);
        held(file, "d_v", &grads.dv, GRAD);
        if file.contains("d_kv0") {
            held(file, "d_kv0", &grads.d_kv, GRAD);
        }
    }
    Ok(())
}

fn positions(file: &GoldenFile) -> Result<()> {
    let (x, theta) = (read::<Ix4>(file, "x"), read::<Ix2>(file, "theta"));
    let first = file.number("offset")? as usize;
    held(file, "y", &lrpe(x.view(), theta.view(), first)?, OUT);
    let d_y = read::<Ix4>(file, "d_y");
    let (dx, d_theta) = lrpe_backward(x.view(), theta.view(), first, d_y.view())?;
    held(file, "d_x", &dx, GRAD);
    held(file, "d_theta", &d_theta, GRAD);
    Ok(())
}

fn unit(file: &GoldenFile) -> Result<()> {
    let (x, d_y) = (read::<Ix3>(file, "x"), read::<Ix3>(file, "d_y"));
    let [w_v, w_u, w_o] = ["w_v", "w_u", "w_o"].map(|name| read::<Ix2>(file, name));
    let weights = Sglu { w_v: w_v.view(), w_u: w_u.view(), w_o: w_o.view() };
    let epsilon = file.number("eps")?;
    let normed = srmsnorm(x.view(), epsilon);
    held(file, "x_norm", &normed, OUT);
    held(file, "y", &sglu(normed.view(), weights)?, OUT);
    let (d_normed, [d_w_v, d_w_u, d_w_o]) = sglu_backward(normed.view(), weights, d_y.view())?;
    held(file, "d_x", &srmsnorm_backward(x.view(), epsilon, d_normed.view())?, GRAD);
    held(file, "d_w_v", &d_w_v, GRAD);
    held(file, "d_w_u", &d_w_u, GRAD);
    held(file, "d_w_o", &d_w_o, GRAD);
    Ok(())
}

fn decoder_layer(file: &GoldenFile) -> Result<()> {
    let slopes = read::<Ix1>(file, "slopes");
    let number = |key: &str| file.number(key).unwrap();
    let (layer, layers) = (number("layer_index") as usize, number("num_layers") as usize);
    let released = Config::new(slopes.len()).with_layer(layer, layers).head_slopes()?;
    held(file, "slopes", &Array1::from(released), OUT);

    let mut config = config(&slopes, 16);
    config.epsilon = number("eps");
    let weights = layer::Weights::load(file.path(), "")?;
    let x = read::<Ix3>(file, "x");
    let output = layer::forward(x.view(), None, &weights, &config)?;
    held(file, "attn_o", &output.attention, OUT);
    held(file, "kv_final", &output.state.kv().to_owned(), OUT);
    held(file, "y_after_attention", &output.after_attention, OUT);
    held(file, "y", &output.out, OUT);

    let d_y = read::<Ix3>(file, "d_y");
    let grads = layer::backward(x.view(), None, &weights, d_y.view(), &config)?;
    held(file, "d_x", &grads.dx, GRAD);
    let by = grads.weights;
    for (name, got) in [
        ("d_w_qkvu", &by.w_qkvu),
        ("d_w_out", &by.w_out),
        ("d_w_v", &by.w_v),
        ("d_w_u", &by.w_u),
        ("d_w_o", &by.w_o),
    ] {
        held(file, name, got, GRAD);
    }
    assert_eq!(by.theta.is_some(), file.contains("d_theta"));
    if let Some(d_theta) = &by.theta {
        held(file, "d_theta", d_theta, GRAD);
    }
    Ok(())
}

fn on_device(file: &GoldenFile, gpu: &Gpu) -> attn_wgpu::Result<()> {
    match file.kind() {
        Some("decay_linear_attention") => attention_on_device(file, gpu),
        Some("lrpe") => positions_on_device(file, gpu),
        Some("sglu(srmsnorm(x))") => norm_on_device(file, gpu),
        Some("decoder_layer") => layer_on_device(file, gpu),
        // The reference refuses what is of no known kind.
        _ => Ok(()),
    }
}

fn up<D: Dimension>(gpu: &Gpu, x: &Array<f64, D>) -> Tensor {
    Tensor::from_array(gpu, &x.mapv(|x| x as f32).view().into_dyn()).unwrap()
}

/// Within the specification's tolerances, of f32, also for shipped files.
fn held_on_device(file: &GoldenFile, name: &str, got: &Tensor, bound: f64) {
    let want = file.f64(name).unwrap();
    let got = got.to_array::<f32>().unwrap().mapv(f64::from);
    assert_eq!(got.shape(), want.shape(), "{name}");
    let largest = want.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
    let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest;
    assert!(worst <= bound, "{name} on the device: {worst:e} above {bound:e}");
    println!("  {name} on the device: {worst:.1e}");
}

fn attention_on_device(file: &GoldenFile, gpu: &Gpu) -> attn_wgpu::Result<()> {
    let [q, k, v, d_o] = ["q", "k", "v", "d_o"].map(|name| up(gpu, &read::<Ix4>(file, name)));
    let state = |name| file.contains(name).then(|| up(gpu, &read::<Ix4>(file, name)));
    let (kv, d_kv) = (state("kv0"), state("d_kv_final"));
    let slopes = read::<Ix1>(file, "slopes");
    for block in [16, 32, 64] {
        let lightning = Lightning::new(gpu, config(&slopes, block))?;
        let inputs = device::Inputs { kv: kv.as_ref(), ..device::Inputs::new(&q, &k, &v) };
        let (output, saved) = lightning.forward_saved(inputs)?;
        let by = device::Cotangents { kv: d_kv.as_ref(), ..device::Cotangents::new(&d_o) };
        let grads = lightning.backward(&saved, by)?;
        held_on_device(file, "o", &output.out, OUT);
        held_on_device(file, "kv_final", &output.kv, OUT);
        held_on_device(file, "d_q", &grads.dq, GRAD);
        held_on_device(file, "d_k", &grads.dk, GRAD);
        held_on_device(file, "d_v", &grads.dv, GRAD);
        if file.contains("d_kv0") {
            held_on_device(file, "d_kv0", &grads.d_kv, GRAD);
        }
    }
    Ok(())
}

fn positions_on_device(file: &GoldenFile, gpu: &Gpu) -> attn_wgpu::Result<()> {
    let theta = read::<Ix2>(file, "theta");
    let [x, d_y] = ["x", "d_y"].map(|name| up(gpu, &read::<Ix4>(file, name)));
    let (lrpe, first) = (Lrpe::new(gpu, theta.view())?, file.number("offset")? as usize);
    held_on_device(file, "y", &lrpe.forward(&x, first)?, OUT);
    let (dx, d_theta) = lrpe.backward(&x, first, &d_y)?;
    held_on_device(file, "d_x", &dx, GRAD);
    held_on_device(file, "d_theta", &d_theta, GRAD);
    Ok(())
}

/// The norm; the unit behind it is held with the layers.
fn norm_on_device(file: &GoldenFile, gpu: &Gpu) -> attn_wgpu::Result<()> {
    let (x, d_y) = (read::<Ix3>(file, "x"), read::<Ix3>(file, "d_y"));
    let [w_v, w_u, w_o] = ["w_v", "w_u", "w_o"].map(|name| read::<Ix2>(file, name));
    let weights = Sglu { w_v: w_v.view(), w_u: w_u.view(), w_o: w_o.view() };
    let epsilon = file.number("eps")?;
    let uploaded = up(gpu, &x);
    held_on_device(file, "x_norm", &simple_rms_norm(&uploaded, epsilon as f32)?, OUT);
    let (d_normed, _) = sglu_backward(srmsnorm(x.view(), epsilon).view(), weights, d_y.view())?;
    let dx = simple_rms_norm_backward(&uploaded, &up(gpu, &d_normed), epsilon as f32)?;
    held_on_device(file, "d_x", &dx, GRAD);
    Ok(())
}

fn layer_on_device(file: &GoldenFile, gpu: &Gpu) -> attn_wgpu::Result<()> {
    let mut config = config(&read::<Ix1>(file, "slopes"), 64);
    config.epsilon = file.number("eps")?;
    let layer = device::layer::Layer::load(gpu, config, file.path(), "")?;
    let [x, d_y] = ["x", "d_y"].map(|name| up(gpu, &read::<Ix3>(file, name)));
    let (output, saved) = layer.forward_saved(&x, None)?;
    held_on_device(file, "attn_o", &output.attention, OUT);
    held_on_device(file, "kv_final", output.state.kv(), OUT);
    held_on_device(file, "y_after_attention", &output.after_attention, OUT);
    held_on_device(file, "y", &output.out, OUT);
    held_on_device(file, "y", &layer.forward(&x, None)?.out, OUT);
    let grads = layer.backward(&saved, &d_y)?;
    held_on_device(file, "d_x", &grads.dx, GRAD);
    let by = &grads.weights;
    for (name, got) in [
        ("d_w_qkvu", &by.w_qkvu),
        ("d_w_out", &by.w_out),
        ("d_w_v", &by.w_v),
        ("d_w_u", &by.w_u),
        ("d_w_o", &by.w_o),
    ] {
        held_on_device(file, name, got, GRAD);
    }
    if let Some(d_theta) = &by.theta {
        held_on_device(file, "d_theta", d_theta, GRAD);
    }
    Ok(())
}
