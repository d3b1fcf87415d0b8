//! Statistics of groups that are softmaxes of their own, for the backward kernels, and gradients of gates.

use super::bounds::queries;
use super::gradients::Backward;
use super::params::Geometry;
use super::round::plan_kernel;
use super::transfer::near_weight;
use crate::attention::call::bind;
use crate::attention::jobs::Job;
use crate::attention::params::storage;
use crate::error::Result;
use crate::kernel::{Call as Dispatch, Constants, KernelSource};
use crate::ops;
use crate::tensor::Tensor;

pub(crate) const STATS: KernelSource = plan_kernel!("attention_plan_stats");

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct StatsParams {
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
    all_heads: u32,
    rows_stride: u32,
    stats_stride: u32,
    gates: u32,
    gate_heads: u32,
    near_weight: u32,
    near: u32,
    at_bases: u32,
    geometry: Geometry,
}

impl Backward<'_> {
    /// Statistics of the rows of all groups of a round.
    pub(super) fn group_stats(&self, job: &Job, gates: &Tensor) -> Result<()> {
        let (run, gpu) = (&self.forward, &self.attention.gpu);
        let plan = run.plan;
        let Some(listing) = &plan.listing else { return Ok(()) };
        let steps = run.steps(job);
        let bases: Vec<u32> = steps
            .each
            .iter()
            .map(|step| step.geometry.base.wrapping_sub(step.geometry.first_group))
            .collect();
        let at_bases = steps.words();
        let items = self.words.region(self.words.stat_items, at_bases + bases.len())?;
        ops::copy(
            &Tensor::from_slice(gpu, &bases, &[bases.len()])?,
            &items.narrow(0, at_bases, bases.len())?,
        )?;
        let parts = self.attention.forward_parts(run, job, &steps, &items)?;
        let near = run.passes.iter().position(|pass| pass.part.is_none());
        let geometry = match near.or(Some(0)).and_then(|number| steps.each.get(number)) {
            Some(step) => step.geometry,
            None => return Ok(()),
        };
        let rows = queries(plan, job);
        let d_out = bind(&job.window(&self.d_out, &job.heads, &rows)?, rows.start);
        let shape = &run.call.shape;
        let dim_v = run.call.v.shape()[3] / 4;
        let row_count = job.planes() * rows.len();
        let stats = self.words.region(self.words.stats, 2 * self.words.count)?;
        let params = StatsParams {
            dim_v: dim_v as u32,
            heads: job.heads.len() as u32,
            first_query: rows.start as u32,
            row_queries: rows.len() as u32,
            row_count: row_count as u32,
            first_batch: job.batch.start as u32,
            first_head: job.heads.start as u32,
            queries: shape.queries as u32,
            keys: shape.keys as u32,
            out: d_out.place,
            all_heads: shape.heads as u32,
            rows_stride: (self.rows.len() / 2) as u32,
            stats_stride: self.words.count as u32,
            gates: gates.shape()[1] as u32,
            gate_heads: gates.shape()[0] as u32,
            near_weight: near_weight(&plan.combine).to_bits(),
            near: u32::from(near.is_some()),
            at_bases: at_bases as u32,
            geometry,
        };
        let workgroup = ops::workgroup(gpu.capabilities());
        let constants = storage(Constants::new().int("WORKGROUP", workgroup), run.call.dtype());
        let d_gates =
            if gates.is_empty() { self.attention.dense.unused()? } else { gates.binding().0 };
        let dispatch = Dispatch {
            bindings: &[
                parts.binding().0,
                items.binding().0,
                d_out.binding,
                listing.binding().0,
                self.rows.binding().0,
                stats.binding().0,
                d_gates,
            ],
            params: bytemuck::bytes_of(&params),
            groups: (row_count as u64).div_ceil(workgroup.into()),
            work: (8 * row_count * dim_v) as f64,
        };
        gpu.kernel(&STATS, constants)?.dispatch(gpu, &dispatch)
    }
}
