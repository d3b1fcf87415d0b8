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
use super::params::{Common, storage};
use super::variant::Variant;
use super::{Attention, Cotangents, Grads, Saved};
use crate::error::{Error, Result};
use crate::kernel::{Call as Dispatch, Constants, KernelSource};
use crate::ops;
use crate::tensor::{DType, Tensor};

const DELTA: KernelSource = KernelSource {
    name: "attention_delta",
    text: include_str!("../../kernels/attention_delta.wgsl"),
    imports: SNIPPETS,
};
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

/// Operations of a backward pass by those of a forward pass: dq needs three products a pair, dk and
/// dv four, forward two.
pub(crate) const WORK_Q: f64 = 1.5;
pub(crate) const WORK_KV: f64 = 2.0;

impl Attention {
    /// Records the gradients by all inputs, from what [`Attention::forward_saved`] saved.
    ///
    /// Deterministic: no sum depends on the order in which workgroups run. Memory beyond the
    /// gradients is 8 bytes a query row.
    ///
    /// # Errors
    /// As [`Attention::forward`]; [`Error::NotDifferentiable`] if the modifier changes scores and
    /// has no derivative.
    pub fn backward(&self, saved: &Saved, cotangents: Cotangents<'_>) -> Result<Grads> {
        let inputs = saved.inputs();
        let shape = self.check(inputs)?;
        self.check_cotangents(saved, cotangents, &shape)?;
        let dtype = inputs.q.dtype();
        let call = self.prepare(inputs, shape)?;
        let (width_qk, width_v) = (call.q.shape()[3], call.v.shape()[3]);
        let dq_shape = [shape.batch, shape.heads, shape.queries, width_qk];
        let kv_shape = [shape.batch, shape.heads_kv, shape.keys * (width_qk + width_v)];
        let rows = shape.batch * shape.heads * shape.queries;
        let (dq, dkv, d_sinks);
        if rows == 0 || shape.keys == 0 {
            dq = Tensor::zeros(&self.gpu, &dq_shape, dtype)?;
            dkv = Tensor::zeros(&self.gpu, &kv_shape, dtype)?;
        } else {
            dq = Tensor::uninit(&self.gpu, &dq_shape, dtype)?;
            dkv = Tensor::uninit(&self.gpu, &kv_shape, dtype)?;
        }
        if rows == 0 {
            d_sinks = match &call.sinks {
                Some(sinks) => Some(Tensor::zeros(&self.gpu, sinks.shape(), DType::F32)?),
                None => None,
            };
        } else {
            let d_out = vec4(cotangents.out, false)?;
            let stats = [2, shape.batch, shape.heads, shape.queries];
            let stats = Tensor::uninit(&self.gpu, &stats, DType::F32)?;
            self.delta_into(&call, saved, &d_out, cotangents.lse, &stats)?;
            if shape.keys > 0 {
                self.run_queries(&call, &d_out, &stats, &dq)?;
                self.run_keys(&call, &d_out, &stats, &dkv)?;
            }
            d_sinks = self.sink_gradient(&call, &stats)?;
        }
        // dk and dv of one key head follow each other.
        let part = |start: usize, width: usize, dim: usize| -> Result<Tensor> {
            dkv.narrow(2, start, shape.keys * width)?
                .split(2, &[shape.keys, width])?
                .narrow(3, 0, dim)
        };
        Ok(Grads {
            dq: dq.narrow(3, 0, shape.dim_qk)?,
            dk: part(0, width_qk, shape.dim_qk)?,
            dv: part(shape.keys * width_qk, width_v, shape.dim_v)?,
            d_sinks,
        })
    }

    /// [`Attention::backward`] into a caller's tensors, by a copy on the device. `d_sinks` is written
    /// where there are sinks.
    ///
    /// # Errors
    /// As [`Attention::backward`], and [`attn_core::Error`] for targets of another shape or type.
    pub fn backward_into(
        &self,
        saved: &Saved,
        cotangents: Cotangents<'_>,
        targets: &Grads,
    ) -> Result<()> {
        let grads = self.backward(saved, cotangents)?;
        ops::copy(&grads.dq, &targets.dq)?;
        ops::copy(&grads.dk, &targets.dk)?;
        ops::copy(&grads.dv, &targets.dv)?;
        match (&grads.d_sinks, &targets.d_sinks) {
            (Some(d_sinks), Some(target)) => ops::copy(d_sinks, target),
            _ => Ok(()),
        }
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

    fn run_queries(&self, call: &Call, d_out: &Tensor, stats: &Tensor, dq: &Tensor) -> Result<()> {
        let shape = &call.shape;
        let variant = Variant::backward(shape.dim_qk, shape.dim_v, self.gpu.capabilities());
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

    fn run_keys(&self, call: &Call, d_out: &Tensor, stats: &Tensor, dkv: &Tensor) -> Result<()> {
        let shape = &call.shape;
        let group = shape.group();
        let variant = Variant::backward(shape.dim_qk, shape.dim_v, self.gpu.capabilities());
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
        // dk and dv of a plane are one row of `dkv`.
        let gradients = |job: &Job| {
            let heads = job.heads_kv(group);
            dkv.narrow(0, job.batch.start, job.batch.len())?.narrow(1, heads.start, heads.len())
        };
        let jobs = Job::split(&grid, &self.gpu, work, |job| {
            let mut windows = call.windows(job, &queries, &keys(job))?;
            windows.push(("d_out", bytes(&job.window(d_out, &job.heads, &queries)?)));
            windows.push(("dk and dv", bytes(&gradients(job)?)));
            windows.push(("lse", bytes(stats)));
            Ok(windows)
        })?;
        for job in jobs {
            let bounds = call.bind(&job, &queries, &keys(&job))?;
            let d_out = bind(&job.window(d_out, &job.heads, &queries)?, 0);
            let (grads, grad_start) = gradients(&job)?.binding();
            let plane = job.batch.start * shape.heads + job.heads.start;
            let total = planes(&job) * job.tiles.len();
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
                grad_start: (grad_start / 4) as u32,
            };
            let dispatch = Dispatch {
                bindings: &[
                    bounds.q.binding,
                    bounds.k.binding,
                    bounds.v.binding,
                    d_out.binding,
                    stats.binding().0,
                    grads,
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

    fn sink_gradient(&self, call: &Call, stats: &Tensor) -> Result<Option<Tensor>> {
        let Some(sinks) = &call.sinks else { return Ok(None) };
        let shape = &call.shape;
        let d_sinks = Tensor::uninit(&self.gpu, &[shape.heads], DType::F32)?;
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
        kernel.dispatch(&self.gpu, &dispatch)?;
        Ok(Some(d_sinks))
    }
}
