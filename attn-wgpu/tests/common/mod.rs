//! What the test files share.
#![allow(dead_code, missing_docs)]

#[path = "../../src/testing/frame.rs"]
pub mod frame;
pub mod plans;
pub mod rows;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use attn_core::dense::{self, Config};
use attn_core::ndarray::{Array, s};
use attn_core::testing::{Budget, HostInputs, Values, fill, simple_f32, simple_f32_backward};
use attn_core::{AttentionShape, Mask, Modifier};
use attn_wgpu::attention::{Attention, Cotangents, Inputs};
use attn_wgpu::{DType, Error, Gpu, GpuBuilder, Result, Tensor};
use half::{bf16, f16};
use proptest::test_runner::Config as ProptestConfig;

/// A device that tests share, from many threads. `None`, with a printed notice, where there is no
/// adapter at all.
///
/// There are two of them, taken in turn: a software driver compiles kernels on one thread a device.
pub fn gpu() -> Option<Gpu> {
    static GPUS: [OnceLock<Option<Gpu>>; 2] = [OnceLock::new(), OnceLock::new()];
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed) % GPUS.len();
    GPUS[next].get_or_init(|| open(Gpu::builder())).clone()
}

/// Random cases of a test: `default`, or what `PROPTEST_CASES` says.
pub fn cases(default: u32) -> ProptestConfig {
    let wanted = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases = wanted.unwrap_or(default);
    ProptestConfig { cases, max_shrink_iters: 40, ..ProptestConfig::default() }
}

