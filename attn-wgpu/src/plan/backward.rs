//! Vector-Jacobian product of attention over a plan, from the saved log-sum-exp.
//!
//! With `delta_i = d_out_i . out_i - d_lse_i`, `p_it` recomputed from `lse_i`, and where groups are
//! softmaxes of their own those of each group, weighted by its share:
//!
//! ```text
//! ds_it = p_it (d_out_i . v_t - delta_i) * (derivative of soft-cap and modifier)
//! dq_i  = scale sum_t ds_it k_t      dk_t = scale sum_i ds_it q_i      dv_t = sum_i p_it d_out_i
//! ```
//!
//! The queries' gradients go through the same items of work as the forward pass. Those of keys and values
//! go through the groups with roles changed: an item is some keys of one group's list, which the
//! group's queries stream past. The transposed plan then says for each key where the results of its
//! groups are, and they are added in the order of groups.

use attn_core::AttentionShape;
use attn_core::plan::Combine;

use super::device::DevicePlan;
use super::executor::{PlanAttention, Run};
use super::gradients::Backward;
use super::params::{Pass, chunk, pack};
use crate::attention::variant::Variant;
use crate::attention::{Cotangents, Inputs, Output, Saved as DenseSaved};
use crate::error::{Error, Result};
use crate::ops;
use crate::tensor::{DType, Tensor};

/// What the backward pass needs of the forward pass. Holds handles, not copies.
#[derive(Debug, Clone)]
pub struct Saved {
    pub(super) dense: DenseSaved,
    pub(super) plan: DevicePlan,
}

impl Saved {
    /// From the inputs of a forward pass, its plan and its results.
    pub fn new(inputs: Inputs<'_>, plan: &DevicePlan, out: &Tensor, lse: &Tensor) -> Self {
        Saved { dense: DenseSaved::new(inputs, out, lse), plan: plan.clone() }
    }
}

/// Gradients, of the inputs' type; those that a call returns are views whose last dimension is
/// contiguous. Sets of keys and biases of entries have none.
#[derive(Debug, Clone)]
pub struct Grads {
    /// By the queries, `[batch, heads, queries, dim_qk]`.
    pub dq: Tensor,
    /// By the keys, `[batch, heads_kv, keys, dim_qk]`.
    pub dk: Tensor,
    /// By the values, `[batch, heads_kv, keys, dim_v]`.
    pub dv: Tensor,
    /// By the gates of each part, as in [`Combine::Gate`], f32; empty under any other combination.
    pub d_gates: Vec<Option<Tensor>>,
}

/// Where [`PlanAttention::backward_into`] writes gradients, of the shapes and types of [`Grads`]; what has no
/// target is not computed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Targets<'a> {
    /// By the queries.
    pub dq: Option<&'a Tensor>,
    /// By the keys.
    pub dk: Option<&'a Tensor>,
    /// By the values.
    pub dv: Option<&'a Tensor>,
    /// By the gates of each part.
    pub d_gates: &'a [Option<&'a Tensor>],
}

impl PlanAttention {
    /// [`PlanAttention::forward`], and what [`PlanAttention::backward`] needs of it.
    ///
    /// # Errors
    /// As [`PlanAttention::forward`].
    pub fn forward_saved(&self, inputs: Inputs<'_>, plan: &DevicePlan) -> Result<(Output, Saved)> {
        let output = self.forward(inputs, plan)?;
        let saved = Saved::new(inputs, plan, &output.out, &output.lse);
        Ok((output, saved))
    }

    /// Records the gradients by queries, keys, values and gates, from what
    /// [`PlanAttention::forward_saved`] saved.
    ///
    /// Deterministic: no sum depends on the order in which workgroups run. Memory beyond the gradients
    /// is that of the keys and values of one more gradient in f32, and up to 64 MiB of partial results
    /// at once; more only for plans of several parts or of listed rows.
    ///
    /// # Errors
    /// As [`PlanAttention::forward`]; [`crate::Error::NotDifferentiable`] if the modifier changes scores
    /// and has no derivative.
    pub fn backward(&self, saved: &Saved, cotangents: Cotangents<'_>) -> Result<Grads> {
        let (dense, plan) = (&saved.dense, &self.masked(&saved.plan)?);
        let shape = self.check_backward(dense, plan, cotangents)?;
        let [dq, dk, dv] = self.dense.new_targets(dense, &shape)?;
        let dkv = Some([&dk.written, &dv.written]);
        let d_gates = self.gradients((dense, plan, shape), cotangents, Some(&dq.written), dkv)?;
        Ok(Grads { dq: dq.view, dk: dk.view, dv: dv.view, d_gates })
    }

    /// [`PlanAttention::backward`] into callers' tensors of the shapes and types of [`Grads`]. They are
    /// written directly where they are contiguous, of whole groups of four elements, and begin at one, and
    /// those of keys and values f32; else a copy or conversion on the device follows. They must not overlap
    /// each other.
    ///
    /// # Errors
    /// As [`PlanAttention::backward`], and [`attn_core::Error`] for targets of another shape or type.
    pub fn backward_into(
        &self,
        saved: &Saved,
        cotangents: Cotangents<'_>,
        targets: Targets<'_>,
    ) -> Result<()> {
        let (dense, plan) = (&saved.dense, &self.masked(&saved.plan)?);
        let shape = self.check_backward(dense, plan, cotangents)?;
        let rows = [targets.dq, targets.dk, targets.dv];
        let wanted = self.dense.wanted(dense, cotangents, &shape, rows)?;
        let (dq, dkv) = (wanted.dq(), wanted.dkv());
        let d_gates = self.gradients((dense, plan, shape), cotangents, dq, dkv)?;
        wanted.finish()?;
        for (own, target) in d_gates.iter().zip(targets.d_gates) {
            if let (Some(own), Some(target)) = (own, target) {
                ops::copy(own, target)?;
            }
        }
        Ok(())
    }

