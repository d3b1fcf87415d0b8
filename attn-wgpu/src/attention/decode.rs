//! Forward with few queries: keys are split over workgroups, and the parts merged.

use attn_core::AttentionShape;

use super::Attention;
use super::call::Call;
use super::forward::SNIPPETS;
use super::jobs::{Grid, Job, bytes};
use super::mask_table::Side;
use super::params::Common;
use super::variant::{FEW_QUERIES, Variant};
use crate::capabilities::Capabilities;
use crate::error::Result;
use crate::kernel::{Call as Dispatch, KernelSource};
use crate::tensor::{DType, Tensor};

const DECODE: KernelSource = KernelSource {
    name: "attention_decode",
    text: include_str!("../../kernels/attention_decode.wgsl"),
    imports: SNIPPETS,
};

/// Keys of one part at least, and parts of one row at most.
const MIN_CHUNK: usize = 256;
const MAX_PARTS: usize = 16;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    common: Common,
    heads_per_item: u32,
}

/// Keys of one part: a function of their number only, so that a row's result does not depend on
/// what else is computed.
fn chunk(keys: usize) -> usize {
    keys.div_ceil(MAX_PARTS).next_multiple_of(64).max(MIN_CHUNK)
}

/// The variant for a call with few queries, and how many heads of a group one workgroup takes.
/// `None` where there are too many queries, or more than registers have room for.
pub(super) fn plan(
    shape: &AttentionShape,
    capabilities: &Capabilities,
) -> Option<(Variant, usize)> {
    let most = Variant::decode(shape.dim_qk, shape.dim_v, usize::MAX, capabilities).rows as usize;
    if shape.queries == 0 || shape.queries > FEW_QUERIES.min(most) {
        return None;
    }
    // Heads that do not fit one workgroup are shared out evenly.
    let group = shape.group();
    let heads_per_item = group.div_ceil(group.div_ceil(most / shape.queries));
    let rows = heads_per_item * shape.queries;
    Some((Variant::decode(shape.dim_qk, shape.dim_v, rows, capabilities), heads_per_item))
}

impl Attention {
    /// `out` can be addressed in vec4s; `stats` is `[1, batch, heads, queries]`.
    pub(super) fn run_decode(
        &self,
        call: &Call,
        (variant, heads_per_item): (Variant, usize),
        out: &Tensor,
        stats: &Tensor,
    ) -> Result<()> {
        let shape = &call.shape;
        let kernel = self.gpu.kernel(&DECODE, self.form(call.dtype()).constants(&variant))?;
        let table = self.table(shape.lengths(), shape.queries, Side::Queries)?;
        let chunk = chunk(shape.keys);
        let steps = chunk / (variant.workgroup / variant.lanes * variant.keys) as usize;
        if steps > self.gpu.capabilities().max_loop_steps {
            return self.run_forward(call, out, stats);
        }
        let parts = shape.keys.div_ceil(chunk);
        let (queries, keys) = (0..shape.queries, 0..shape.keys);
        let dim_v = call.v.shape()[3];
        let part_rows = |job: &Job| parts * job.planes() * shape.queries;

        let grid = Grid::new(shape, 1);
        let per_row = call.work_per_row(&self.config.mask);
        let work = |job: &Job| per_row * (job.planes() * shape.queries) as f64;
        let jobs = Job::split(&grid, &self.gpu, work, |job| {
            let mut windows = call.windows(job, &queries, &keys)?;
            windows.push(("out", bytes(&job.window(out, &job.heads, &queries)?)));
            windows.push(("partial results", (part_rows(job) * dim_v * 4) as u64));
            Ok(windows)
        })?;
        for job in jobs {
            let bounds = call.bind(&job, &queries, &keys)?;
            let rows = job.planes() * shape.queries;
            // Of one size for all lengths, so that decoding finds the same buffers step after step.
            let most = parts.max(MAX_PARTS);
            let part_out = Tensor::uninit(&self.gpu, &[most, rows, dim_v], DType::F32)?;
            let part_lse = Tensor::uninit(&self.gpu, &[most, rows], DType::F32)?;
            let (part_out, part_lse) =
                (part_out.narrow(0, 0, parts)?, part_lse.narrow(0, 0, parts)?);
            let group = job.group(shape.group());
            let items = job.planes() / group * group.div_ceil(heads_per_item.min(group));
            let total = items * parts;
            let params = Params {
                common: Common {
                    first_tile: chunk as u32,
                    tiles: parts as u32,
                    total: total as u32,
                    ..self.common(call, &job, &table, &bounds)
                },
                heads_per_item: heads_per_item.min(group) as u32,
            };
            let dispatch = Dispatch {
                bindings: &[
                    bounds.q.binding,
                    bounds.k.binding,
                    bounds.v.binding,
                    part_out.binding().0,
                    part_lse.binding().0,
                    table.words.binding().0,
                ],
                params: bytemuck::bytes_of(&params),
                groups: total as u64,
                work: work(&job),
            };
            kernel.dispatch(&self.gpu, &dispatch)?;
            let out = job.window(out, &job.heads, &queries)?;
            let lse = stats.narrow(0, 0, 1)?.reshape(&shape.lse())?;
            let lse = lse.narrow(0, job.batch.start, job.batch.len())?;
            let lse = lse.narrow(1, job.heads.start, job.heads.len())?;
            let sinks = call.sinks.as_ref().map(|sinks| (sinks, job.heads.start));
            super::merge::run(&part_out, &part_lse, &out, &lse, sinks)?;
        }
        Ok(())
    }
}
