//! The kernels of a backward pass: by queries, by keys and values, by sinks.

use super::Attention;
use super::backward::Words;
use super::call::{Call, bind};
use super::forward::SNIPPETS;
use super::jobs::{Grid, Job, bytes};
use super::mask_table::Side;
use super::params::Common;
use crate::error::Result;
use crate::kernel::{Call as Dispatch, Constants, KernelSource};
use crate::ops;
use crate::tensor::Tensor;

const QUERIES: KernelSource = KernelSource {
    name: "attention_backward_q",
    text: include_str!("../../kernels/attention_backward_q.wgsl"),
    imports: SNIPPETS,
};
const KEYS: KernelSource = KernelSource {
    name: "attention_backward_kv",
    text: include_str!("../../kernels/attention_backward_kv.wgsl"),
    imports: SNIPPETS,
};
const SINKS: KernelSource = KernelSource {
    name: "attention_sinks",
    text: include_str!("../../kernels/attention_sinks.wgsl"),
    imports: SNIPPETS,
};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    common: Common,
    grad_scale: f32,
    grad_start: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct KeyParams {
    common: Common,
    grad_scale: f32,
    stats_stride: u32,
    dk_start: u32,
    dv_start: u32,
}

/// Operations of a backward pass by those of a forward pass: dq needs three products a pair, dk and
/// dv four, forward two.
pub(crate) const WORK_Q: f64 = 1.5;
pub(crate) const WORK_KV: f64 = 2.0;

impl Attention {
    pub(super) fn run_queries(
        &self,
        call: &Call,
        d_out: &Tensor,
        stats: &Tensor,
        dq: &Tensor,
    ) -> Result<()> {
        let shape = &call.shape;
        let variant = self.backward_variant(shape);
        let steps = call.steps(&self.config.mask, variant.tile(), shape.keys);
        self.check_steps("backward", steps)?;
        let form = self.form(call.dtype()).constants(&variant).flag("BACKWARD", true);
        let kernel = self.gpu.kernel(&QUERIES, form)?;
        let table = self.table(shape.lengths(), variant.tile(), Side::Queries)?;
        let grid = Grid::new(shape, shape.queries.div_ceil(variant.tile()));
        let queries = |job: &Job| job.tokens(variant.tile(), shape.queries);
        let keys = 0..shape.keys;
        let per_row = WORK_Q * call.work_per_row(&self.config.mask);
        let work = |job: &Job| per_row * (job.planes() * queries(job).len()) as f64;
        let jobs = Job::split(&grid, &self.gpu, work, |job| {
            let mut windows = call.windows(job, &queries(job), &keys)?;
            windows.push(("d_out", bytes(&job.window(d_out, &job.heads, &queries(job))?)));
            windows.push(("dq", bytes(&job.window(dq, &job.heads, &queries(job))?)));
            windows.push(("lse", bytes(stats)));
            Ok(windows)
        })?;
        for job in jobs {
            let first = queries(&job).start;
            let bounds = call.bind(&job, &queries(&job), &keys)?;
            let d_out = bind(&job.window(d_out, &job.heads, &queries(&job))?, first);
            let dq = bind(&job.window(dq, &job.heads, &queries(&job))?, first);
            let plane = job.batch.start * shape.heads + job.heads.start;
            let total = job.planes() * job.tiles.len();
            let params = Params {
                common: Common {
                    out: d_out.place,
                    stats_start: (plane * shape.queries) as u32,
                    first_tile: job.tiles.start as u32,
                    tiles: job.tiles.len() as u32,
                    total: total as u32,
                    ..self.common(call, &job, &table, &bounds)
                },
                grad_scale: self.config.scale_for(shape.dim_qk) as f32,
                grad_start: dq.place[0],
            };
            let dispatch = Dispatch {
                bindings: &[
                    bounds.q.binding,
                    bounds.k.binding,
                    bounds.v.binding,
                    d_out.binding,
                    stats.binding().0,
                    dq.binding,
                    table.words.binding().0,
                ],
                params: bytemuck::bytes_of(&params),
                groups: total as u64,
                work: work(&job),
            };
            kernel.dispatch(&self.gpu, &dispatch)?;
        }
        Ok(())
    }

