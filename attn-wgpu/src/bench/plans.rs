//! The executor of sparse plans alone, on random plans: what a selector of any paper can count on.

use attn_core::dense::Config;
use attn_core::plan::{self, Entries, Part, PlanShape, Rows, Share, SparsePlan};
use attn_core::testing::{Budget, HostArrays, HostInputs, bits, simple_plan_f32};
use attn_core::{AttentionShape, Mask};

use super::{Mechanism, Prepared, Reference, Stage, upload_inputs};
use crate::attention::Inputs;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::plan::{DevicePlan, PlanAttention};
use crate::tensor::{DType, Tensor};

/// The f64 reference of attention on a plan, for mechanisms that are nothing more.
///
/// # Errors
/// As [`plan::forward_rows`].
pub fn reference_on_plan(
    inputs: &HostArrays,
    config: &Config,
    rows: &[usize],
    plan: &SparsePlan,
) -> attn_core::Result<Reference> {
    let output = plan::forward_rows(inputs.view(), plan, config, rows)?;
    Ok(Reference { logits: Budget::for_output(&output).logits, results: vec![output.out] })
}

/// The same in f32, unless only some `rows` are wanted: it knows no others than all.
///
/// # Errors
/// As [`simple_plan_f32`].
pub fn simple_on_plan(
    inputs: &HostInputs,
    config: &Config,
    rows: &[usize],
    plan: &SparsePlan,
) -> attn_core::Result<Option<Vec<Vec<f32>>>> {
    match rows.len() == inputs.shape.queries {
        true => Ok(Some(vec![simple_plan_f32(inputs, plan, config)?.out])),
        false => Ok(None),
    }
}

/// Causal attention to a random quarter of all keys.
#[derive(Debug, Clone, Copy)]
pub struct RandomPlan {
    name: &'static str,
    bq: u32,
    bk: u32,
}

impl RandomPlan {
    /// Blocks of 32 keys for every 64 queries.
    pub const BLOCKS: RandomPlan = RandomPlan { name: "plan-blocks-32", bq: 64, bk: 32 };
    /// Single keys for every 64 queries.
    pub const TOKENS: RandomPlan = RandomPlan { name: "plan-tokens", bq: 64, bk: 1 };

    /// Below, launching counts.
    const KEYS: usize = 4096;
    /// Percent of the blocks.
    const SHARE: u64 = 25;

    fn plan(&self, shape: &AttentionShape) -> SparsePlan {
        let (shape, RandomPlan { bq, bk, .. }) = (PlanShape::from(shape), *self);
        let tiles = shape.queries.div_ceil(bq as usize);
        let (mut row_ptr, mut col) = (vec![0u32], Vec::new());
        for group in 0..shape.batch * shape.heads * tiles {
            let last = (group % tiles + 1) * bq as usize;
            let last = (last.min(shape.queries) as i64 - 1 + shape.q_off).max(-1) + 1;
            let own = (last as u32).div_ceil(bk);
            let is_on = |block: u32| {
                block + 1 == own || bits(5, group as u64, block.into()) % 100 < Self::SHARE
            };
            col.extend((0..own).filter(|&block| is_on(block)));
            row_ptr.push(col.len() as u32);
        }
        let entries = match bk {
            1 => Entries::Tokens { row_ptr, k_idx: col },
            _ => Entries::Blocks { bk, origin: 0, row_ptr, col },
        };
        SparsePlan::new(shape, Share::PerHead, true, vec![Part::new(Rows::Tiled { bq }, entries)])
    }
}

struct PreparedPlan {
    attention: PlanAttention,
    plan: DevicePlan,
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Mechanism for RandomPlan {
    fn name(&self) -> &'static str {
        self.name
    }

    fn is_for(&self, shape: &AttentionShape, config: &Config) -> bool {
        shape.queries >= Self::KEYS && config.mask == Mask::Causal
    }

    fn prepare(
        &self,
        gpu: &Gpu,
        inputs: &HostInputs,
        config: &Config,
    ) -> Result<Box<dyn Prepared>> {
        let attention = PlanAttention::new(gpu, config.clone())?;
        let plan = DevicePlan::upload(gpu, &self.plan(&inputs.shape))?;
        let [q, k, v] = upload_inputs(gpu, DType::F32, inputs)?;
        Ok(Box::new(PreparedPlan { attention, plan, q, k, v }))
    }

    fn reference(
        &self,
        inputs: &HostArrays,
        config: &Config,
        rows: &[usize],
        chosen: Option<&SparsePlan>,
    ) -> attn_core::Result<Reference> {
        match chosen {
            Some(plan) => reference_on_plan(inputs, config, rows, plan),
            None => reference_on_plan(inputs, config, rows, &self.plan(&inputs.view().check()?)),
        }
    }

    fn choice(&self, inputs: &HostArrays, _: &Config) -> attn_core::Result<Option<SparsePlan>> {
        Ok(Some(self.plan(&inputs.view().check()?)))
    }

    fn simple(
        &self,
        inputs: &HostInputs,
        config: &Config,
        rows: &[usize],
        chosen: Option<&SparsePlan>,
    ) -> attn_core::Result<Option<Vec<Vec<f32>>>> {
        chosen.map_or(Ok(None), |plan| simple_on_plan(inputs, config, rows, plan))
    }

    fn flops(&self, shape: &AttentionShape, config: &Config) -> f64 {
        shape.flops(&config.mask)
    }

    fn bytes(&self, shape: &AttentionShape, config: &Config) -> f64 {
        super::DenseAttention::F32.bytes(shape, config)
    }
}

impl Prepared for PreparedPlan {
    fn record(&self) -> Result<Vec<(&'static str, Tensor)>> {
        let inputs = Inputs::new(&self.q, &self.k, &self.v);
        Ok(vec![("out", self.attention.forward(inputs, &self.plan)?.out)])
    }

    fn variant(&self) -> String {
        "attention_plan".into()
    }

    fn chosen(&self) -> Result<Option<SparsePlan>> {
        self.plan.download().map(Some)
    }

    fn stage(&self, stage: Stage) -> Result<bool> {
        let attends = stage == Stage::Attend;
        if attends {
            self.record()?;
        }
        Ok(attends)
    }
}