/// A device of one's own. Skips only if nothing was asked for and nothing is there.
pub fn open(builder: GpuBuilder) -> Option<Gpu> {
    match builder.build() {
        Ok(gpu) => Some(gpu),
        Err(Error::NoAdapter { wanted: None, tried }) if tried.is_empty() => {
            println!("skipped: no adapter on this machine");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Extents in the order batch, heads, heads_kv, queries, keys, dim_qk, dim_v.
pub fn shape(extents: [usize; 7]) -> AttentionShape {
    let [batch, heads, heads_kv, queries, keys, dim_qk, dim_v] = extents;
    AttentionShape { batch, heads, heads_kv, queries, keys, dim_qk, dim_v }
}

pub fn masked(mask: Mask) -> Config {
    Config::new().with_mask(mask)
}

/// A modifier that tells batch entries and heads apart.
pub fn place() -> Modifier {
    Modifier::score(
        "place",
        "return score + f32(batch) * 0.5 * f32(key % 3) - f32(head) * 0.25 * f32(key % 2);",
    )
    .with_host(|score, at| {
        score + at.batch as f64 * 0.5 * (at.key % 3) as f64
            - at.head as f64 * 0.25 * (at.key % 2) as f64
    })
}

pub struct Uploaded {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub sinks: Option<Tensor>,
}

impl Uploaded {
    pub fn new(gpu: &Gpu, inputs: &HostInputs) -> Result<Uploaded> {
        Uploaded::as_type(gpu, inputs, DType::F32)
    }

    /// Rounded to a storage type.
    pub fn as_type(gpu: &Gpu, inputs: &HostInputs, dtype: DType) -> Result<Uploaded> {
        let shape = &inputs.shape;
        let sinks = inputs.sinks.as_ref();
        Ok(Uploaded {
            q: upload(gpu, &inputs.q, &shape.q(), dtype)?,
            k: upload(gpu, &inputs.k, &shape.k(), dtype)?,
            v: upload(gpu, &inputs.v, &shape.v(), dtype)?,
            sinks: sinks.map(|s| Tensor::from_slice(gpu, s, &[s.len()])).transpose()?,
        })
    }

    pub fn view(&self) -> Inputs<'_> {
        Inputs { q: &self.q, k: &self.k, v: &self.v, sinks: self.sinks.as_ref() }
    }
}

pub fn upload(gpu: &Gpu, data: &[f32], shape: &[usize], dtype: DType) -> Result<Tensor> {
    match dtype {
        DType::F16 => {
            let half: Vec<f16> = data.iter().map(|&x| f16::from_f32(x)).collect();
            Tensor::from_slice(gpu, &half, shape)
        }
        DType::BF16 => {
            let half: Vec<bf16> = data.iter().map(|&x| bf16::from_f32(x)).collect();
            Tensor::from_slice(gpu, &half, shape)
        }
        _ => Tensor::from_slice(gpu, data, shape),
    }
}

pub fn download(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(match tensor.dtype() {
        DType::F16 => tensor.to_vec::<f16>()?.into_iter().map(f16::to_f32).collect(),
        DType::BF16 => tensor.to_vec::<bf16>()?.into_iter().map(bf16::to_f32).collect(),
        _ => tensor.to_vec()?,
    })
}

/// The inputs as a storage type holds them.
pub fn rounded(inputs: &HostInputs, dtype: DType) -> HostInputs {
    let round = |data: &[f32]| -> Vec<f32> {
        let round = |&x: &f32| match dtype {
            DType::F16 => f16::from_f32(x).to_f32(),
            DType::BF16 => bf16::from_f32(x).to_f32(),
            _ => x,
        };
        data.iter().map(round).collect()
    };
    let (q, k, v) = (round(&inputs.q), round(&inputs.k), round(&inputs.v));
    HostInputs { q, k, v, ..inputs.clone() }
}

/// Gradients on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Grads32 {
    pub dq: Vec<f32>,
    pub dk: Vec<f32>,
    pub dv: Vec<f32>,
    pub d_sinks: Vec<f32>,
}

/// Cotangents of a case: of the output, and of the log-sum-exp.
pub fn cotangents(shape: &AttentionShape, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let count = |shape: &[usize]| shape.iter().product();
    (
        fill(seed, 10, Values::Normal, count(&shape.out())),
        fill(seed, 11, Values::Normal, count(&shape.lse())),
    )
}

pub fn gradients(
    gpu: &Gpu,
    inputs: &HostInputs,
    config: &Config,
    d_out: &[f32],
    d_lse: Option<&[f32]>,
) -> Result<Grads32> {
    let uploaded = Uploaded::new(gpu, inputs)?;
    let attention = Attention::new(gpu, config.clone())?;
    let (_, saved) = attention.forward_saved(uploaded.view())?;
    let out = Tensor::from_slice(gpu, d_out, &inputs.shape.out())?;
    let lse = d_lse.map(|d| Tensor::from_slice(gpu, d, &inputs.shape.lse())).transpose()?;
    let grads = attention.backward(&saved, Cotangents { out: &out, lse: lse.as_ref() })?;
    Ok(Grads32 {
        dq: grads.dq.to_vec()?,
        dk: grads.dk.to_vec()?,
        dv: grads.dv.to_vec()?,
        d_sinks: grads.d_sinks.map_or(Ok(Vec::new()), |d| d.to_vec())?,
    })
}

/// Holds gradients to the error budget.
pub fn judge_gradients(
    case: &str,
    inputs: &HostInputs,
    config: &Config,
    d_out: &[f32],
    d_lse: Option<&[f32]>,
    got: &Grads32,
) -> Result<(), String> {
    let text = |error: attn_core::Error| format!("{case}: {error}");
    let arrays = inputs.to_f64().map_err(text)?;
    let output = dense::forward(arrays.view(), config).map_err(text)?;
    let wide = |data: &[f32]| data.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let out = Array::from_shape_vec(inputs.shape.out(), wide(d_out)).map_err(|e| e.to_string())?;
    let lse = d_lse
        .map(|d| Array::from_shape_vec(inputs.shape.lse(), wide(d)))
        .transpose()
        .map_err(|e| e.to_string())?;
    let cotangents = dense::Cotangents { out: out.view(), lse: lse.as_ref().map(|lse| lse.view()) };
    let want = dense::backward(arrays.view(), config, &output, cotangents).map_err(text)?;
    let simple = simple_f32_backward(inputs, config, d_out, d_lse).map_err(text)?;
    let budget = Budget::for_output(&output);
    let check = |name: &str, got: &[f32], simple: &[f32], want: Vec<f64>| {
        // A budget relative to 0 admits nothing, but `d_out . v - delta` only rounds to 0.
        if want.iter().all(|&x| x == 0.0) && got.iter().all(|x| x.abs() <= 1e-6) {
            return Ok(());
        }
        budget.check(&format!("{case} {name}"), got, simple, &want).map(|_| ())
    };
    let check_scores = |dq: &[f32], dk: &[f32]| {
        check("dq", dq, &simple.dq, want.dq.iter().copied().collect())?;
        check("dk", dk, &simple.dk, want.dk.iter().copied().collect())
    };
    if let Err(message) = check_scores(&got.dq, &got.dk) {
        // Only short sequences have room for all probabilities.
        if inputs.shape.queries * inputs.shape.keys > 1 << 22 {
            return Err(message);
        }
        let probs = dense::forward_with_probs(arrays.view(), config).map_err(text)?;
        let [dq, dk] = score_rounding(inputs, config, &probs, d_out, d_lse);
        let dq = exact_within(&dq, &got.dq, &want.dq);
        check_scores(&dq, &exact_within(&dk, &got.dk, &want.dk))?;
    }
    check("dv", &got.dv, &simple.dv, want.dv.iter().copied().collect())?;
    match (want.d_sinks, &simple.d_sinks) {
        (Some(want), Some(simple)) => {
            let rounding = sink_rounding(inputs, &output, d_out, d_lse);
            let got = exact_within(&rounding, &got.d_sinks, &want);
            check("d_sinks", &got, simple, want.iter().copied().collect())
        }
        _ => Ok(()),
    }
}

/// `got`, but what is as near to `want` as rounding allows taken as exact.
fn exact_within<'a>(
    rounding: &[f64],
    got: &[f32],
    want: impl IntoIterator<Item = &'a f64>,
) -> Vec<f32> {
    let pairs = got.iter().zip(want).zip(rounding);
    let exact = |((&got, &want), rounding): ((&f32, &f64), &f64)| {
        if (f64::from(got) - want).abs() <= *rounding { want as f32 } else { got }
    };
    pairs.map(exact).collect()
}

