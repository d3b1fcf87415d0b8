//! The mechanism as benchmarks see it (feature `bench`).

use attn_core::dense::{self, Config as Dense};
use attn_core::plan::SparsePlan;
use attn_core::testing::{HostArrays, HostInputs};
use attn_core::{AttentionShape, Mask};
use attn_wgpu::attention::Inputs;
use attn_wgpu::bench::{
    DenseAttention, Mechanism, Prepared, Reference, Stage, plain_logits, reference_on_plan,
    simple_on_plan, upload_inputs,
};
use attn_wgpu::{DType, Gpu, Result, Tensor};

use crate::{Config, FlexPrefill, Selection, reference};

/// Causal prompts in blocks of 64 tokens: prompts of benchmarks are short for the paper's 128.
#[derive(Debug, Clone, Copy)]
pub struct Benchmark;

/// The paper's parameters, but for a block of 64 and lines of at least two blocks.
fn config(dense: &Dense) -> attn_core::Result<Config> {
    plain_logits(dense)?;
    let config = Config::new().with_block(64).with_budget(Some(128), None);
    Ok(match dense.scale {
        Some(scale) => config.with_scale(scale),
        None => config,
    })
}

fn choose(inputs: dense::Inputs<'_>, dense: &Dense) -> attn_core::Result<SparsePlan> {
    Ok(reference::select(inputs.q, inputs.k, &config(dense)?)?.plan)
}

struct PreparedPrompt {
    prefill: FlexPrefill,
    selection: Selection,
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Mechanism for Benchmark {
    fn name(&self) -> &'static str {
        "flexprefill"
    }

    fn is_for(&self, shape: &AttentionShape, config: &Dense) -> bool {
        let prompt = shape.queries == shape.keys && shape.queries > 1;
        prompt && shape.dim_qk == shape.dim_v && config.mask == Mask::Causal
    }

    fn prepare(&self, gpu: &Gpu, inputs: &HostInputs, dense: &Dense) -> Result<Box<dyn Prepared>> {
        let prefill = FlexPrefill::new(gpu, config(dense)?)?;
        let [q, k, v] = upload_inputs(gpu, DType::F32, inputs)?;
        let selection = prefill.select(&q, &k)?;
        Ok(Box::new(PreparedPrompt { prefill, selection, q, k, v }))
    }

    fn reference(
        &self,
        inputs: &HostArrays,
        dense: &Dense,
        rows: &[usize],
        chosen: Option<&SparsePlan>,
    ) -> attn_core::Result<Reference> {
        match chosen {
            Some(plan) => reference_on_plan(inputs, dense, rows, plan),
            None => reference_on_plan(inputs, dense, rows, &choose(inputs.view(), dense)?),
        }
    }

    fn simple(
        &self,
        inputs: &HostInputs,
        dense: &Dense,
        rows: &[usize],
        chosen: Option<&SparsePlan>,
    ) -> attn_core::Result<Option<Vec<Vec<f32>>>> {
        chosen.map_or(Ok(None), |plan| simple_on_plan(inputs, dense, rows, plan))
    }

    fn choice(&self, inputs: &HostArrays, dense: &Dense) -> attn_core::Result<Option<SparsePlan>> {
        choose(inputs.view(), dense).map(Some)
    }

    fn flops(&self, shape: &AttentionShape, dense: &Dense) -> f64 {
        shape.flops(&dense.mask)
    }

    fn bytes(&self, shape: &AttentionShape, dense: &Dense) -> f64 {
        DenseAttention::F32.bytes(shape, dense)
    }
}

impl PreparedPrompt {
    fn inputs(&self) -> Inputs<'_> {
        Inputs::new(&self.q, &self.k, &self.v)
    }
}

impl Prepared for PreparedPrompt {
    fn record(&self) -> Result<Vec<(&'static str, Tensor)>> {
        Ok(vec![("out", self.prefill.forward(self.inputs())?.out)])
    }

    fn variant(&self) -> String {
        "attention_plan on bits of 64 keys".into()
    }

    fn chosen(&self) -> Result<Option<SparsePlan>> {
        self.selection.plan.download().map(Some)
    }

    fn stage(&self, stage: Stage) -> Result<bool> {
        match stage {
            Stage::Select => self.prefill.select(&self.q, &self.k).map(drop)?,
            Stage::Attend => self.prefill.attend(self.inputs(), &self.selection).map(drop)?,
        }
        Ok(true)
    }
}