    fn check_backward(
        &self,
        dense: &DenseSaved,
        plan: &DevicePlan,
        cotangents: Cotangents<'_>,
    ) -> Result<AttentionShape> {
        let shape = self.check(dense.inputs(), plan)?;
        self.dense.check_cotangents(dense, cotangents, &shape)?;
        Ok(shape)
    }

    /// Writes rows of whole groups of four elements, and returns the gradients of gates.
    fn gradients(
        &self,
        (dense, plan, shape): (&DenseSaved, &DevicePlan, AttentionShape),
        cotangents: Cotangents<'_>,
        dq: Option<&Tensor>,
        dkv: Option<[&Tensor; 2]>,
    ) -> Result<Vec<Option<Tensor>>> {
        let dtype = dense.inputs().q.dtype();
        // Rounds add to the gradients of keys and values, in f32.
        let sums = |target: &Tensor| match dtype {
            DType::F32 => ops::fill(target, &[0; 4]).map(|()| target.clone()),
            _ => Tensor::zeros(&self.gpu, target.shape(), DType::F32),
        };
        let sums = dkv.map(|[dk, dv]| Ok::<_, Error>([sums(dk)?, sums(dv)?])).transpose()?;
        let gates = Gates::new(self, plan)?;
        if shape.batch * shape.heads * shape.queries * shape.keys > 0 {
            let call = self.dense.prepare(dense.inputs(), shape)?;
            let runs = self.runs(&call, plan);
            let sums = sums.as_ref().map(|sums| sums.each_ref());
            Backward::new(self, runs, dense, cotangents)?.run(dq, sums, &gates.words)?;
        } else if let Some(dq) = dq {
            ops::copy(&Tensor::zeros(&self.gpu, dq.shape(), dtype)?, dq)?;
        }
        for (target, sum) in dkv.into_iter().flatten().zip(sums.iter().flatten()) {
            if dtype != DType::F32 {
                ops::convert_into(sum, target)?;
            }
        }
        gates.finish()
    }

    /// Passes over the items of work: forward, by queries, by keys.
    fn runs<'a>(
        &self,
        call: &'a crate::attention::call::Call,
        plan: &'a DevicePlan,
    ) -> [Run<'a>; 3] {
        let shape = &call.shape;
        let passes = Pass::of(plan);
        let chunk = self.chunk.unwrap_or_else(|| chunk(shape.keys));
        let capabilities = self.gpu.capabilities();
        let most =
            |of: &dyn Fn(&Pass<'_>) -> usize| passes.iter().map(of).max().unwrap_or(1).max(1);
        let rows = most(&|pass| pass.most_queries(plan)) * pack(plan);
        let visited = most(&|pass| pass.most_keys(plan));
        let variant = |rows| Variant::plan_backward(shape.dim_qk, shape.dim_v, rows, capabilities);
        let (forward, split) = Variant::plan(shape.dim_qk, shape.dim_v, rows, capabilities);
        let forward_tile = if split { forward.rows as usize } else { forward.tile() };
        let run = |variant, split, tile, chunk| Run {
            call,
            plan,
            passes: passes.clone(),
            variant,
            split,
            tile,
            chunk,
        };
        let (queries, keys) = (variant(rows), variant(visited));
        [
            run(forward, split, forward_tile, chunk),
            run(queries, false, queries.tile(), chunk),
            // All rows of a group are one tile.
            run(keys, false, ONE_TILE, keys.tile()),
        ]
    }
}

/// More rows than a group has, in a number of which a few can be added.
const ONE_TILE: usize = 1 << 29;

/// The gradients of gates while they are computed: one for every head that shares a gate.
struct Gates {
    /// `[heads, gates]`, or one word.
    words: Tensor,
    /// Numbers of each part, where it has gates.
    parts: Vec<Option<usize>>,
}

impl Gates {
    fn new(attention: &PlanAttention, plan: &DevicePlan) -> Result<Gates> {
        let parts: Vec<Option<usize>> = match &plan.combine {
            Combine::Gate(gates) => {
                gates.iter().map(|gates| gates.as_ref().map(Vec::len)).collect()
            }
            _ => Vec::new(),
        };
        let total: usize = parts.iter().flatten().sum();
        let heads = plan.shape.heads / plan.settings().plan_heads().max(1);
        let words = Tensor::zeros(&attention.gpu, &[heads, total], DType::F32)?;
        Ok(Gates { words, parts })
    }

    /// Sums over the heads, in order.
    fn finish(self) -> Result<Vec<Option<Tensor>>> {
        let &[heads, total] = self.words.shape() else { return Ok(Vec::new()) };
        let mut sum = self.words.narrow(0, 0, heads.min(1))?.reshape(&[heads.min(1) * total])?;
        if total > 0 {
            for head in 1..heads {
                sum = ops::add(&sum, &self.words.narrow(0, head, 1)?.reshape(&[total])?)?;
            }
        }
        let mut start = 0;
        let mut part = |length: usize| {
            let own = sum.narrow(0, start, length);
            start += length;
            own
        };
        self.parts.iter().map(|length| length.map(&mut part).transpose()).collect()
    }
}
