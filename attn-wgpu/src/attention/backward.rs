//! Vector-Jacobian product of attention, from the saved log-sum-exp.
//!
//! With `delta_i = d_out_i . out_i - d_lse_i` and `p_it` recomputed from `lse_i`:
//!
//! ```text
//! ds_it = p_it (d_out_i . v_t - delta_i) * (derivative of soft-cap and modifier)
//! dq_i  = scale sum_t ds_it k_t      dk_t = scale sum_i ds_it q_i      dv_t = sum_i p_it d_out_i
//! d_sink = - sum_i exp(sink - lse_i) delta_i
//! ```

use attn_core::{AttentionShape, ModifierKind};

use super::call::{Call, bind, check_output, vec4};
use super::forward::SNIPPETS;
use super::jobs::{Grid, Job, bytes};
use super::mask_table::Side;
use super::params::storage;
use super::variant::Variant;
use super::{Attention, Cotangents, Grads, Saved, Targets};
use crate::error::{Error, Result};
use crate::kernel::{Call as Dispatch, Constants, KernelSource};
use crate::ops;
use crate::tensor::{DType, Tensor};

const DELTA: KernelSource = KernelSource {
    name: "attention_delta",
    text: include_str!("../../kernels/attention_delta.wgsl"),
    imports: SNIPPETS,
};
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct DeltaParams {
    rows: u32,
    heads: u32,
    queries: u32,
    dim_v: u32,
    out: [u32; 4],
    d_out: [u32; 4],
    lse_start: u32,
    d_lse_start: u32,
    stats_start: u32,
    stats_stride: u32,
}

/// Words at whose multiples any device may begin a binding.
const ALIGN: usize = 64;

/// Gradients as the kernels write them, in rows of whole groups of four elements without gaps; none where
/// nobody wants it.
struct Written<'a> {
    dq: Option<&'a Tensor>,
    /// By keys and by values: one kernel writes both.
    dkv: Option<[&'a Tensor; 2]>,
    d_sinks: Option<&'a Tensor>,
}

/// Log-sum-exp and delta of every row, behind what the kernel of keys looks up: it writes two tensors, and
/// the seven bindings that a kernel may have leave one for all of this.
pub(super) struct Words {
    pub(super) all: Tensor,
    /// `[2, batch, heads, queries]`, f32.
    pub(super) stats: Tensor,
}

impl Attention {
    /// Records the gradients by all inputs, from what [`Attention::forward_saved`] saved.
    ///
    /// Deterministic: no sum depends on the order in which workgroups run. Memory beyond the
    /// gradients is 8 bytes a query row, and for masks that are not windows one more table.
    ///
    /// # Errors
    /// As [`Attention::forward`]; [`Error::NotDifferentiable`] if the modifier changes scores and
    /// has no derivative.
    pub fn backward(&self, saved: &Saved, cotangents: Cotangents<'_>) -> Result<Grads> {
        let shape = self.check_backward(saved, cotangents)?;
        let [dq, dk, dv] = self.new_targets(saved, &shape)?;
        let new_sinks = |_| Tensor::uninit(&self.gpu, &[shape.heads], DType::F32);
        let d_sinks = saved.sinks.as_ref().map(new_sinks).transpose()?;
        let written = Written {
            dq: Some(&dq.written),
            dkv: Some([&dk.written, &dv.written]),
            d_sinks: d_sinks.as_ref(),
        };
        self.gradients(saved, cotangents, shape, &written)?;
        Ok(Grads { dq: dq.view, dk: dk.view, dv: dv.view, d_sinks })
    }

