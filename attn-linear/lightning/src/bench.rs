//! The mechanism as benchmarks see it (feature `bench`).

use attn_core::dense::Config as Dense;
use attn_core::plan::SparsePlan;
use attn_core::testing::{HostArrays, HostInputs};
use attn_core::{AttentionShape, Mask};
use attn_wgpu::bench::{
    Mechanism, Prepared, Reference, Stream, plain_logits, tokens, upload_inputs,
};
use attn_wgpu::linear_attention::DEFAULT_BLOCK;
use attn_wgpu::matmul::matmul;
use attn_wgpu::{Activation, DType, Gpu, Result, Tensor, ops};
use ndarray::{Array4, Axis};

use crate::{Config, Inputs, Lightning, State, reference};

/// Forward passes of layer 0 of 24, with the queries, keys and values of the problem as they are.
///
/// Operations are counted in blocks of [`DEFAULT_BLOCK`] tokens as whole squares,
/// `2 N (64 (D + E) + 2 D E)` a head.
#[derive(Debug, Clone, Copy)]
pub struct Benchmark;

/// The same sums as plain masked linear attention, `((Q K^T) * M) V`, with a number for each pair of
/// tokens in memory: what the paper compares with. For few tokens, and a head of keys for each of queries.
#[derive(Debug, Clone, Copy)]
pub struct Masked;

/// Pairs of tokens of which [`Masked`] keeps three numbers, at most.
const MOST_PAIRS: usize = 1 << 24;

fn config(shape: &AttentionShape) -> Config {
    Config::new(shape.heads).with_layer(0, 24)
}

fn is_for(shape: &AttentionShape, dense: &Dense) -> bool {
    let plain = plain_logits(dense).is_ok();
    plain && dense.mask == Mask::Causal && shape.queries == shape.keys && shape.queries > 0
}

fn all(inputs: &HostArrays) -> attn_core::Result<Array4<f64>> {
    let shape = inputs.view().check()?;
    let given = reference::Inputs::new(inputs.q.view(), inputs.k.view(), inputs.v.view());
    Ok(reference::forward_chunked(given, &config(&shape))?.out)
}

/// The rows `rows` of every head, by the chunked reference.
fn want(inputs: &HostArrays, rows: &[usize]) -> attn_core::Result<Reference> {
    Ok(Reference { results: vec![all(inputs)?.select(Axis(2), rows)], logits: 0.0 })
}

/// The recurrence in f32, row-major: what the budget of errors is measured by.
fn simple(inputs: &HostInputs, rows: &[usize]) -> attn_core::Result<Vec<Vec<f32>>> {
    let shape = &inputs.shape;
    let slopes = config(shape).head_slopes()?;
    let (n, d, e) = (shape.queries, shape.dim_qk, shape.dim_v);
    let mut out = Vec::with_capacity(shape.batch * shape.heads * rows.len() * e);
    for plane in 0..shape.batch * shape.heads {
        let (batch, head) = (plane / shape.heads, plane % shape.heads);
        let other = batch * shape.heads_kv + head / shape.group();
        let lambda = (-slopes[head]).exp() as f32;
        let mut kv = vec![0_f32; d * e];
        let mut all = Vec::with_capacity(n * e);
        for t in 0..n {
            let q = &inputs.q[(plane * n + t) * d..][..d];
            let k = &inputs.k[(other * n + t) * d..][..d];
            let v = &inputs.v[(other * n + t) * e..][..e];
            let start = all.len();
            all.resize(start + e, 0.0);
            for ((state, &k), &q) in kv.chunks_exact_mut(e).zip(k).zip(q) {
                for ((state, &v), out) in state.iter_mut().zip(v).zip(&mut all[start..]) {
                    *state = lambda * *state + k * v;
                    *out += q * *state;
                }
            }
        }
        out.extend(rows.iter().flat_map(|&row| all[row * e..][..e].iter().copied()));
    }
    Ok(vec![out])
}

/// The next tokens behind a text, from its state.
#[derive(Debug, Clone, Copy)]
pub struct Decode;

struct PreparedDecode {
    lightning: Lightning,
    start: State,
    tokens: Vec<[Tensor; 3]>,
}

impl Stream for Decode {
    fn name(&self) -> &'static str {
        "lightning-stream"
    }

    fn whole(&self) -> &dyn Mechanism {
        &Benchmark
    }

    fn begin(&self, gpu: &Gpu, inputs: &HostInputs, _dense: &Dense) -> Result<Box<dyn Prepared>> {
        let lightning = Lightning::new(gpu, config(&inputs.shape))?;
        let (text, tokens) = tokens(inputs);
        let [q, k, v] = upload_inputs(gpu, DType::F32, &text)?;
        let (_, start) = lightning.prefill(Inputs::new(&q, &k, &v))?;
        let upload = |token| upload_inputs(gpu, DType::F32, token);
        let tokens = tokens.iter().map(upload).collect::<Result<_>>()?;
        Ok(Box::new(PreparedDecode { lightning, start, tokens }))
    }

    fn flops(&self, shape: &AttentionShape) -> f64 {
        4.0 * (shape.batch * shape.heads * shape.dim_qk * shape.dim_v) as f64
    }

    fn bytes(&self, shape: &AttentionShape) -> f64 {
        let state = shape.dim_qk * shape.dim_v;
        let token = 2 * (shape.dim_qk + shape.dim_v);
        4.0 * (shape.batch * shape.heads * (2 * state + token)) as f64
    }
}

