//! Merging the partial results of a round into rows.

use std::ops::Range;

use super::bounds::queries;
use super::executor::{PlanAttention, Run};
use super::params::{Geometry, Pass};
use super::round::{Step, Steps, plan_kernel};
use super::transfer::near_weight;
use crate::attention::call::Bound as Window;
use crate::attention::jobs::Job;
use crate::attention::params::storage;
use crate::error::Result;
use crate::kernel::{Call as Dispatch, Constants, KernelSource};
use crate::ops;
use crate::tensor::Tensor;

pub(crate) const MERGE: KernelSource = plan_kernel!("attention_plan_merge");

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct MergeParams {
    dim_v: u32,
    heads: u32,
    first_query: u32,
    row_queries: u32,
    row_count: u32,
    first_batch: u32,
    first_head: u32,
    queries: u32,
    keys: u32,
    out: [u32; 4],
    lse: [u32; 3],
    near_weight: u32,
    geometry: Geometry,
}

/// Where the merged rows of a round go: the window, vec4s of a row, and log-sum-exps unless the partial
/// results are sums.
pub(super) struct Target<'a> {
    pub(super) window: Window,
    pub(super) width: usize,
    pub(super) lse: Option<&'a Tensor>,
}

impl PlanAttention {
    /// Merges partial results into rows, or adds them up.
    pub(super) fn merge(
        &self,
        run: &Run<'_>,
        job: &Job,
        Steps { each: steps, .. }: &Steps,
        (parts, items): (&Tensor, &Tensor),
        target: Target<'_>,
    ) -> Result<()> {
        let plan = run.plan;
        let workgroup = ops::workgroup(self.gpu.capabilities());
        let listed = plan.listing.is_some();
        // What is found without the listing: the only part, or the near part where it stands alone.
        let tiled = run.passes.iter().position(|pass| !listed || pass.part.is_none());
        let constants = storage(Constants::new().int("WORKGROUP", workgroup), run.call.dtype())
            .flag("LISTING", listed)
            .flag("TILED", tiled.is_some())
            .flag("SUMS", target.lse.is_none())
            .flag("WEIGHTS", target.lse.is_some() && run.plan.is_weighted());
        let kernel = self.gpu.kernel(&MERGE, constants)?;
        let number = |step: &Step| step.geometry.base.wrapping_sub(step.geometry.first_group);
        let (listing, part_base) = match &plan.listing {
            Some(listing) => {
                let mut bases: Vec<u32> = steps.iter().map(number).collect();
                bases.push(0);
                (
                    listing.binding().0,
                    Tensor::from_slice(&self.gpu, &bases, &[bases.len()])?.binding().0,
                )
            }
            None => (self.dense.unused()?, self.dense.unused()?),
        };
        let geometry = match tiled.and_then(|tiled| steps.get(tiled)) {
            Some(step) => step.geometry,
            None => match steps.first() {
                Some(step) => step.geometry,
                None => Geometry {
                    tile: run.tile as u32,
                    ..Pass { part: None, near: false }.geometry(plan)
                },
            },
        };
        let rows: Range<usize> = queries(plan, job);
        let [_, heads, queries] = run.call.shape.lse();
        let (lse, lse_start) = match target.lse {
            Some(lse) => lse.binding(),
            None => (self.dense.unused()?, 0),
        };
        let row_count = job.planes() * rows.len();
        let dim_v = target.width;
        let params = MergeParams {
            dim_v: dim_v as u32,
            heads: job.heads.len() as u32,
            first_query: rows.start as u32,
            row_queries: rows.len() as u32,
            row_count: row_count as u32,
            first_batch: job.batch.start as u32,
            first_head: job.heads.start as u32,
            queries: queries as u32,
            keys: plan.shape.keys as u32,
            out: target.window.place,
            lse: [
                (lse_start + (job.batch.start * heads + job.heads.start) * queries) as u32,
                (heads * queries) as u32,
                queries as u32,
            ],
            near_weight: near_weight(&plan.combine).to_bits(),
            geometry,
        };
        let dispatch = Dispatch {
            bindings: &[
                parts.binding().0,
                items.binding().0,
                target.window.binding,
                lse,
                listing,
                part_base,
            ],
            params: bytemuck::bytes_of(&params),
            groups: ((row_count * dim_v) as u64).div_ceil(workgroup.into()),
            work: (8 * row_count * dim_v) as f64,
        };
        kernel.dispatch(&self.gpu, &dispatch)
    }
}
