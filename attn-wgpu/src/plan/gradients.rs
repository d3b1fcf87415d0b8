//! The rounds of a backward pass.

use super::bounds::{grid, queries};
use super::executor::{Need, PlanAttention, Run};
use super::params::Geometry;
use super::round::{Steps, Sweep, Target, plan_kernel};
use super::transfer::near_weight;
use crate::attention::backward::{WORK_KV, WORK_Q};
use crate::attention::call::{Bounds, bind, vec4};
use crate::attention::jobs::{Grid, Job, bytes};
use crate::attention::mask_table::Side;
use crate::attention::params::{Common, storage};
use crate::attention::{Cotangents, Saved};
use crate::error::Result;
use crate::guard::lock;
use crate::kernel::{Call as Dispatch, Constants, KernelSource};
use crate::ops;
use crate::select::{counting_sort, each_constants};
use crate::tensor::{DType, Tensor};

pub(crate) const QUERIES: KernelSource = plan_kernel!("attention_plan_q");
pub(crate) const KEYS: KernelSource = plan_kernel!("attention_plan_kv");
pub(crate) const PLACES: KernelSource = plan_kernel!("plan_places");
pub(crate) const SUMS: KernelSource = plan_kernel!("attention_plan_keys");
pub(crate) const STATS: KernelSource = plan_kernel!("attention_plan_stats");

/// Regions of the words begin at multiples of this many, so that kernels may bind them apart; the listing
/// of items at the first behind the modifier's, as plan_stats.wgsl says.
const ALIGN: usize = 64;

/// Indices of one invocation of the kernels that own single elements.
const ITEMS: u32 = 8;

