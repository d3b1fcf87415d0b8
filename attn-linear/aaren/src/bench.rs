//! The attention as benchmarks see it (feature `bench`).

use attn_core::dense::Config as Dense;
use attn_core::plan::SparsePlan;
use attn_core::testing::{HostArrays, HostInputs};
use attn_core::{AttentionShape, Mask};
use attn_wgpu::bench::{
    Mechanism, Prepared, Reference, Stream, pick_rows, plain_logits, tokens, upload, upload_inputs,
};
use attn_wgpu::{DType, Gpu, Result, Tensor};
use ndarray::{Axis, s};

use crate::reference;
use crate::{Aaren, Config, Inputs, State};

/// All prefixes of captured or random tokens, with the problem's first query in place of the learned one.
///
/// This is another function than dense attention of the same problem, in which every token has a query of its
/// own; dense causal attention with the one query for all tokens computes the same.
#[derive(Debug, Clone, Copy)]
pub struct Benchmark;

fn config(shape: &AttentionShape, dense: &Dense) -> attn_core::Result<Config> {
    plain_logits(dense)?;
    Ok(Config::new().with_scale(dense.scale_for(shape.dim_qk)))
}

/// The first query of every head.
fn query(gpu: &Gpu, inputs: &HostInputs) -> Result<Tensor> {
    let shape = inputs.shape;
    let first = pick_rows(&inputs.q, shape.q(), &[0]);
    upload(gpu, DType::F32, &first, &[shape.batch, shape.heads, shape.dim_qk])
}

struct PreparedScan {
    aaren: Aaren,
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Mechanism for Benchmark {
    fn name(&self) -> &'static str {
        "aaren"
    }

    fn is_for(&self, shape: &AttentionShape, config: &Dense) -> bool {
        shape.queries == shape.keys && shape.queries > 1 && config.mask == Mask::Causal
    }

    fn prepare(&self, gpu: &Gpu, inputs: &HostInputs, dense: &Dense) -> Result<Box<dyn Prepared>> {
        let shape = inputs.shape;
        let [_, k, v] = upload_inputs(gpu, DType::F32, inputs)?;
        let q = query(gpu, inputs)?;
        let aaren = Aaren::new(gpu, config(&shape, dense)?)?;
        Ok(Box::new(PreparedScan { aaren, q, k, v }))
    }

    fn reference(
        &self,
        inputs: &HostArrays,
        dense: &Dense,
        rows: &[usize],
        _: Option<&SparsePlan>,
    ) -> attn_core::Result<Reference> {
        let config = config(&inputs.view().check()?, dense)?;
        let q = inputs.q.slice(s![.., .., 0, ..]);
        let inputs = reference::Inputs::new(q, inputs.k.view(), inputs.v.view());
        let output = reference::forward(inputs, None, &config)?;
        let largest = |x: f64, lse: &f64| x.max(if lse.is_finite() { lse.abs() } else { 0.0 });
        let logits = output.lse.iter().fold(0.0, largest);
        Ok(Reference { results: vec![output.out.select(Axis(2), rows)], logits })
    }

    fn flops(&self, shape: &AttentionShape, _: &Dense) -> f64 {
        let tokens = (shape.batch * shape.heads * shape.keys) as f64;
        tokens * (2 * shape.dim_qk + 6 * shape.dim_v) as f64
    }

    fn bytes(&self, shape: &AttentionShape, _: &Dense) -> f64 {
        let elements = |shape: [usize; 4]| shape.into_iter().product::<usize>();
        4.0 * [shape.k(), shape.v(), shape.out()].map(elements).iter().sum::<usize>() as f64
    }
}

impl Prepared for PreparedScan {
    fn record(&self) -> Result<Vec<(&'static str, Tensor)>> {
        Ok(vec![("out", self.aaren.forward(Inputs::new(&self.q, &self.k, &self.v))?.out)])
    }

    fn variant(&self) -> String {
        format!("tiles of {} tokens", attn_wgpu::scan::tile(self.k.shape()[2]))
    }
}

/// The next tokens behind a text, from its state.
#[derive(Debug, Clone, Copy)]
pub struct Update;

struct PreparedUpdate {
    aaren: Aaren,
    q: Tensor,
    start: State,
    /// Keys and values of each token.
    tokens: Vec<[Tensor; 2]>,
}

impl Stream for Update {
    fn name(&self) -> &'static str {
        "aaren-stream"
    }

    fn whole(&self) -> &dyn Mechanism {
        &Benchmark
    }

    fn begin(&self, gpu: &Gpu, inputs: &HostInputs, dense: &Dense) -> Result<Box<dyn Prepared>> {
        let shape = inputs.shape;
        let aaren = Aaren::new(gpu, config(&shape, dense)?)?;
        let q = query(gpu, inputs)?;
        let (text, tokens) = tokens(inputs);
        let [_, k, v] = upload_inputs(gpu, DType::F32, &text)?;
        let mut start = State::empty(gpu, shape.batch, shape.heads, shape.dim_v)?;
        aaren.fold(&mut start, Inputs::new(&q, &k, &v))?;
        let upload = |token| {
            let [_, k, v] = upload_inputs(gpu, DType::F32, token)?;
            Ok([k, v])
        };
        let tokens = tokens.iter().map(upload).collect::<Result<_>>()?;
        Ok(Box::new(PreparedUpdate { aaren, q, start, tokens }))
    }

    fn flops(&self, shape: &AttentionShape) -> f64 {
        Benchmark.flops(&AttentionShape { queries: 1, keys: 1, ..*shape }, &Dense::new())
    }

    fn bytes(&self, shape: &AttentionShape) -> f64 {
        // The state in and out, a key, a value and an output.
        let token = 2 * (shape.dim_v + 2) + shape.dim_qk + 2 * shape.dim_v;
        4.0 * (shape.batch * shape.heads * token) as f64
    }
}

impl Prepared for PreparedUpdate {
    fn record(&self) -> Result<Vec<(&'static str, Tensor)>> {
        let mut state = self.start.clone();
        let token = |[k, v]: &[Tensor; 2]| {
            Ok(("out", self.aaren.decode(&mut state, Inputs::new(&self.q, k, v))?.out))
        };
        self.tokens.iter().map(token).collect()
    }

    fn variant(&self) -> String {
        "an update a token".into()
    }
}