/// How far rounding moves each element of the gradients of queries and keys: sums of
/// `p (d_out . v - d_out . out + d_lse)`, in which a row of few keys cancels to nothing but the error of `p`. A simple
/// implementation may have none, as the exponential of 0 is 1; on a GPU it need not be. Four roundings of a term, and
/// those of different terms are independent.
fn score_rounding(
    inputs: &HostInputs,
    config: &dense::Config,
    output: &dense::Output,
    d_out: &[f32],
    d_lse: Option<&[f32]>,
) -> [Vec<f64>; 2] {
    let s = inputs.shape;
    let scale = config.scale_for(s.dim_qk);
    let ratio = s.heads / s.heads_kv.max(1);
    let wide = |x: &f32| f64::from(*x);
    let mut dq = vec![0.0; inputs.q.len()];
    let mut dk = vec![0.0; inputs.k.len()];
    let probs = output.probs.as_ref().expect("asked for");
    for ((b, h, i, j), &p) in probs.indexed_iter().filter(|(_, p)| **p != 0.0) {
        let row = (b * s.heads + h) * s.queries + i;
        let key = (b * s.heads_kv + h / ratio) * s.keys + j;
        let d_out = &d_out[row * s.dim_v..][..s.dim_v];
        let v = &inputs.v[key * s.dim_v..][..s.dim_v];
        let out = output.out.slice(s![b, h, i, ..]);
        let size: f64 = d_out
            .iter()
            .zip(v)
            .zip(out)
            .map(|((d, v), o)| wide(d).abs() * (wide(v).abs() + o.abs()))
            .sum();
        let term = scale * p * (size + d_lse.map_or(0.0, |d| wide(&d[row]).abs()));
        for dim in 0..s.dim_qk {
            let (at_q, at_k) = (row * s.dim_qk + dim, key * s.dim_qk + dim);
            dq[at_q] += (term * wide(&inputs.k[at_k])).powi(2);
            dk[at_k] += (term * wide(&inputs.q[at_q])).powi(2);
        }
    }
    [dq, dk].map(|squares| {
        squares.iter().map(|square| 2.0 * f64::from(f32::EPSILON) * square.sqrt()).collect()
    })
}