    /// [`Attention::backward`] into callers' tensors of the shapes and types of [`Grads`]. They are written
    /// directly where they are contiguous, of whole groups of four elements, and begin at one; else a copy
    /// on the device follows. They must not overlap each other.
    ///
    /// # Errors
    /// As [`Attention::backward`], and [`attn_core::Error`] for targets of another shape or type, or of
    /// sinks that there are not.
    pub fn backward_into(
        &self,
        saved: &Saved,
        cotangents: Cotangents<'_>,
        targets: Targets<'_>,
    ) -> Result<()> {
        let shape = self.check_backward(saved, cotangents)?;
        let Targets { dq, dk, dv, d_sinks } = targets;
        let wanted = self.wanted(saved, cotangents, &shape, [dq, dk, dv])?;
        let own_sinks = self.sinks_target(saved, d_sinks, shape.heads)?;
        let written = Written { dq: wanted.dq(), dkv: wanted.dkv(), d_sinks: own_sinks.as_ref() };
        self.gradients(saved, cotangents, shape, &written)?;
        wanted.finish()?;
        match (&own_sinks, d_sinks) {
            (Some(own), Some(target)) if own.buffer() != target.buffer() => ops::copy(own, target),
            _ => Ok(()),
        }
    }

    fn gradients(
        &self,
        saved: &Saved,
        cotangents: Cotangents<'_>,
        shape: AttentionShape,
        written: &Written<'_>,
    ) -> Result<()> {
        let rows = shape.batch * shape.heads * shape.queries;
        if rows == 0 || shape.keys == 0 {
            let dkv = written.dkv.into_iter().flatten();
            for target in written.dq.into_iter().chain(dkv) {
                let zeros = Tensor::zeros(&self.gpu, target.shape(), target.dtype())?;
                ops::copy(&zeros, target)?;
            }
        }
        if rows == 0 {
            return match written.d_sinks {
                Some(d_sinks) => ops::fill(d_sinks, &[0; 4]),
                None => Ok(()),
            };
        }
        let call = self.prepare(saved.inputs(), shape)?;
        let d_out = vec4(cotangents.out, false)?;
        let words = self.words(&shape, written.dkv.is_some())?;
        self.delta_into(&call, saved, &d_out, cotangents.lse, &words.stats)?;
        if shape.keys > 0 {
            if let Some(dq) = written.dq {
                self.run_queries(&call, &d_out, &words.stats, dq)?;
            }
            if let Some(dkv) = written.dkv {
                self.run_keys(&call, &d_out, &words, dkv)?;
            }
        }
        match written.d_sinks {
            Some(d_sinks) => self.sink_gradient(&call, &words.stats, d_sinks),
            None => Ok(()),
        }
    }

    /// Room for the statistics, behind the table of keys where the kernel of keys runs and reads it.
    fn words(&self, shape: &AttentionShape, by_keys: bool) -> Result<Words> {
        let table = match by_keys && shape.keys > 0 {
            true => {
                let tile = self.backward_variant(shape).tile();
                Some(self.table(shape.lengths(), tile, Side::Keys)?)
            }
            false => None,
        };
        let table = table.filter(|table| !self.modifier.is_empty() || table.left < 0);
        let length = table.as_ref().map_or(0, |table| table.words.len());
        let start = length.next_multiple_of(ALIGN);
        let stats = [2, shape.batch, shape.heads, shape.queries];
        let count: usize = stats.iter().product();
        let all = Tensor::uninit(&self.gpu, &[start + count], DType::U32)?;
        if let Some(table) = table {
            ops::copy(&table.words, &all.narrow(0, 0, length)?)?;
        }
        let stats = all.narrow(0, start, count)?.reinterpret(DType::F32).reshape(&stats)?;
        Ok(Words { all, stats })
    }

    pub(super) fn backward_variant(&self, shape: &AttentionShape) -> Variant {
        Variant::backward(shape.dim_qk, shape.dim_v, self.gpu.capabilities())
    }

    /// Checks all that a backward pass is given.
    fn check_backward(&self, saved: &Saved, cotangents: Cotangents<'_>) -> Result<AttentionShape> {
        let shape = self.check(saved.inputs())?;
        self.check_cotangents(saved, cotangents, &shape)?;
        Ok(shape)
    }