impl Prepared for PreparedDecode {
    fn record(&self) -> Result<Vec<(&'static str, Tensor)>> {
        let mut state = self.start.fork()?;
        let token = |[q, k, v]: &[Tensor; 3]| {
            Ok(("out", self.lightning.decode(&mut state, Inputs::new(q, k, v))?))
        };
        self.tokens.iter().map(token).collect()
    }

    fn variant(&self) -> String {
        "the recurrence".into()
    }
}

struct PreparedLightning {
    lightning: Lightning,
    tensors: [Tensor; 3],
}

impl Mechanism for Benchmark {
    fn name(&self) -> &'static str {
        "lightning"
    }

    fn is_for(&self, shape: &AttentionShape, dense: &Dense) -> bool {
        is_for(shape, dense)
    }

    fn prepare(&self, gpu: &Gpu, inputs: &HostInputs, _dense: &Dense) -> Result<Box<dyn Prepared>> {
        let lightning = Lightning::new(gpu, config(&inputs.shape))?;
        let tensors = upload_inputs(gpu, DType::F32, inputs)?;
        Ok(Box::new(PreparedLightning { lightning, tensors }))
    }

    fn reference(
        &self,
        inputs: &HostArrays,
        _dense: &Dense,
        rows: &[usize],
        _chosen: Option<&SparsePlan>,
    ) -> attn_core::Result<Reference> {
        want(inputs, rows)
    }

    fn simple(
        &self,
        inputs: &HostInputs,
        _dense: &Dense,
        rows: &[usize],
        _chosen: Option<&SparsePlan>,
    ) -> attn_core::Result<Option<Vec<Vec<f32>>>> {
        simple(inputs, rows).map(Some)
    }

    fn flops(&self, shape: &AttentionShape, _dense: &Dense) -> f64 {
        let (d, e) = (shape.dim_qk as f64, shape.dim_v as f64);
        let a_token = DEFAULT_BLOCK as f64 * (d + e) + 2.0 * d * e;
        2.0 * (shape.batch * shape.heads * shape.queries) as f64 * a_token
    }

    fn bytes(&self, shape: &AttentionShape, _dense: &Dense) -> f64 {
        let of = |extents: [usize; 4]| extents.iter().product::<usize>();
        let state = shape.batch * shape.heads * shape.dim_qk * shape.dim_v;
        4.0 * (of(shape.q()) + of(shape.k()) + of(shape.v()) + of(shape.out()) + state) as f64
    }
}

impl Prepared for PreparedLightning {
    fn record(&self) -> Result<Vec<(&'static str, Tensor)>> {
        let [q, k, v] = &self.tensors;
        Ok(vec![("out", self.lightning.forward(Inputs::new(q, k, v))?.out)])
    }

    fn variant(&self) -> String {
        format!("blocks of {} tokens", self.lightning.attention().block())
    }
}

struct PreparedMasked {
    /// `[1, heads, tokens, tokens]`.
    mask: Tensor,
    tensors: [Tensor; 3],
}

impl Mechanism for Masked {
    fn name(&self) -> &'static str {
        "masked-linear"
    }

    fn is_for(&self, shape: &AttentionShape, dense: &Dense) -> bool {
        let small = shape.heads * shape.queries * shape.queries <= MOST_PAIRS;
        is_for(shape, dense) && shape.heads == shape.heads_kv && shape.batch == 1 && small
    }

    fn prepare(&self, gpu: &Gpu, inputs: &HostInputs, _dense: &Dense) -> Result<Box<dyn Prepared>> {
        let (heads, n) = (inputs.shape.heads, inputs.shape.queries);
        let powers = config(&inputs.shape).decays(n)?;
        let decay = |(_, h, r, p): (usize, usize, usize, usize)| {
            if p <= r { powers[[h, r - p]] as f32 } else { 0.0 }
        };
        let mask = Array4::from_shape_fn((1, heads, n, n), decay);
        let mask = Tensor::from_array(gpu, &mask.view().into_dyn())?;
        let tensors = upload_inputs(gpu, DType::F32, inputs)?;
        Ok(Box::new(PreparedMasked { mask, tensors }))
    }

    fn reference(
        &self,
        inputs: &HostArrays,
        _dense: &Dense,
        rows: &[usize],
        _chosen: Option<&SparsePlan>,
    ) -> attn_core::Result<Reference> {
        want(inputs, rows)
    }

    fn simple(
        &self,
        inputs: &HostInputs,
        _dense: &Dense,
        rows: &[usize],
        _chosen: Option<&SparsePlan>,
    ) -> attn_core::Result<Option<Vec<Vec<f32>>>> {
        simple(inputs, rows).map(Some)
    }

    fn flops(&self, shape: &AttentionShape, _dense: &Dense) -> f64 {
        let pairs = (shape.batch * shape.heads * shape.queries * shape.keys) as f64;
        2.0 * pairs * (shape.dim_qk + shape.dim_v) as f64
    }

    fn bytes(&self, shape: &AttentionShape, dense: &Dense) -> f64 {
        Benchmark.bytes(shape, dense)
    }
}

impl Prepared for PreparedMasked {
    fn record(&self) -> Result<Vec<(&'static str, Tensor)>> {
        let [q, k, v] = &self.tensors;
        let products = matmul(q, &k.permute(&[0, 1, 3, 2])?)?;
        let weights = ops::gated(&products, &self.mask, Activation::None)?;
        Ok(vec![("out", matmul(&weights, v)?)])
    }

    fn variant(&self) -> String {
        "products of all pairs".into()
    }
}
