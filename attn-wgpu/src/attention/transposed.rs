//! Products with the transposed probabilities.

use super::call::{Call, bind, check_output, vec4, wrong_type};
use super::forward::SNIPPETS;
use super::jobs::{Grid, Job, bytes};
use super::mask_table::Side;
use super::params::{Common, pair};
use super::{Attention, Inputs, MAX_DIM};
use crate::error::Result;
use crate::kernel::{Call as Dispatch, KernelSource};
use crate::ops;
use crate::tensor::{DType, Tensor};

const TRANSPOSED: KernelSource = KernelSource {
    name: "attention_transposed",
    text: include_str!("../../kernels/attention_transposed.wgsl"),
    imports: SNIPPETS,
};

impl Attention {
    /// `y_t = sum_i exp(s_it - lse_i) x_i` for every head and key, `[batch, heads, keys, width]`, f32: rows `x`
    /// `[batch, heads, queries, width]`, f32, of up to [`MAX_DIM`] elements, times the probabilities, which
    /// are not stored. `x` may be the same for all heads, by a stride of 0. The result is a view whose
    /// last dimension is contiguous.
    ///
    /// With `x` all 1 these are the [column sums](Attention::column_sums); with the cotangents of the
    /// output they are the gradients by the values, head by head.
    ///
    /// # Errors
    /// As [`Attention::forward`], and [`attn_core::Error`] for a lse or an `x` of another shape or type.
    pub fn transposed(&self, q: &Tensor, k: &Tensor, lse: &Tensor, x: &Tensor) -> Result<Tensor> {
        let mut shape = self.check(Inputs::new(q, k, k))?;
        self.check_device("lse", lse)?;
        self.check_device("x", x)?;
        check_output("lse", lse, &shape.lse(), DType::F32)?;
        if x.dtype() != DType::F32 {
            return Err(wrong_type("x", DType::F32.name(), x));
        }
        let rows = shape.lse();
        let width = x.shape().last().copied().unwrap_or(0);
        if x.shape().len() != 4 || x.shape()[..3] != rows || !(1..=MAX_DIM).contains(&width) {
            let expected = format!("{rows:?} and a last extent of 1 to {MAX_DIM}");
            return Err(attn_core::Error::shape("x", expected, x.shape()).into());
        }
        shape.dim_v = width;
        let padded = [shape.batch, shape.heads, shape.keys, width.next_multiple_of(4)];
        let out = Tensor::uninit(&self.gpu, &padded, DType::F32)?;
        if shape.queries == 0 || out.is_empty() {
            ops::fill(&out, &[0; 4])?;
        } else {
            let k = vec4(k, true)?;
            // The kernel reads no values.
            let call = Call { shape, q: vec4(q, false)?, v: k.clone(), k, sinks: None };
            self.run_transposed(&call, lse, &vec4(x, false)?, &out)?;
        }
        out.narrow(3, 0, width)
    }

    /// [`Attention::transposed`] into a caller's tensor, by a copy on the device.
    ///
    /// # Errors
    /// As [`Attention::transposed`], and [`attn_core::Error`] for a target of another shape or type.
    pub fn transposed_into(
        &self,
        q: &Tensor,
        k: &Tensor,
        lse: &Tensor,
        x: &Tensor,
        target: &Tensor,
    ) -> Result<()> {
        ops::copy(&self.transposed(q, k, lse, x)?, target)
    }

    /// `x` and `out` can be addressed in vec4s.
    fn run_transposed(&self, call: &Call, lse: &Tensor, x: &Tensor, out: &Tensor) -> Result<()> {
        let shape = &call.shape;
        let variant = self.backward_variant(shape);
        let steps = call.steps(&self.config.mask, variant.tile(), shape.queries);
        self.check_steps("transposed", steps)?;
        let form = self.form(call.dtype()).constants(&variant).flag("BY_KEYS", true);
        let kernel = self.gpu.kernel(&TRANSPOSED, form)?;
        let table = self.table(shape.lengths(), variant.tile(), Side::Keys)?;
        let grid = Grid::new(shape, shape.keys.div_ceil(variant.tile()));
        let queries = 0..shape.queries;
        let keys = |job: &Job| job.tokens(variant.tile(), shape.keys);
        let share = call.work_per_row(&self.config.mask) / shape.keys as f64;
        let work =
            |job: &Job| share * (job.planes() * shape.queries) as f64 * keys(job).len() as f64;
        let jobs = Job::split(&grid, &self.gpu, work, |job| {
            let mut windows = call.windows(job, &queries, &keys(job))?;
            windows.push(("x", bytes(&job.window(x, &job.heads, &queries)?)));
            windows.push(("transposed", bytes(&job.window(out, &job.heads, &keys(job))?)));
            windows.push(("lse", bytes(lse)));
            Ok(windows)
        })?;
        for job in jobs {
            let bounds = call.bind(&job, &queries, &keys(&job))?;
            let x = bind(&job.window(x, &job.heads, &queries)?, 0);
            let own = bind(&job.window(out, &job.heads, &keys(&job))?, keys(&job).start);
            let (lse, lse_start) = lse.binding();
            let plane = job.batch.start * shape.heads + job.heads.start;
            let total = job.planes() * job.tiles.len();
            let params = Common {
                dims: pair(call.q.shape()[3] / 4, out.shape()[3] / 4),
                v: own.place,
                out: x.place,
                stats_start: (lse_start + plane * shape.queries) as u32,
                first_tile: job.tiles.start as u32,
                tiles: job.tiles.len() as u32,
                total: total as u32,
                ..self.common(call, &job, &table, &bounds)
            };
            let dispatch = Dispatch {
                bindings: &[
                    bounds.q.binding,
                    bounds.k.binding,
                    lse,
                    x.binding,
                    own.binding,
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
}
