//! Forward with many queries: one workgroup a row tile.

use super::Attention;
use super::call::{Call, bind};
use super::jobs::{Grid, Job, bytes};
use super::mask_table::Side;
use super::params::Common;
use super::variant::Variant;
use crate::error::Result;
use crate::kernel::{Call as Dispatch, Constants, KernelSource};
use crate::tensor::{DType, Tensor};

/// Snippets of all attention kernels.
pub(crate) const SNIPPETS: &[(&str, &str)] = &[
    ("linear", include_str!("../../kernels/linear.wgsl")),
    ("attention_fields", include_str!("../../kernels/attention_fields.wgsl")),
    ("attention_storage", include_str!("../../kernels/attention_storage.wgsl")),
    ("attention_logits", include_str!("../../kernels/attention_logits.wgsl")),
    ("attention_lanes", include_str!("../../kernels/attention_lanes.wgsl")),
    ("attention_arguments", include_str!("../../kernels/attention_arguments.wgsl")),
    ("attention_item", include_str!("../../kernels/attention_item.wgsl")),
    ("attention_keys", include_str!("../../kernels/attention_keys.wgsl")),
    ("attention_pairs", include_str!("../../kernels/attention_pairs.wgsl")),
    ("attention_segments", include_str!("../../kernels/attention_segments.wgsl")),
    ("attention_absorb", include_str!("../../kernels/attention_absorb.wgsl")),
];

const FORWARD: KernelSource = KernelSource {
    name: "attention_forward",
    text: include_str!("../../kernels/attention_forward.wgsl"),
    imports: SNIPPETS,
};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    common: Common,
    stats_stride: u32,
    slice: u32,
}

/// Keys of one slice, a multiple of every variant's keys a step: half of what a device with limited
/// loops admits, since loops over segments count as well.
const SLICE: usize = 30_720;

/// The form of the kernel that computes one slice of the keys.
pub(super) fn sliced(constants: Constants) -> Constants {
    constants.int("SLICE", SLICE as u32).flag("SLICED", true)
}

impl Attention {
    /// `out` can be addressed in vec4s; `stats` is `[1 or 3, batch, heads, queries]`.
    pub(super) fn run_forward(&self, call: &Call, out: &Tensor, stats: &Tensor) -> Result<()> {
        let shape = &call.shape;
        let variant = Variant::forward(shape.dim_qk, shape.dim_v, self.gpu.capabilities());
        let want_stats = stats.shape()[0] > 1;
        let steps =
            call.steps(&self.config.mask, variant.tile(), shape.keys) / variant.keys as usize;
        if steps > self.gpu.capabilities().max_loop_steps {
            if want_stats {
                self.check_steps("row_max", steps)?;
            }
            return self.run_sliced(call, variant, out, stats);
        }
        let constants = self
            .form(call.dtype())
            .constants(&variant)
            .flag("SINKS", call.sinks.is_some())
            .flag("STATS", want_stats);
        let kernel = self.gpu.kernel(&FORWARD, constants)?;
        let table = self.table(shape.lengths(), variant.tile(), Side::Queries)?;
        let sinks = match &call.sinks {
            Some(sinks) => sinks.binding(),
            None => (self.unused()?, 0),
        };
        // Sinks are indexed by the call's heads: a view is bound from its first element on only.
        let sinks = if sinks.1 == 0 { sinks.0 } else { self.fresh(call.sinks.as_ref())? };

        let grid = Grid::new(shape, shape.queries.div_ceil(variant.tile()));
        let queries = |job: &Job| job.tokens(variant.tile(), shape.queries);
        let keys = 0..shape.keys;
        let per_row = call.work_per_row(&self.config.mask);
        let work = |job: &Job| per_row * (job.planes() * queries(job).len()) as f64;
        let jobs = Job::split(&grid, &self.gpu, work, |job| {
            let mut windows = call.windows(job, &queries(job), &keys)?;
            windows.push(("out", bytes(&job.window(out, &job.heads, &queries(job))?)));
            windows.push(("lse", bytes(stats)));
            Ok(windows)
        })?;
        let stride = shape.batch * shape.heads * shape.queries;
        let (stats_binding, stats_start) = stats.binding();
        for job in jobs {
            let bounds = call.bind(&job, &queries(&job), &keys)?;
            let target = bind(&job.window(out, &job.heads, &queries(&job))?, queries(&job).start);
            let plane = job.batch.start * shape.heads + job.heads.start;
            let total = job.planes() * job.tiles.len();
            let params = Params {
                common: Common {
                    out: target.place,
                    stats_start: (stats_start + plane * shape.queries) as u32,
                    first_tile: job.tiles.start as u32,
                    tiles: job.tiles.len() as u32,
                    total: total as u32,
                    ..self.common(call, &job, &table, &bounds)
                },
                stats_stride: if want_stats { stride as u32 } else { 0 },
                slice: 0,
            };
            let dispatch = Dispatch {
                bindings: &[
                    bounds.q.binding,
                    bounds.k.binding,
                    bounds.v.binding,
                    target.binding,
                    stats_binding.clone(),
                    table.words.binding().0,
                    sinks.clone(),
                ],
                params: bytemuck::bytes_of(&params),
                groups: total as u64,
                work: work(&job),
            };
            kernel.dispatch(&self.gpu, &dispatch)?;
        }
        Ok(())
    }

