//! Attention over sparse plans.

use std::sync::Arc;

use attn_core::Error as CoreError;
use attn_core::dense::Config;
use attn_core::plan::SparsePlan;
use attn_wgpu::attention::{Cotangents, Inputs};
use attn_wgpu::plan::{self, DevicePlan, Saved, Targets};
use attn_wgpu::{Gpu, Result, Tensor};

use super::{OnGpu, attention_outputs};
use crate::apply::{self, apply};
use crate::operation::{Backward, Operation, Spec};

/// Attention over the keys that a plan gives each query, see [`attn_wgpu::plan::PlanAttention`]. Cheap to
/// clone.
#[derive(Debug, Clone)]
pub struct PlanAttention {
    config: Arc<Config>,
    made: Arc<OnGpu<plan::PlanAttention>>,
}

/// A plan for [`PlanAttention`], on the host or on a device. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Plan(Arc<Source>);

#[derive(Debug)]
enum Source {
    Host(SparsePlan, OnGpu<DevicePlan>),
    Device(DevicePlan),
}

impl From<SparsePlan> for Plan {
    /// Uploaded when it is first used on a device.
    fn from(plan: SparsePlan) -> Self {
        Plan(Arc::new(Source::Host(plan, OnGpu::default())))
    }
}

impl From<DevicePlan> for Plan {
    fn from(plan: DevicePlan) -> Self {
        Plan(Arc::new(Source::Device(plan)))
    }
}

impl Plan {
    fn on(&self, gpu: &Gpu) -> Result<DevicePlan> {
        match &*self.0 {
            Source::Host(plan, made) => made.get(gpu, || DevicePlan::upload(gpu, plan)),
            Source::Device(plan) => Ok(plan.clone()),
        }
    }

    /// Batch, heads, key heads, queries and keys.
    fn extents(&self) -> [usize; 5] {
        let shape = match &*self.0 {
            Source::Host(plan, _) => &plan.shape,
            Source::Device(plan) => plan.shape(),
        };
        [shape.batch, shape.heads, shape.heads_kv, shape.queries, shape.keys]
    }
}

impl PlanAttention {
    /// Attention by `config`, whose mask says whether plans are causal.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] if the configuration is not usable.
    pub fn new(config: Config) -> Result<Self> {
        config.validate()?;
        Ok(PlanAttention { config: Arc::new(config), made: Arc::default() })
    }

    /// The output `[batch, heads, queries, dim_v]` for queries, keys and values as
    /// [`Attention::forward`](super::Attention::forward) takes them.
    ///
    /// Plans get no gradient, their gates included.
    ///
    /// # Errors
    /// Those of arguments that do not fit, and of [`apply()`].
    pub fn forward(
        &self,
        q: burn::tensor::Tensor<4>,
        k: burn::tensor::Tensor<4>,
        v: burn::tensor::Tensor<4>,
        plan: &Plan,
    ) -> Result<burn::tensor::Tensor<4>> {
        let gpu = crate::gpu(&q.device())?;
        let attention =
            self.made.get(&gpu, || plan::PlanAttention::new(&gpu, (*self.config).clone()))?;
        let op = OnPlan { attention, extents: plan.extents(), plan: plan.on(&gpu)? };
        apply(op, apply::Inputs::new().float(q).float(k).float(v))?.float()
    }
}

/// Inputs are queries, keys and values.
#[derive(Debug)]
struct OnPlan {
    attention: plan::PlanAttention,
    plan: DevicePlan,
    extents: [usize; 5],
}

fn tensors(inputs: &[Tensor]) -> Inputs<'_> {
    Inputs::new(&inputs[0], &inputs[1], &inputs[2])
}

impl Operation for OnPlan {
    type Saved = ();

    fn name(&self) -> &'static str {
        "attention over a plan"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        let (shape, outputs) = attention_outputs(&inputs[0], &inputs[1], &inputs[2])?;
        let got = [shape.batch, shape.heads, shape.heads_kv, shape.queries, shape.keys];
        if got != self.extents {
            let expected =
                format!("{:?} (batch, heads, heads_kv, queries, keys) as the plan", self.extents);
            return Err(CoreError::shape("q, k, v", expected, &got).into());
        }
        Ok(outputs.into())
    }

    fn forward(&self, _: &Gpu, inputs: &[Tensor], outputs: &[Tensor]) -> Result<()> {
        let (out, lse) = (&outputs[0], Some(&outputs[1]));
        self.attention.forward_into(tensors(inputs), &self.plan, out, lse)
    }

    fn backward(&self, _: &Gpu, pass: Backward<'_, ()>) -> Result<()> {
        let [out, lse] = [&pass.outputs[0], &pass.outputs[1]];
        let saved = Saved::new(tensors(pass.inputs), &self.plan, out, lse);
        let cotangents = Cotangents { out: &pass.cotangents[0], lse: None };
        let [dq, dk, dv] = [0, 1, 2].map(|input| pass.gradient(input));
        let targets = Targets { dq, dk, dv, ..Targets::default() };
        self.attention.backward_into(&saved, cotangents, targets)
    }
}
