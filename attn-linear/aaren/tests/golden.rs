//! Vectors from the equations, checked by their makers against dense causal attention. `ATTN_GOLDEN_DIR` adds
//! a folder of more.

use std::path::PathBuf;

use attn_aaren::reference::{Cotangents, Inputs, Layer, State, backward, forward};
use attn_aaren::{Config, Result};
use attn_core::testing::golden::{self, GoldenFile};
use ndarray::{Array, Array1, Array2, Array3, Dimension, Ix1, Ix2, Ix3, Ix4};

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
    Ok(())
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
    Ok(())
}