    /// For devices on which a kernel may not loop over all keys of a row: slices of the keys, merged.
    fn run_sliced(
        &self,
        call: &Call,
        variant: Variant,
        out: &Tensor,
        stats: &Tensor,
    ) -> Result<()> {
        let shape = &call.shape;
        let slices = shape.keys.div_ceil(SLICE);
        let constants = sliced(self.form(call.dtype()).constants(&variant));
        let kernel = self.gpu.kernel(&FORWARD, constants)?;
        let table = self.table(shape.lengths(), variant.tile(), Side::Queries)?;
        let dim_v = call.v.shape()[3];
        let grid = Grid::new(shape, shape.queries.div_ceil(variant.tile()));
        let queries = |job: &Job| job.tokens(variant.tile(), shape.queries);
        let keys = 0..shape.keys;
        let per_row = call.work_per_row(&self.config.mask);
        let work = |job: &Job| per_row * (job.planes() * queries(job).len()) as f64;
        let jobs = Job::split(&grid, &self.gpu, work, |job| {
            let mut windows = call.windows(job, &queries(job), &keys)?;
            let rows = job.planes() * queries(job).len();
            windows.push(("out", bytes(&job.window(out, &job.heads, &queries(job))?)));
            windows.push(("partial results", (slices * rows * dim_v * 4) as u64));
            Ok(windows)
        })?;
        for job in jobs {
            let rows = queries(&job);
            let bounds = call.bind(&job, &rows, &keys)?;
            let (planes, count) = (job.planes(), job.planes() * rows.len());
            let part_out = Tensor::uninit(&self.gpu, &[slices, count, dim_v], DType::F32)?;
            let part_lse = Tensor::uninit(&self.gpu, &[slices, count], DType::F32)?;
            let total = planes * job.tiles.len();
            let extents = [job.batch.len(), job.heads.len(), rows.len(), dim_v];
            for slice in 0..slices {
                let part = part_out.narrow(0, slice, 1)?.reshape(&extents)?;
                let target = bind(&part, rows.start);
                let (lse, lse_start) = part_lse.narrow(0, slice, 1)?.binding();
                let params = Params {
                    common: Common {
                        out: target.place,
                        // Rows are numbered from the call's query 0.
                        stats_start: (lse_start as u32).wrapping_sub(rows.start as u32),
                        first_tile: job.tiles.start as u32,
                        tiles: job.tiles.len() as u32,
                        total: total as u32,
                        ..self.common(call, &job, &table, &bounds)
                    },
                    stats_stride: 0,
                    slice: slice as u32,
                };
                let dispatch = Dispatch {
                    bindings: &[
                        bounds.q.binding.clone(),
                        bounds.k.binding.clone(),
                        bounds.v.binding.clone(),
                        target.binding,
                        lse,
                        table.words.binding().0,
                        self.unused()?,
                    ],
                    params: bytemuck::bytes_of(&params),
                    groups: total as u64,
                    work: work(&job) / slices as f64,
                };
                kernel.dispatch(&self.gpu, &dispatch)?;
            }
            let out = job.window(out, &job.heads, &rows)?;
            let lse = stats.narrow(0, 0, 1)?.reshape(&shape.lse())?;
            let lse = job.window(&lse, &job.heads, &rows)?;
            let sinks = call.sinks.as_ref().map(|sinks| (sinks, job.heads.start));
            super::merge::run(&part_out, &part_lse, &out, &lse, sinks)?;
        }
        Ok(())
    }

    /// A copy that begins where a binding may begin.
    pub(super) fn fresh(&self, tensor: Option<&Tensor>) -> Result<crate::kernel::Binding> {
        let Some(tensor) = tensor else { return self.unused() };
        let copy = Tensor::uninit(&self.gpu, tensor.shape(), tensor.dtype())?;
        crate::ops::copy(tensor, &copy)?;
        Ok(copy.binding().0)
    }
}
