//! Vectors from the equations, checked by their makers against dense causal attention. `ATTN_GOLDEN_DIR` adds
//! a folder of more.

use std::path::PathBuf;

use attn_aaren::reference::{Cotangents, Inputs, Layer, State, backward, forward};
use attn_aaren::{Aaren, Config, Gpu, Tensor};
use attn_core::Result;
use attn_core::testing::golden::{self, GoldenFile};
use attn_wgpu::matmul::matmul;
use attn_wgpu::testing::gpu;
use ndarray::{Array, Array1, Array2, Array3, ArrayD, Dimension, Ix1, Ix2, Ix3, Ix4};

/// Tolerances relative to the largest element, for files of anybody's. Those of this crate were made in f64
/// and rounded to f32, which is all that they may differ by.
const OUT: f64 = 1e-5;
const SUMS: f64 = 2e-5;
const GRAD: f64 = 5e-5;
const ROUNDING: f64 = 1e-7;

#[test]
fn aaren() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let files = golden::files(&folder, "aaren").unwrap();
    assert!(files.iter().any(|file| file.shipped), "no file in {}", folder.display());
    for file in files {
        println!("{}", file.path().display());
        match file.kind() {
            Some("aaren_prefix_attention") => attention(&file).unwrap(),
            Some("aaren_stack") => stack(&file).unwrap(),
            kind => panic!("{}: of no known kind, {kind:?}", file.path().display()),
        }
    }
}

fn read<D: Dimension>(file: &GoldenFile, name: &str) -> Result<Array<f64, D>> {
    Ok(file.f64(name)?.into_dimensionality().unwrap())
}

fn close<D: Dimension>(file: &GoldenFile, name: &str, got: &Array<f64, D>, bound: f64) {
    let want = match name {
        "m" | "lse" => file.lse(name),
        _ => file.f64(name),
    };
    let want = want.unwrap();
    assert_eq!(got.shape(), want.shape(), "{name}");
    let finite = want.iter().filter(|x| x.is_finite());
    let largest = finite.fold(f64::MIN_POSITIVE, |largest, x| largest.max(x.abs()));
    // Equal infinities are right, everything else that is not finite is wrong.
    let error = |(a, b): (&f64, &f64)| match (a - b).abs() {
        error if error.is_finite() => error / largest,
        _ if a == b => 0.0,
        _ => f64::INFINITY,
    };
    let worst = got.iter().zip(&want).map(error).fold(0.0, f64::max);
    println!("  {name}: {worst:.1e}");
    let bound = if file.shipped { ROUNDING } else { bound };
    assert!(worst <= bound, "{name}: {worst:e} above {bound:e}");
}

/// What a device computed, within the tolerances for anybody's files.
fn held(file: &GoldenFile, name: &str, got: &Tensor, bound: f64) {
    let got = got.to_array::<f32>().unwrap().mapv(f64::from);
    let want = match name {
        "m" | "lse" => file.lse(name).unwrap(),
        _ => file.f64(name).unwrap(),
    };
    held_to(name, &got, &want, bound);
}

fn held_to(name: &str, got: &ArrayD<f64>, want: &ArrayD<f64>, bound: f64) {
    assert_eq!(got.shape(), want.shape(), "{name}");
    let finite = want.iter().filter(|x| x.is_finite());
    let largest = finite.fold(f64::MIN_POSITIVE, |largest, x| largest.max(x.abs()));
    let error = |(a, b): (&f64, &f64)| match (a - b).abs() {
        error if error.is_finite() => error / largest,
        _ if a == b => 0.0,
        _ => f64::INFINITY,
    };
    let worst = got.iter().zip(want).map(error).fold(0.0, f64::max);
    println!("  {name} on the device: {worst:.1e}");
    assert!(worst <= bound, "{name} on the device: {worst:e} above {bound:e}");
}

fn upload(gpu: &Gpu, file: &GoldenFile, name: &str) -> Tensor {
    Tensor::from_array(gpu, &file.f32(name).unwrap().view()).unwrap()
}

