//! The mechanism as benchmarks see it (feature `bench`).

use attn_core::dense::Config as Dense;
use attn_core::plan::SparsePlan;
use attn_core::testing::{HostArrays, HostInputs};
use attn_core::{AttentionShape, Mask};
use attn_wgpu::attention::Inputs;
use attn_wgpu::bench::{
    DenseAttention, Mechanism, Prepared, Reference, plain_logits, reference_on_plan,
    simple_on_plan, upload_inputs,
};
use attn_wgpu::{DType, Gpu, Result, Tensor};

use crate::{BlockRank, Config, DeviceSegments, Segments};

/// Causal prompts as segments of 64 tokens: an instruction, documents and a query.
#[derive(Debug, Clone, Copy)]
pub struct Benchmark;

/// Tokens of a segment.
const LENGTH: usize = 64;

fn segments(shape: &AttentionShape) -> attn_core::Result<Segments> {
    let lengths: Vec<usize> =
        (0..shape.keys).step_by(LENGTH).map(|start| LENGTH.min(shape.keys - start)).collect();
    Segments::packed(&vec![lengths; shape.batch])
}

fn plan(shape: &AttentionShape) -> attn_core::Result<SparsePlan> {
    segments(shape)?.plan(shape.heads, shape.heads_kv)
}

struct PreparedPrompt {
    method: BlockRank,
    segments: DeviceSegments,
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Mechanism for Benchmark {
    fn name(&self) -> &'static str {
        "blockrank"
    }

    fn is_for(&self, shape: &AttentionShape, config: &Dense) -> bool {
        let prompt = shape.queries == shape.keys && shape.queries > 2 * LENGTH;
        prompt && config.mask == Mask::Causal
    }

    fn prepare(&self, gpu: &Gpu, inputs: &HostInputs, dense: &Dense) -> Result<Box<dyn Prepared>> {
        plain_logits(dense)?;
        let method = BlockRank::with_attention(gpu, Config::new(), dense.clone())?;
        let [q, k, v] = upload_inputs(gpu, DType::F32, inputs)?;
        let segments = method.segments(&segments(&inputs.shape)?)?;
        Ok(Box::new(PreparedPrompt { method, segments, q, k, v }))
    }

    fn reference(
        &self,
        inputs: &HostArrays,
        dense: &Dense,
        rows: &[usize],
        _chosen: Option<&SparsePlan>,
    ) -> attn_core::Result<Reference> {
        reference_on_plan(inputs, dense, rows, &plan(&inputs.view().check()?)?)
    }

    fn simple(
        &self,
        inputs: &HostInputs,
        dense: &Dense,
        rows: &[usize],
        _chosen: Option<&SparsePlan>,
    ) -> attn_core::Result<Option<Vec<Vec<f32>>>> {
        simple_on_plan(inputs, dense, rows, &plan(&inputs.shape)?)
    }

    fn flops(&self, shape: &AttentionShape, _dense: &Dense) -> f64 {
        let pairs = segments(shape).map_or(0, |segments| segments.pairs());
        2.0 * ((shape.dim_qk + shape.dim_v) * shape.heads) as f64 * pairs as f64
    }

    fn bytes(&self, shape: &AttentionShape, dense: &Dense) -> f64 {
        DenseAttention::F32.bytes(shape, dense)
    }
}

impl Prepared for PreparedPrompt {
    fn record(&self) -> Result<Vec<(&'static str, Tensor)>> {
        let inputs = Inputs::new(&self.q, &self.k, &self.v);
        Ok(vec![("out", self.method.forward(inputs, &self.segments)?.out)])
    }

    fn variant(&self) -> String {
        "attention_plan on ranges of 64 tokens".into()
    }
}