    pub(super) fn run_keys(
        &self,
        call: &Call,
        d_out: &Tensor,
        words: &Words,
        dkv: [&Tensor; 2],
    ) -> Result<()> {
        let shape = &call.shape;
        let group = shape.group();
        let variant = self.backward_variant(shape);
        let steps = group * call.steps(&self.config.mask, variant.tile(), shape.queries);
        self.check_steps("backward", steps)?;
        let form = self.form(call.dtype()).constants(&variant);
        let form = form.flag("BACKWARD", true).flag("BY_KEYS", true);
        let kernel = self.gpu.kernel(&KEYS, form)?;
        let table = self.table(shape.lengths(), variant.tile(), Side::Keys)?;
        let grid =
            Grid { split_groups: false, ..Grid::new(shape, shape.keys.div_ceil(variant.tile())) };
        let queries = 0..shape.queries;
        let keys = |job: &Job| job.tokens(variant.tile(), shape.keys);
        let planes = |job: &Job| job.batch.len() * job.heads_kv(group).len();
        let share = WORK_KV * call.work_per_row(&self.config.mask) / shape.keys as f64;
        let work =
            |job: &Job| share * (job.planes() * shape.queries) as f64 * keys(job).len() as f64;
        let all_keys = 0..shape.keys;
        let gradients = |job: &Job| -> Result<[Tensor; 2]> {
            let window = |tensor| job.window(tensor, &job.heads_kv(group), &all_keys);
            Ok([window(dkv[0])?, window(dkv[1])?])
        };
        let jobs = Job::split(&grid, &self.gpu, work, |job| {
            let mut windows = call.windows(job, &queries, &keys(job))?;
            windows.push(("d_out", bytes(&job.window(d_out, &job.heads, &queries)?)));
            let [dk, dv] = gradients(job)?;
            windows.push(("dk", bytes(&dk)));
            windows.push(("dv", bytes(&dv)));
            windows.push(("lse", bytes(&words.all)));
            Ok(windows)
        })?;
        let stats_start = words.all.len() - words.stats.len();
        for job in jobs {
            let bounds = call.bind(&job, &queries, &keys(&job))?;
            let d_out = bind(&job.window(d_out, &job.heads, &queries)?, 0);
            let [(dk, dk_start), (dv, dv_start)] = gradients(&job)?.map(|grad| grad.binding());
            let plane = job.batch.start * shape.heads + job.heads.start;
            let total = planes(&job) * job.tiles.len();
            let params = KeyParams {
                common: Common {
                    out: d_out.place,
                    stats_start: (stats_start + plane * shape.queries) as u32,
                    first_tile: job.tiles.start as u32,
                    tiles: job.tiles.len() as u32,
                    total: total as u32,
                    ..self.common(call, &job, &table, &bounds)
                },
                grad_scale: self.config.scale_for(shape.dim_qk) as f32,
                stats_stride: (words.stats.len() / 2) as u32,
                dk_start: (dk_start / 4) as u32,
                dv_start: (dv_start / 4) as u32,
            };
            let dispatch = Dispatch {
                bindings: &[
                    bounds.q.binding,
                    bounds.k.binding,
                    bounds.v.binding,
                    d_out.binding,
                    dk,
                    dv,
                    words.all.binding().0,
                ],
                params: bytemuck::bytes_of(&params),
                groups: total as u64,
                work: work(&job),
            };
            kernel.dispatch(&self.gpu, &dispatch)?;
        }
        Ok(())
    }

    pub(super) fn sink_gradient(
        &self,
        call: &Call,
        stats: &Tensor,
        d_sinks: &Tensor,
    ) -> Result<()> {
        let Some(sinks) = &call.sinks else { return Ok(()) };
        let shape = &call.shape;
        let workgroup = ops::workgroup(self.gpu.capabilities());
        let steps = shape.batch * (shape.queries.div_ceil(workgroup as usize) + 1);
        self.check_steps("d_sinks", steps)?;
        let kernel = self.gpu.kernel(&SINKS, Constants::new().int("WORKGROUP", workgroup))?;
        let params = [shape.batch as u32, shape.heads as u32, shape.queries as u32];
        let (binding, start) = sinks.binding();
        let sinks = if start == 0 { binding } else { self.fresh(Some(sinks))? };
        let dispatch = Dispatch {
            bindings: &[stats.binding().0, sinks, d_sinks.binding().0],
            params: bytemuck::cast_slice(&params),
            groups: shape.heads as u64,
            work: stats.len() as f64,
        };
        kernel.dispatch(&self.gpu, &dispatch)
    }
}