fn attention_on_the_device(file: &GoldenFile) -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let aaren = Aaren::new(&gpu, Config::new().with_scale(file.number("scale")?)).unwrap();
    let [q, k, v, d_out] = ["q", "k", "v", "d_o"].map(|name| upload(&gpu, file, name));
    let optional = |name: &str| file.contains(name).then(|| upload(&gpu, file, name));
    let valid = file.contains("mask").then(|| {
        let counts = file.i32("mask").unwrap().mapv(|x| u32::from(x != 0));
        Tensor::from_array(&gpu, &counts.view()).unwrap()
    });
    let state = optional("m0").map(|max| {
        let (sum, weighted) = (upload(&gpu, file, "u0"), upload(&gpu, file, "w0"));
        attn_aaren::State::from_parts(&max, &sum, &weighted).unwrap()
    });
    let mut inputs = attn_aaren::Inputs::new(&q, &k, &v);
    (inputs.valid, inputs.state) = (valid.as_ref(), state.as_ref());
    let (output, saved) = aaren.forward_saved(inputs).unwrap();
    held(file, "o", &output.out, OUT);
    held(file, "lse", &output.lse, OUT);
    // Of every prefix the file has m, u and w; the device keeps the last ones.
    let last = output.state.read().unwrap();
    let of_last = |name: &str| {
        let all = if name == "m" { file.lse(name).unwrap() } else { file.f64(name).unwrap() };
        all.index_axis(ndarray::Axis(2), all.shape()[2] - 1).to_owned()
    };
    held_to("m", &last.max().into_dyn(), &of_last("m"), OUT);
    held_to("u", &last.sum().into_dyn(), &of_last("u"), SUMS);
    held_to("w", &last.weighted().into_dyn(), &of_last("w"), SUMS);

    let (state_out, state_lse) = (optional("d_out_final"), optional("d_lse_final"));
    let mut cotangents = attn_aaren::Cotangents::new(&d_out);
    (cotangents.state_out, cotangents.state_lse) = (state_out.as_ref(), state_lse.as_ref());
    let grads = aaren.backward(&saved, cotangents).unwrap();
    held(file, "d_q", &grads.dq, GRAD);
    held(file, "d_k", &grads.dk, GRAD);
    held(file, "d_v", &grads.dv, GRAD);
    if let Some((d_out, d_lse)) = &grads.d_state {
        held(file, "d_out0", d_out, GRAD);
        held(file, "d_lse0", d_lse, GRAD);
    }
    Ok(())
}

fn attention(file: &GoldenFile) -> Result<()> {
    let config = Config::new().with_scale(file.number("scale")?);
    let (k, v) = (read::<Ix4>(file, "k")?, read::<Ix4>(file, "v")?);
    let shared = file.shape("q")?.len() == 2;
    let q: Array3<f64> = match shared {
        true => read::<Ix2>(file, "q")?.insert_axis(ndarray::Axis(0)),
        false => read::<Ix3>(file, "q")?,
    };
    let mut inputs = Inputs::new(q.view(), k.view(), v.view());
    let valid: Option<Array2<bool>> = file
        .contains("mask")
        .then(|| file.i32("mask").unwrap().mapv(|x| x != 0).into_dimensionality().unwrap());
    inputs.valid = valid.as_ref().map(|valid| valid.view());
    let state = match file.contains("m0") {
        true => {
            let (m, u) = (read::<Ix2>(file, "m0")?, read::<Ix2>(file, "u0")?);
            Some(State::from_parts(m.view(), u.view(), read::<Ix3>(file, "w0")?.view())?)
        }
        false => None,
    };

    let output = forward(inputs, state.as_ref(), &config)?;
    close(file, "o", &output.out, OUT);
    close(file, "lse", &output.lse, OUT);
    close(file, "m", &output.max, OUT);
    close(file, "u", &output.sum, SUMS);
    close(file, "w", &output.weighted, SUMS);

    let d_out = read::<Ix4>(file, "d_o")?;
    let mut cotangents = Cotangents::new(d_out.view());
    let optional = |name| file.contains(name).then(|| file.f64(name).unwrap());
    let (state_out, state_lse) = (optional("d_out_final"), optional("d_lse_final"));
    cotangents.state_out = state_out.as_ref().map(|x| x.view().into_dimensionality().unwrap());
    cotangents.state_lse = state_lse.as_ref().map(|x| x.view().into_dimensionality().unwrap());
    let grads = backward(inputs, state.as_ref(), &config, cotangents)?;
    match shared {
        true => close(file, "d_q", &grads.dq.remove_axis(ndarray::Axis(0)), GRAD),
        false => close(file, "d_q", &grads.dq, GRAD),
    }
    close(file, "d_k", &grads.dk, GRAD);
    close(file, "d_v", &grads.dv, GRAD);
    if state.is_some() {
        close(file, "d_out0", &grads.d_state_out, GRAD);
        close(file, "d_lse0", &grads.d_state_lse, GRAD);
    }
    attention_on_the_device(file)
}

struct Weights {
    query: Array1<f64>,
    projections: [Array2<f64>; 4],
}

impl Weights {
    fn read(file: &GoldenFile, layer: usize) -> Result<Self> {
        let [q, k, v, o] =
            ["q", "k", "v", "o"].map(|name| read(file, &format!("l{layer}.w_{name}")));
        let query = read::<Ix1>(file, &format!("l{layer}.query"))?;
        Ok(Weights { query, projections: [q?, k?, v?, o?] })
    }

    fn layer(&self, heads: usize) -> Layer<'_> {
        let [w_q, w_k, w_v, w_o] = self.projections.each_ref().map(|weight| weight.view());
        Layer { heads, heads_kv: heads, query: self.query.view(), w_q, w_k, w_v, w_o }
    }
}