/// Parameters of the kernels that compute gradients: plan_grad_fields.wgsl.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct GradFields {
    grad_scale: f32,
    heads: u32,
    stats_stride: u32,
    at_stat_items: u32,
    stat_tile: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct GradParams {
    common: Common,
    geometry: Geometry,
    grads: GradFields,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct PlaceParams {
    count: u32,
    queries: u32,
    keys: u32,
    first_batch: u32,
    first_kv: u32,
    heads_kv: u32,
    geometry: Geometry,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct SumParams {
    count: u32,
    width: u32,
    start: u32,
}

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

/// One backward pass.
pub(super) struct Backward<'a> {
    attention: &'a PlanAttention,
    /// Passes over the items: forward, by queries, by keys.
    forward: Run<'a>,
    queries: Run<'a>,
    keys: Run<'a>,
    d_out: Tensor,
    /// Statistics of queries: log-sum-exp and delta, `[2, batch, heads, queries]`.
    rows: Tensor,
    jobs: Vec<Job>,
    words: Words,
}

/// What the kernels read besides tensors and plan: the modifier's parameters; the listing of items; the
/// listing that statistics are numbered by; statistics.
struct Words {
    all: Tensor,
    items: usize,
    stat_items: usize,
    stats: usize,
    /// Log-sum-exps, and as many deltas.
    count: usize,
}

impl Words {
    fn region(&self, start: usize, length: usize) -> Result<Tensor> {
        self.all.narrow(0, start, length)
    }
}

impl<'a> Backward<'a> {
    pub(super) fn new(
        attention: &'a PlanAttention,
        [forward, queries, keys]: [Run<'a>; 3],
        saved: &Saved,
        cotangents: Cotangents<'_>,
    ) -> Result<Backward<'a>> {
        let (call, plan) = (keys.call, keys.plan);
        let gpu = &attention.gpu;
        let shape = &call.shape;
        for run in [&forward, &queries] {
            attention.check_steps(run)?;
        }
        let d_out = vec4(cotangents.out, false)?;
        let jobs = jobs(attention, &forward, &queries, &keys, &d_out)?;

        let weighted = plan.is_weighted();
        let of_rows = shape.batch * shape.heads * shape.queries;
        let (mut listing, mut slots) = (0, 0);
        for job in &jobs {
            let steps = forward.steps(job);
            // The parts' numbers come behind the listing.
            listing = listing.max(steps.words() + plan.parts.len() + 1);
            slots = slots.max(steps.items() as usize * forward.tile);
        }
        let table = attention.dense.table(shape.lengths(), 1, Side::Queries)?;
        let items = table.words.len().next_multiple_of(ALIGN);
        let stat_items = items + listing.next_multiple_of(ALIGN);
        let stats = stat_items + if weighted { listing.next_multiple_of(ALIGN) } else { 0 };
        let count = if weighted { slots } else { of_rows };
        let all = Tensor::uninit(gpu, &[(stats + 2 * count).max(ALIGN)], DType::U32)?;
        ops::copy(&table.words, &all.narrow(0, 0, table.words.len())?)?;
        let words = Words { all, items, stat_items, stats, count };
        let rows = match weighted {
            true => Tensor::uninit(gpu, &[2 * of_rows], DType::F32)?,
            false => words.region(stats, 2 * count)?.reinterpret(DType::F32),
        };
        attention.dense.delta_into(call, saved, &d_out, cotangents.lse, &rows)?;
        Ok(Backward { attention, forward, queries, keys, d_out, rows, jobs, words })
    }

    /// Writes `dq`, and adds to `dkv` and to the gradients of gates.
    pub(super) fn run(&self, dq: &Tensor, dkv: &Tensor, gates: &Tensor) -> Result<()> {
        for job in &self.jobs {
            if self.keys.plan.is_weighted() {
                self.group_stats(job, gates)?;
            }
            self.query_round(job, dq)?;
            self.key_round(job, dkv)?;
        }
        Ok(())
    }

    /// Statistics of the rows of all groups of a round.
    fn group_stats(&self, job: &Job, gates: &Tensor) -> Result<()> {
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

    fn query_round(&self, job: &Job, dq: &Tensor) -> Result<()> {
        let run = &self.queries;
        let steps = run.steps(job);
        let items = self.words.region(self.words.items, steps.words())?;
        let width = run.call.q.shape()[3];
        let floats = steps.items() as usize * run.tile * width;
        let parts = Tensor::uninit(&self.attention.gpu, &[floats.max(4)], DType::F32)?;
        self.sweep(run, job, &steps, (&QUERIES, WORK_Q), (&items, &parts))?;
        let rows = queries(run.plan, job);
        let window = bind(&job.window(dq, &job.heads, &rows)?, rows.start);
        let target = Target { window, width: width / 4, lse: None };
        self.attention.merge(run, job, &steps, (&parts, &items), target)
    }

    fn key_round(&self, job: &Job, dkv: &Tensor) -> Result<()> {
        let run = &self.keys;
        let steps = run.steps(job);
        let items = self.words.region(self.words.items, steps.words())?;
        let width = dkv.shape()[3];
        let slots = steps.items() as usize * run.chunk;
        if slots == 0 {
            return Ok(());
        }
        let parts = Tensor::uninit(&self.attention.gpu, &[slots * width], DType::F32)?;
        self.sweep(run, job, &steps, (&KEYS, WORK_KV), (&items, &parts))?;
        self.add_keys(run, job, &steps, (&items, &parts), dkv)
    }

    /// Lists the items of a round and computes the partial result of each.
    fn sweep(
        &self,
        run: &Run<'_>,
        job: &Job,
        steps: &Steps,
        (source, work): (&KernelSource, f64),
        (items, parts): (&Tensor, &Tensor),
    ) -> Result<()> {
        let dense = &self.attention.dense;
        let args = lock(&self.attention.args);
        self.attention.list_items(run, steps, items, &args)?;
        let (bounds, common) = self.common(run, job)?;
        let rows = queries(run.plan, job);
        let d_out = bind(&job.window(&self.d_out, &job.heads, &rows)?, rows.start);
        let stats_start = self.words.stats as u32;
        let common = Common { out: d_out.place, stats_start, ..common };
        let form = dense.form(run.call.dtype()).constants(&run.variant);
        let sweep = Sweep {
            source,
            constants: form.flag("BACKWARD", true).flag("WEIGHTS", run.plan.is_weighted()),
            bindings: vec![
                bounds.q.binding,
                bounds.k.binding,
                bounds.v.binding,
                d_out.binding,
                parts.binding().0,
                self.words.all.binding().0,
                self.words.all.binding().0,
            ],
            plan: 5,
            per_pair: work * run.per_pair(),
        };
        let grads = GradFields {
            grad_scale: dense.config().scale_for(run.call.shape.dim_qk) as f32,
            heads: run.call.shape.heads as u32,
            stats_stride: self.words.count as u32,
            at_stat_items: self.words.stat_items as u32,
            stat_tile: self.forward.tile as u32,
        };
        self.attention.sweep(run, steps, &args, &sweep, |step| GradParams {
            common,
            geometry: step.geometry,
            grads,
        })
    }

    fn common(&self, run: &Run<'_>, job: &Job) -> Result<(Bounds, Common)> {
        let dense = &self.attention.dense;
        let bounds = run.call.bind(job, &queries(run.plan, job), &(0..run.plan.shape.keys))?;
        let table = dense.table(run.call.shape.lengths(), 1, Side::Queries)?;
        let common = Common { total: u32::MAX, ..dense.common(run.call, job, &table, &bounds) };
        Ok((bounds, common))
    }

    /// Adds what the groups of each key give, in their order, which the transposed plan says.
    fn add_keys(
        &self,
        run: &Run<'_>,
        job: &Job,
        steps: &Steps,
        (items, parts): (&Tensor, &Tensor),
        dkv: &Tensor,
    ) -> Result<()> {
        let gpu = &self.attention.gpu;
        let shape = &run.call.shape;
        let heads = job.heads_kv(shape.group());
        let places = Tensor::uninit(gpu, &[steps.items() as usize * run.chunk], DType::U32)?;
        ops::fill(&places, &u32::MAX.to_ne_bytes())?;
        for (pass, step) in run.passes.iter().zip(&steps.each) {
            let count = step.items as usize * steps.copies.len() * run.chunk;
            let params = PlaceParams {
                count: count as u32,
                queries: shape.queries as u32,
                keys: shape.keys as u32,
                first_batch: job.batch.start as u32,
                first_kv: heads.start as u32,
                heads_kv: heads.len() as u32,
                geometry: step.geometry,
            };
            let words = match pass.part {
                Some(part) => part.words.binding().0,
                None => self.attention.dense.unused()?,
            };
            let (constants, per_group) = each_constants(gpu.capabilities(), ITEMS);
            let dispatch = Dispatch {
                bindings: &[words, items.binding().0, places.binding().0],
                params: bytemuck::bytes_of(&params),
                groups: (count as u64).div_ceil(per_group),
                work: 16.0 * count as f64,
            };
            gpu.kernel(&PLACES, pass.constants(constants))?.dispatch(gpu, &dispatch)?;
        }
        let sorted = counting_sort(&places, job.batch.len() * heads.len() * shape.keys)?;
        let own =
            dkv.narrow(0, job.batch.start, job.batch.len())?.narrow(1, heads.start, heads.len())?;
        let (grads, start) = own.binding();
        let params = SumParams {
            count: (own.len() / 4) as u32,
            width: (dkv.shape()[3] / 4) as u32,
            start: (start / 4) as u32,
        };
        let (constants, per_group) = each_constants(gpu.capabilities(), ITEMS);
        let dispatch = Dispatch {
            bindings: &[
                parts.binding().0,
                sorted.offsets.binding().0,
                sorted.order.binding().0,
                grads,
            ],
            params: bytemuck::bytes_of(&params),
            groups: u64::from(params.count).div_ceil(per_group),
            work: parts.len() as f64,
        };
        gpu.kernel(&SUMS, constants)?.dispatch(gpu, &dispatch)
    }
}

/// Rounds of all three passes. A key's groups are added in the order of rounds, so that heads that share
/// a key head may only be split where rounds are in the order of groups: in plans of one pass.
fn jobs(
    attention: &PlanAttention,
    forward: &Run<'_>,
    by_query: &Run<'_>,
    by_key: &Run<'_>,
    d_out: &Tensor,
) -> Result<Vec<Job>> {
    let (call, plan) = (by_key.call, by_key.plan);
    let shape = &call.shape;
    let (width_qk, width_v) = (call.q.shape()[3], call.v.shape()[3]);
    let whole = grid(plan);
    let split_groups = whole.split_groups && by_key.passes.len() <= 1;
    let need = Need {
        item_bytes: (by_key.chunk * (width_qk + width_v) * 4) as u64,
        per_pair: WORK_KV * by_key.per_pair(),
    };
    attention.rounds(by_key, &Grid { split_groups, ..whole }, need, |job| {
        let rows = queries(plan, job);
        let d_out = bytes(&job.window(d_out, &job.heads, &rows)?);
        let heads_kv = job.heads_kv(shape.group()).len();
        let dkv = job.batch.len() * heads_kv * shape.keys * (width_qk + width_v) * 4;
        let stats = shape.batch * shape.heads * shape.queries * 8;
        let by_query = by_query.steps(job).items() * (by_query.tile * width_qk * 4) as u64;
        let mut windows = vec![
            ("d_out", d_out),
            ("dk and dv", dkv as u64),
            ("lse", stats as u64),
            ("partial results", by_query),
        ];
        if plan.is_weighted() {
            let items = forward.steps(job).items();
            windows.push(("partial results", items * forward.item_bytes()));
        }
        Ok(windows)
    })
}
