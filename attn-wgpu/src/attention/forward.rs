//! Forward with many queries: one workgroup a row tile.

use super::Attention;
use super::call::{Call, bind};
use super::jobs::{Grid, Job, bytes};
use super::mask_table::Side;
use super::params::Common;
use super::variant::Variant;
use crate::error::Result;
use crate::kernel::{Call as Dispatch, KernelSource};
use crate::tensor::Tensor;

/// Snippets of all attention kernels.
pub(super) const SNIPPETS: &[(&str, &str)] = &[
    ("linear", include_str!("../../kernels/linear.wgsl")),
    ("attention_fields", include_str!("../../kernels/attention_fields.wgsl")),
    ("attention_storage", include_str!("../../kernels/attention_storage.wgsl")),
    ("attention_logits", include_str!("../../kernels/attention_logits.wgsl")),
    ("attention_lanes", include_str!("../../kernels/attention_lanes.wgsl")),
    ("attention_arguments", include_str!("../../kernels/attention_arguments.wgsl")),
    ("attention_item", include_str!("../../kernels/attention_item.wgsl")),
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
}

impl Attention {
    /// `out` can be addressed in vec4s; `stats` is `[1 or 3, batch, heads, queries]`.
    pub(super) fn run_forward(&self, call: &Call, out: &Tensor, stats: &Tensor) -> Result<()> {
        let shape = &call.shape;
        let variant = Variant::forward(shape.dim_qk, shape.dim_v, self.gpu.capabilities());
        let want_stats = stats.shape()[0] > 1;
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

        let grid = Grid {
            batch: shape.batch,
            heads: shape.heads,
            group: shape.group(),
            tiles: shape.queries.div_ceil(variant.tile()),
            split_groups: true,
        };
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

    /// A copy that begins where a binding may begin.
    pub(super) fn fresh(&self, tensor: Option<&Tensor>) -> Result<crate::kernel::Binding> {
        let Some(tensor) = tensor else { return self.unused() };
        let copy = Tensor::uninit(&self.gpu, tensor.shape(), tensor.dtype())?;
        crate::ops::copy(tensor, &copy)?;
        Ok(copy.binding().0)
    }
}