    /// Checks what a backward pass gets besides the inputs, and that there is a derivative.
    pub(crate) fn check_cotangents(
        &self,
        saved: &Saved,
        cotangents: Cotangents<'_>,
        shape: &AttentionShape,
    ) -> Result<()> {
        if let Some(modifier) = &self.config.modifier
            && modifier.kind() == ModifierKind::Score
            && modifier.derivative().is_none()
        {
            return Err(Error::NotDifferentiable { name: modifier.name().into() });
        }
        let dtype = saved.q.dtype();
        check_output("out", &saved.out, &shape.out(), dtype)?;
        check_output("lse", &saved.lse, &shape.lse(), DType::F32)?;
        if cotangents.out.shape() != shape.out() {
            let expected = format!("{:?}", shape.out());
            return Err(attn_core::Error::shape("d_out", expected, cotangents.out.shape()).into());
        }
        if cotangents.out.dtype() != dtype {
            return Err(super::call::wrong_type("d_out", dtype.name(), cotangents.out));
        }
        self.check_device("d_out", cotangents.out)?;
        if let Some(d_lse) = cotangents.lse {
            check_output("d_lse", d_lse, &shape.lse(), DType::F32)?;
            self.check_device("d_lse", d_lse)?;
        }
        Ok(())
    }

    /// lse and delta of every row into `stats`, `[2, batch, heads, queries]` of f32, contiguous.
    pub(crate) fn delta_into(
        &self,
        call: &Call,
        saved: &Saved,
        d_out: &Tensor,
        d_lse: Option<&Tensor>,
        stats: &Tensor,
    ) -> Result<()> {
        let shape = &call.shape;
        let out = vec4(&saved.out, false)?;
        let workgroup = ops::workgroup(self.gpu.capabilities());
        let constants = storage(Constants::new().int("WORKGROUP", workgroup), call.dtype())
            .flag("LSE_COTANGENT", d_lse.is_some());
        let kernel = self.gpu.kernel(&DELTA, constants)?;
        let grid = Grid {
            batch: shape.batch,
            heads: shape.heads,
            group: 1,
            tiles: shape.queries,
            split_groups: true,
        };
        let work = |job: &Job| (2 * shape.dim_v * job.planes() * job.tiles.len()) as f64;
        let jobs = Job::split(&grid, &self.gpu, work, |job| {
            let tokens = job.tiles.clone();
            Ok(vec![
                ("out", bytes(&job.window(&out, &job.heads, &tokens)?)),
                ("d_out", bytes(&job.window(d_out, &job.heads, &tokens)?)),
                ("lse", bytes(stats)),
            ])
        })?;
        for job in jobs {
            let window = |tensor: &Tensor| {
                Ok::<_, Error>(bind(&job.window(tensor, &job.heads, &job.tiles)?, 0))
            };
            let (o, d_o) = (window(&out)?, window(d_out)?);
            let (lse, lse_start) = saved.lse.binding();
            let (stats_words, stats_start) = stats.binding();
            let (d_lse, d_lse_start) = match d_lse {
                Some(d_lse) => d_lse.binding(),
                None => (self.unused()?, 0),
            };
            // Tiles are split only where a job is a single plane, so its rows are neighbours.
            let first =
                (job.batch.start * shape.heads + job.heads.start) * shape.queries + job.tiles.start;
            let rows = job.planes() * job.tiles.len();
            let params = DeltaParams {
                rows: rows as u32,
                heads: job.heads.len() as u32,
                queries: job.tiles.len() as u32,
                dim_v: (out.shape()[3] / 4) as u32,
                out: o.place,
                d_out: d_o.place,
                lse_start: (lse_start + first) as u32,
                d_lse_start: (d_lse_start + first) as u32,
                stats_start: (stats_start + first) as u32,
                stats_stride: (stats.len() / 2) as u32,
            };
            let dispatch = Dispatch {
                bindings: &[o.binding, d_o.binding, lse, d_lse, stats_words],
                params: bytemuck::bytes_of(&params),
                groups: (rows as u64).div_ceil(u64::from(workgroup)),
                work: work(&job),
            };
            kernel.dispatch(&self.gpu, &dispatch)?;
        }
        Ok(())
    }
}