/// How far rounding moves the gradient of each head's sink: a sum over rows, of both signs, which may cancel to
/// less than the rounding of its terms. Four roundings of every term, as the budget has k = 4.
fn sink_rounding(
    inputs: &HostInputs,
    output: &dense::Output,
    d_out: &[f32],
    d_lse: Option<&[f32]>,
) -> Vec<f64> {
    let shape = &inputs.shape;
    let mut sums = vec![0.0; shape.heads];
    for (row, ((b, h, t), lse)) in output.lse.indexed_iter().enumerate() {
        let Some(sink) = inputs.sinks.as_ref().map(|sinks| f64::from(sinks[h])) else { continue };
        let d_out = &d_out[row * shape.dim_v..][..shape.dim_v];
        let out = output.out.slice(s![b, h, t, ..]);
        let delta: f64 = out.iter().zip(d_out).map(|(o, &d)| (o * f64::from(d)).abs()).sum();
        let own = d_lse.map_or(0.0, |d| f64::from(d[row].abs()));
        sums[h] += (sink - lse).exp() * (own + delta);
    }
    sums.iter().map(|sum| 2.0 * f64::from(f32::EPSILON) * sum).collect()
}

/// Output and log-sum-exp on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Result32 {
    pub out: Vec<f32>,
    pub lse: Vec<f32>,
}

impl Result32 {
    /// Bits, since NaN differs from itself.
    pub fn bits(&self) -> Vec<u32> {
        self.out.iter().chain(&self.lse).map(|x| x.to_bits()).collect()
    }
}

pub fn attend(gpu: &Gpu, inputs: &HostInputs, config: &Config) -> Result<Result32> {
    let uploaded = Uploaded::new(gpu, inputs)?;
    let output = Attention::new(gpu, config.clone())?.forward(uploaded.view())?;
    Ok(Result32 { out: output.out.to_vec()?, lse: output.lse.to_vec()? })
}

/// Holds a result to the error budget.
pub fn judge(
    case: &str,
    inputs: &HostInputs,
    config: &Config,
    got: &Result32,
) -> Result<(), String> {
    let arrays = inputs.to_f64().map_err(|error| error.to_string())?;
    let want = dense::forward(arrays.view(), config).map_err(|error| error.to_string())?;
    let simple = simple_f32(inputs, config).map_err(|error| error.to_string())?;
    let budget = Budget::for_output(&want);
    let out: Vec<f64> = want.out.iter().copied().collect();
    let lse: Vec<f64> = want.lse.iter().copied().collect();
    budget.check(&format!("{case} out"), &got.out, &simple.out, &out)?;
    budget.check(&format!("{case} lse"), &got.lse, &simple.lse, &lse)?;
    Ok(())
}

/// Runs a case on the shared device and judges it.
pub fn check(gpu: &Gpu, inputs: &HostInputs, config: &Config) {
    let s = inputs.shape;
    let case = format!(
        "b{}-h{}k{}-m{}n{}-d{}v{} {}",
        s.batch,
        s.heads,
        s.heads_kv,
        s.queries,
        s.keys,
        s.dim_qk,
        s.dim_v,
        config.mask.name()
    );
    let got = attend(gpu, inputs, config).unwrap_or_else(|error| panic!("{case}: {error}"));
    judge(&case, inputs, config, &got).unwrap_or_else(|message| panic!("{message}"));
}

pub fn normal(shape: AttentionShape, seed: u64) -> HostInputs {
    HostInputs::random(shape, seed, Values::Normal)
}