fn stack(file: &GoldenFile) -> Result<()> {
    let config = Config::new().with_scale(file.number("scale")?);
    let (heads, layers) = (file.number("H")? as usize, file.number("layers")? as usize);
    let weights =
        (0..layers).map(|layer| Weights::read(file, layer)).collect::<Result<Vec<_>>>()?;
    let mut tokens = vec![read::<Ix3>(file, "x")?];
    for (layer, weights) in weights.iter().enumerate() {
        let y = weights.layer(heads).forward(tokens[layer].view(), None, &config)?;
        close(file, &format!("h{}", layer + 1), &y, OUT);
        tokens.push(y);
    }
    close(file, "y", &tokens[layers], OUT);
    let mut d_y = read::<Ix3>(file, "d_y")?;
    for (layer, weights) in weights.iter().enumerate().rev() {
        let grads =
            weights.layer(heads).backward(tokens[layer].view(), None, &config, d_y.view())?;
        let name = |name: &str| format!("d_l{layer}.{name}");
        close(file, &name("query"), &grads.d_query, GRAD);
        close(file, &name("w_q"), &grads.d_w_q, GRAD);
        close(file, &name("w_k"), &grads.d_w_k, GRAD);
        close(file, &name("w_v"), &grads.d_w_v, GRAD);
        close(file, &name("w_o"), &grads.d_w_o, GRAD);
        d_y = grads.d_x;
    }
    close(file, "d_x", &d_y, GRAD);
    stack_on_the_device(file, heads, layers)
}

/// A layer on a device: its tensors, and what its backward pass needs.
struct OnDevice {
    query: Tensor,
    w: [Tensor; 4],
    x: Tensor,
    out: Tensor,
    saved: attn_aaren::Saved,
}

/// `[rows, heads * dim]` of `[batch, heads, tokens, dim]`.
fn joined(x: &Tensor) -> Tensor {
    let &[batch, heads, tokens, dim] = x.shape() else { panic!("{:?}", x.shape()) };
    let rows = x.permute(&[0, 2, 1, 3]).unwrap().contiguous().unwrap();
    rows.reshape(&[batch * tokens, heads * dim]).unwrap()
}

/// The other way.
fn split(x: &Tensor, [batch, tokens, heads]: [usize; 3]) -> Tensor {
    let dim = x.shape()[1] / heads;
    x.reshape(&[batch, tokens, heads, dim]).unwrap().permute(&[0, 2, 1, 3]).unwrap()
}

fn transposed(x: &Tensor) -> Tensor {
    x.permute(&[1, 0]).unwrap()
}

fn stack_on_the_device(file: &GoldenFile, heads: usize, layers: usize) -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let mul = |a: &Tensor, b: &Tensor| matmul(a, b).unwrap();
    let aaren = Aaren::new(&gpu, Config::new().with_scale(file.number("scale")?)).unwrap();
    let x = upload(&gpu, file, "x");
    let &[batch, tokens, dim] = x.shape() else { panic!("{:?}", x.shape()) };
    let mut x = x.reshape(&[batch * tokens, dim]).unwrap();
    let mut done: Vec<OnDevice> = Vec::new();
    for layer in 0..layers {
        let part = |name: &str| upload(&gpu, file, &format!("l{layer}.{name}"));
        let query = part("query").reshape(&[1, part("query").len()]).unwrap();
        let w = ["w_q", "w_k", "w_v", "w_o"].map(part);
        let q = mul(&query, &transposed(&w[0]));
        let q = q.reshape(&[heads, q.len() / heads]).unwrap();
        let [k, v] =
            [1, 2].map(|i: usize| split(&mul(&x, &transposed(&w[i])), [batch, tokens, heads]));
        let inputs = attn_aaren::Inputs::new(&q, &k, &v);
        let (output, saved) = aaren.forward_saved(inputs).unwrap();
        let out = joined(&output.out);
        let y = mul(&out, &transposed(&w[3]));
        let whole = y.reshape(&[batch, tokens, y.shape()[1]]).unwrap();
        held(file, &format!("h{}", layer + 1), &whole, OUT);
        done.push(OnDevice { query, w, x, out, saved });
        x = y;
    }
    let d_y = upload(&gpu, file, "d_y");
    let mut d_y = d_y.reshape(&[batch * tokens, d_y.shape()[2]]).unwrap();
    for (layer, OnDevice { query, w, x, out, saved }) in done.iter().enumerate().rev() {
        let held = |name: &str, got: &Tensor| held(file, &format!("d_l{layer}.{name}"), got, GRAD);
        held("w_o", &mul(&transposed(&d_y), out));
        let d_out = split(&mul(&d_y, &w[3]), [batch, tokens, heads]);
        let grads = aaren.backward(saved, attn_aaren::Cotangents::new(&d_out)).unwrap();
        let (d_k, d_v) = (joined(&grads.dk), joined(&grads.dv));
        let d_q = grads.dq.reshape(&[1, grads.dq.len()]).unwrap();
        held("w_k", &mul(&transposed(&d_k), x));
        held("w_v", &mul(&transposed(&d_v), x));
        held("w_q", &mul(&transposed(&d_q), query));
        held("query", &mul(&d_q, &w[0]).reshape(&[query.len()]).unwrap());
        d_y = attn_wgpu::ops::add(&mul(&d_k, &w[1]), &mul(&d_v, &w[2])).unwrap();
    }
    let d_x = d_y.reshape(&[batch, tokens, dim]).unwrap();
    held(file, "d_x", &d_x, GRAD);
    Ok(())
}
