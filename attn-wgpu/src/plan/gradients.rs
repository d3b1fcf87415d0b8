//! The rounds of a backward pass.

use super::bounds::{grid, queries};
use super::device::{DeviceEntries, DevicePart};
use super::executor::{Need, PlanAttention, Run};
use super::merge::Target;
use super::params::{Geometry, Pass, pack};
use super::round::{Steps, Sweep, plan_kernel};
use crate::attention::backward::{WORK_KV, WORK_Q};
use crate::attention::call::{Bounds, bind, vec4};
use crate::attention::jobs::{Grid, Job, bytes};
use crate::attention::mask_table::Side;
use crate::attention::params::Common;
use crate::attention::{Cotangents, Saved};
use crate::error::Result;
use crate::guard::lock;
use crate::kernel::{Call as Dispatch, KernelSource};
use crate::ops;
use crate::select::{counting_sort, each_constants};
use crate::tensor::{DType, Tensor};

pub(crate) const QUERIES: KernelSource = plan_kernel!("attention_plan_q");
pub(crate) const KEYS: KernelSource = plan_kernel!("attention_plan_kv");
pub(crate) const PLACES: KernelSource = plan_kernel!("plan_places");
pub(crate) const SUMS: KernelSource = plan_kernel!("attention_plan_keys");

/// Regions of the words begin at multiples of this many, so that kernels may bind them apart; the listing
/// of items at the first behind the modifier's, as plan_stats.wgsl says.
const ALIGN: usize = 64;

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

/// One backward pass.
pub(super) struct Backward<'a> {
    pub(super) attention: &'a PlanAttention,
    /// Passes over the items: forward, by queries, by keys.
    pub(super) forward: Run<'a>,
    queries: Run<'a>,
    keys: Run<'a>,
    pub(super) d_out: Tensor,
    /// Statistics of queries: log-sum-exp and delta, `[2, batch, heads, queries]`.
    pub(super) rows: Tensor,
    jobs: Vec<Job>,
    pub(super) words: Words,
}

/// What the kernels read besides tensors and plan: the modifier's parameters; the listing of items; the
/// listing that statistics are numbered by; statistics.
pub(super) struct Words {
    all: Tensor,
    items: usize,
    pub(super) stat_items: usize,
    pub(super) stats: usize,
    /// Log-sum-exps, and as many deltas.
    pub(super) count: usize,
}

impl Words {
    pub(super) fn region(&self, start: usize, length: usize) -> Result<Tensor> {
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
        check_key_steps(attention, &keys)?;
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
            in_order: source.name == KEYS.name,
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
            // Finding a key may take many steps.
            let (constants, per_group) = each_constants(gpu.capabilities(), 1);
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
        let (constants, per_group) = each_constants(gpu.capabilities(), 1);
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

/// Refuses loops that are too long for this device: over what comes before a key in a group, three times,
/// and over the group's rows; and over the places of a key.
fn check_key_steps(attention: &PlanAttention, run: &Run<'_>) -> Result<()> {
    let plan = run.plan;
    let rows = run.passes.iter().map(|pass| pass.most_queries(plan)).max().unwrap_or(0);
    attention.dense.check_steps("plan", 3 * run.most_before() + rows * pack(plan))?;
    // A key can be listed, a sink and in the window of one group.
    let places = |pass: &Pass<'_>| {
        pass.plane_groups(plan) * (pass.part.map_or(0, most_times) + if pass.near { 2 } else { 0 })
    };
    let heads = plan.shape.group() / pack(plan).max(1);
    attention.dense.check_steps("plan", heads * run.passes.iter().map(places).sum::<usize>())
}

/// How often a group lists one key, at most.
fn most_times(part: &DevicePart) -> usize {
    if !part.multiset {
        return 1;
    }
    let bk = if let DeviceEntries::Blocks { bk, .. } = part.entries { bk } else { 1 };
    let most_keys = part.keys.as_ref().and_then(|keys| keys.iter().max().copied());
    part.capacity.min((most_keys.unwrap_or(u32::MAX) / bk.max(1)) as usize)
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
