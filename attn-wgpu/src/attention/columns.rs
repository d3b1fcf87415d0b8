//! Column sums of the probabilities.

use super::call::{Call, check_output};
use super::forward::SNIPPETS;
use super::jobs::{Grid, Job, bytes};
use super::mask_table::Side;
use super::params::Common;
use super::variant::Variant;
use super::{Attention, Inputs};
use crate::error::Result;
use crate::kernel::{Call as Dispatch, KernelSource};
use crate::tensor::{DType, Tensor};

const COLUMNS: KernelSource = KernelSource {
    name: "attention_columns",
    text: include_str!("../../kernels/attention_columns.wgsl"),
    imports: SNIPPETS,
};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    common: Common,
    sums_start: u32,
}

impl Attention {
    /// `sum_i exp(s_it - lse_i)` for every head and key, `[batch, heads, keys]`, f32, from a lse
    /// that was computed before. Probabilities of a row with a sink add up to less than 1.
    ///
    /// # Errors
    /// As [`Attention::forward`], and [`attn_core::Error::Shape`] for a lse of another shape.
    pub fn column_sums(&self, inputs: Inputs<'_>, lse: &Tensor) -> Result<Tensor> {
        let shape = self.check(inputs)?;
        check_output("lse", lse, &shape.lse(), DType::F32)?;
        let sums = [shape.batch, shape.heads, shape.keys];
        if shape.queries == 0 || sums.contains(&0) {
            return Tensor::zeros(&self.gpu, &sums, DType::F32);
        }
        let sums = Tensor::uninit(&self.gpu, &sums, DType::F32)?;
        self.run_columns(&self.prepare(inputs, shape)?, lse, &sums)?;
        Ok(sums)
    }

    /// [`Attention::column_sums`] into a caller's tensor, by a copy on the device.
    ///
    /// # Errors
    /// As [`Attention::column_sums`], and [`attn_core::Error`] for a target of another shape or type.
    pub fn column_sums_into(
        &self,
        inputs: Inputs<'_>,
        lse: &Tensor,
        target: &Tensor,
    ) -> Result<()> {
        crate::ops::copy(&self.column_sums(inputs, lse)?, target)
    }

    fn run_columns(&self, call: &Call, lse: &Tensor, sums: &Tensor) -> Result<()> {
        let shape = &call.shape;
        let variant = Variant::backward(shape.dim_qk, shape.dim_v, self.gpu.capabilities());
        let steps = call.steps(&self.config.mask, variant.tile(), shape.queries);
        self.check_steps("column_sums", steps)?;
        let kernel = self
            .gpu
            .kernel(&COLUMNS, self.form(call.dtype()).constants(&variant).flag("BY_KEYS", true))?;
        let table = self.table(shape.lengths(), variant.tile(), Side::Keys)?;
        let grid = Grid::new(shape, shape.keys.div_ceil(variant.tile()));
        let queries = 0..shape.queries;
        let keys = |job: &Job| job.tokens(variant.tile(), shape.keys);
        let per_key = 2.0 * (shape.dim_qk * shape.queries) as f64;
        let work = |job: &Job| per_key * (job.planes() * keys(job).len()) as f64;
        let jobs = Job::split(&grid, &self.gpu, work, |job| {
            let mut windows = call.windows(job, &queries, &keys(job))?;
            windows.extend([("lse", bytes(lse)), ("column_sums", bytes(sums))]);
            Ok(windows)
        })?;
        for job in jobs {
            let bounds = call.bind(&job, &queries, &keys(&job))?;
            let (lse, lse_start) = lse.binding();
            let (sums, sums_start) = sums.binding();
            let plane = job.batch.start * shape.heads + job.heads.start;
            let total = job.planes() * job.tiles.len();
            let params = Params {
                common: Common {
                    stats_start: (lse_start + plane * shape.queries) as u32,
                    first_tile: job.tiles.start as u32,
                    tiles: job.tiles.len() as u32,
                    total: total as u32,
                    ..self.common(call, &job, &table, &bounds)
                },
                sums_start: (sums_start + plane * shape.keys) as u32,
            };
            let dispatch = Dispatch {
                bindings: &[bounds.q.binding, bounds.k.binding, lse, sums, table.words.binding().0],
                params: bytemuck::bytes_of(&params),
                groups: total as u64,
                work: work(&job),
            };
            kernel.dispatch(&self.gpu, &dispatch)?;
        }
        Ok(())
    }
}
