//! Derivatives on a device: the steps of a forward pass in the reverse order, each by a kernel of its kind.

use attn_core::{AttentionShape, Error};
use attn_wgpu::linear_attention;
use attn_wgpu::matmul::matmul;
use attn_wgpu::scan::{Columns, Recurrence, RowDot, column_sums_into, recurrence, row_dot};
use attn_wgpu::{DType, Result, Tensor, ops};

use super::kernels::{BACK, Each};
use super::parts::{Formula, Pass, Side, planes, scale_rows, scale_rows_into, single_heads, whole};
use super::sums::{Totals, product};
use super::{Flowformer, Inputs, Output, is_empty};

/// What [`Flowformer::backward`] needs of a call.
#[derive(Clone)]
pub struct Saved {
    shape: AttentionShape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// f32, whatever the result is stored as.
    out: Tensor,
    pass: Option<std::sync::Arc<Pass>>,
}

impl std::fmt::Debug for Saved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saved").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl Saved {
    /// The same with queries, keys and values at another place: a caller's allocator may have moved them.
    /// Their elements must be those of the forward pass.
    ///
    /// # Errors
    /// [`Error::Shape`] for tensors of another shape.
    pub fn with_inputs(self, inputs: Inputs<'_>) -> Result<Saved> {
        let pairs = [("q", &self.q, inputs.q), ("k", &self.k, inputs.k), ("v", &self.v, inputs.v)];
        for (arg, old, new) in pairs {
            if old.shape() != new.shape() {
                return Err(Error::shape(arg, format!("{:?}", old.shape()), new.shape()).into());
            }
        }
        let (q, k, v) = (inputs.q.clone(), inputs.k.clone(), inputs.v.clone());
        Ok(Saved { q, k, v, ..self })
    }

    /// The same with the output at another place, with the elements of the forward pass. Half types make no
    /// difference: gradients need the output in f32, which is then kept apart.
    ///
    /// # Errors
    /// [`Error::Shape`] for a tensor of another shape.
    pub fn with_out(self, out: &Tensor) -> Result<Saved> {
        if out.shape() != self.shape.out() {
            let expected = format!("{:?}", self.shape.out());
            return Err(Error::shape("out", expected, out.shape()).into());
        }
        let out = if out.dtype() == DType::F32 { out.clone() } else { self.out };
        Ok(Saved { out, ..self })
    }
}

/// Derivatives of a loss by what [`Flowformer::forward`] returned.
#[derive(Debug, Clone, Copy)]
pub struct Cotangents<'a> {
    /// By the output `[batch, heads, queries, dim_v]`, f32 or a half type; it does not matter for padding.
    pub out: &'a Tensor,
}

/// Derivatives of a loss by the inputs, of their types; 0 for padding.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Grads {
    /// By the queries `[batch, heads, queries, dim_qk]`.
    pub dq: Tensor,
    /// By the keys `[batch, heads_kv, keys, dim_qk]`.
    pub dk: Tensor,
    /// By the values `[batch, heads_kv, keys, dim_v]`.
    pub dv: Tensor,
}

/// Where [`Flowformer::backward_into`] writes gradients, of the shapes of [`Grads`], each in its own type; what
/// has no target is not computed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Targets<'a> {
    /// By the queries.
    pub dq: Option<&'a Tensor>,
    /// By the keys.
    pub dk: Option<&'a Tensor>,
    /// By the values.
    pub dv: Option<&'a Tensor>,
}

/// Of a sum of products, by its factors: `[batch, heads, padded rows, width]` each.
struct Core {
    /// By a, through the product alone.
    sinks: Tensor,
    /// By b.
    sources: Tensor,
    /// By comp v.
    weighted: Tensor,
}

impl Flowformer {
    /// [`Flowformer::forward`], and what [`Flowformer::backward`] needs of it.
    ///
    /// # Errors
    /// As [`Flowformer::forward`].
    pub fn forward_saved(&self, inputs: Inputs<'_>) -> Result<(Output, Saved)> {
        let out = self.new_out(&inputs)?;
        self.forward_saved_into(inputs, &out)
    }

    /// [`Flowformer::forward_saved`] with the output in a caller's tensor, as [`Flowformer::forward_into`]. An
    /// output in f32 is not kept a second time, see [`Saved::with_out`].
    ///
    /// # Errors
    /// As [`Flowformer::forward_into`].
    pub fn forward_saved_into(&self, inputs: Inputs<'_>, out: &Tensor) -> Result<(Output, Saved)> {
        let shape = self.check(inputs)?;
        ops::check_target("out", out, &self.gpu, &shape.out())?;
        let (q, k, v) = (inputs.q.clone(), inputs.k.clone(), inputs.v.clone());
        if is_empty(&shape) {
            let output = self.nothing(inputs, &shape, out)?;
            return Ok((output, Saved { shape, q, k, v, out: out.clone(), pass: None }));
        }
        let (pass, own) = self.pass(inputs, &shape, out)?;
        let output = pass.output(out.clone())?;
        let pass = Some(std::sync::Arc::new(pass));
        Ok((output, Saved { shape, q, k, v, out: own, pass }))
    }

    /// The vector-Jacobian product of [`Flowformer::forward`], exact; see [`crate::reference::backward`]. A state
    /// before the first token counts as a constant.
    ///
    /// # Errors
    /// [`attn_core::Error`] for a cotangent of another shape or type; errors of the device.
    pub fn backward(&self, saved: &Saved, cotangents: Cotangents<'_>) -> Result<Grads> {
        let new = |x: &Tensor| Tensor::uninit(&self.gpu, x.shape(), x.dtype());
        let (dq, dk, dv) = (new(&saved.q)?, new(&saved.k)?, new(&saved.v)?);
        let targets = Targets { dq: Some(&dq), dk: Some(&dk), dv: Some(&dv) };
        self.backward_into(saved, cotangents, targets)?;
        Ok(Grads { dq, dk, dv })
    }

    /// [`Flowformer::backward`] into callers' tensors, as [`Flowformer::forward_into`]. They must not overlap each
    /// other.
    ///
    /// # Errors
    /// As [`Flowformer::backward`], and [`attn_core::Error`] for targets of another shape or of integers.
    pub fn backward_into(
        &self,
        saved: &Saved,
        cotangents: Cotangents<'_>,
        targets: Targets<'_>,
    ) -> Result<()> {
        let Targets { dq, dk, dv } = targets;
        for (arg, target, like) in
            [("dq", dq, &saved.q), ("dk", dk, &saved.k), ("dv", dv, &saved.v)]
        {
            if let Some(target) = target {
                ops::check_target(arg, target, &self.gpu, like.shape())?;
            }
        }
        let (shape, d_out) = (saved.shape, cotangents.out);
        if d_out.shape() != shape.out() {
            let expected = format!("{:?}", shape.out());
            return Err(Error::shape("cotangents.out", expected, d_out.shape()).into());
        }
        if !matches!(d_out.dtype(), DType::F32 | DType::F16 | DType::BF16) {
            let (expected, got) = ("f32, f16 or bf16".into(), d_out.dtype().name().into());
            return Err(Error::Dtype { arg: "cotangents.out", expected, got }.into());
        }
        self.check_device("cotangents.out", d_out)?;
        let Some(pass) = &saved.pass else {
            for target in [targets.dq, targets.dk, targets.dv].into_iter().flatten() {
                let zeros = Tensor::zeros(&self.gpu, target.shape(), target.dtype())?;
                ops::convert_into(&zeros, target)?;
            }
            return Ok(());
        };
        self.through(saved, pass, d_out, targets)
    }

    fn through(
        &self,
        saved: &Saved,
        pass: &Pass,
        d_out: &Tensor,
        targets: Targets<'_>,
    ) -> Result<()> {
        let (sinks, sources, flows) = (&pass.sinks, &pass.sources, &pass.flows);
        let shape = pass.shape;
        let totals = Totals { causal: self.config.causal };
        let shift = self.config.shift();
        let (a, b) = (sinks.rows()?, sources.rows()?);

        // o = (alloc / I) r with r = a M.
        let d_scale = row_dot(RowDot::new(d_out, &saved.out))?;
        let padded = sinks.sigmoids.shape()[2];
        let d_r = scale_rows(&whole(d_out)?, &pass.scale, 0.0, padded)?;
        let core = self.core_back(pass, &d_r)?;
        let competition = &flows.competition;
        let d_weighted = core.weighted.narrow(2, 0, shape.keys)?;
        if let Some(dv) = targets.dv {
            values_back(&d_weighted, competition, dv)?;
        }
        let d_comp = row_dot(RowDot::new(&saved.v, &d_weighted.narrow(3, 0, shape.dim_v)?))?;

        // The softmax of the clamped flows, and the sigmoid of the others.
        let d_source = self.competition_back(pass, &d_comp)?;
        let sink = Formula {
            flags: &["D_SINK", "HAS_Y", "HAS_Z"],
            y: Some(&flows.allocation),
            z: Some(&flows.incoming),
            ..Formula::default()
        };
        let [d_sink, d_incoming] = sink.of(&d_scale, sinks)?;
        let d_k_hat = totals.back(&a, &d_sink, shift)?;
        let d_q_hat = totals.back(&b, &d_source, shift)?;

        // What the rates 1 / I and 1 / O, or t / I and t / O, were made of.
        let rate = |x: &Tensor, d_sum: &Tensor, flow: &Tensor, so_far: &Tensor, side: &Side| {
            let by_rate = row_dot(RowDot::new(x, d_sum))?;
            let flags = &["D_RATE", "HAS_Y", "HAS_Z"];
            let (y, z) = (Some(flow), Some(so_far));
            Ok::<_, attn_wgpu::Error>(
                Formula { flags, y, z, ..Formula::default() }.of(&by_rate, side)?[0].clone(),
            )
        };
        let none = Tensor::zeros(&self.gpu, flows.outgoing.shape(), DType::F32)?;
        let d_outgoing = rate(&b, &d_k_hat, &flows.outgoing, &none, sources)?;
        let d_incoming = rate(&a, &d_q_hat, &flows.incoming, &d_incoming, sinks)?;
        let d_k = totals.back(&a, &d_incoming, shift)?;
        let d_q = totals.back(&b, &d_outgoing, shift)?;

        let [k, q, k_hat, q_hat] = &pass.sums;
        if let Some(dq) = targets.dq {
            let numbers = [&d_sink, &pass.rates[0], &d_incoming];
            self.sigmoid_back(sinks, &core.sinks, numbers, [k_hat, &d_q_hat, k, &d_q], dq)?;
        }
        if let Some(dk) = targets.dk {
            let numbers = [&d_source, &pass.rates[1], &d_outgoing];
            self.sigmoid_back(sources, &core.sources, numbers, [q_hat, &d_k_hat, q, &d_k], dk)?;
        }
        Ok(())
    }

    /// By the factors of `r = a M` with `M = b^T w`.
    fn core_back(&self, pass: &Pass, d_r: &Tensor) -> Result<Core> {
        let (a, b) = (&pass.sinks.sigmoids, &pass.sources.sigmoids);
        if let Some(linear) = &pass.linear {
            let d_r = single_heads(d_r)?;
            let grads = self.linear.backward(linear, linear_attention::Cotangents::new(&d_r))?;
            return Ok(Core {
                sinks: grads.dq.reshape(a.shape())?,
                sources: grads.dk.reshape(b.shape())?,
                weighted: grads.dv.reshape(pass.weighted.shape())?,
            });
        }
        let transposed = |x: &Tensor| x.permute(&[0, 2, 1]);
        let d_memory = product(a, d_r)?;
        let by = |x: &Tensor, matrix: &Tensor, like: &Tensor| -> Result<Tensor> {
            matmul(&planes(x)?, matrix)?.reshape(like.shape())
        };
        Ok(Core {
            sinks: by(d_r, &transposed(&pass.memory)?, a)?,
            sources: by(&pass.weighted, &transposed(&d_memory)?, b)?,
            weighted: by(b, &d_memory, &pass.weighted)?,
        })
    }

    /// From the derivatives by the competition to those by t times the conserved flows.
    fn competition_back(&self, pass: &Pass, d_comp: &Tensor) -> Result<Tensor> {
        let (sources, flows) = (&pass.sources, &pass.flows);
        let own = Formula { flags: &["OWN", "HAS_Y"], y: Some(d_comp), ..Formula::default() };
        let [own, _] = own.of(&flows.competition, sources)?;
        let &[_, heads, tokens] = own.shape() else { return Ok(own) };
        let (rho, steps) = if self.config.causal {
            let [decay, _] = Formula { flags: &["DECAY"], ..Formula::default() }
                .of(&pass.lse.numbers, sources)?;
            let rows = own.split(2, &[tokens, 1])?;
            let call = Recurrence::new(&rows).with_coefficients(&decay).reversed();
            // Rows of four numbers, of which the first one counts.
            (recurrence(call)?.h, [4, 4 * tokens])
        } else {
            let rows = own.split(1, &[heads, 1])?;
            let ones = Tensor::full(&self.gpu, &[1, 1, 1, tokens], 1f32)?;
            (row_dot(RowDot::new(&rows, &ones))?, [0, 1])
        };
        let source = Formula {
            flags: &["D_SOURCE", "HAS_Y", "HAS_Z"],
            y: Some(&flows.competition),
            z: Some(&rho),
            w: Some(&flows.conserved_source),
            steps,
            clamp: self.config.clamp,
        };
        let [d_source, _] = source.of(d_comp, sources)?;
        Ok(d_source)
    }

    /// Through the sums of a side, and its sigmoids: see flow_back.wgsl.
    fn sigmoid_back(
        &self,
        side: &Side,
        core: &Tensor,
        numbers: [&Tensor; 3],
        sums: [&Tensor; 4],
        out: &Tensor,
    ) -> Result<()> {
        let &[batch, heads, padded, width] = side.sigmoids.shape() else { return Ok(()) };
        let &[_, _, rows, dim] = sums[0].shape() else { return Ok(()) };
        let heads_out = out.shape()[1];
        let vectors = Tensor::uninit(&self.gpu, &[batch, heads, rows, 4 * width], DType::F32)?;
        for (slot, sum) in sums.into_iter().enumerate() {
            ops::copy(sum, &vectors.narrow(3, slot * width, dim)?)?;
        }
        let step = if rows > 1 { width } else { 0 };
        let params =
            [heads_out, side.tokens, width / 4, heads / heads_out, padded, step, rows * width];
        let mut params: Vec<u32> = params.iter().map(|&number| number as u32).collect();
        params.push(self.config.shift().to_bits());
        let [f_0, f_1, f_2] = numbers;
        let read = [&side.sigmoids, core, f_0, f_1, f_2, &vectors];
        let record = |out: &Tensor| {
            let run = Each {
                source: &BACK,
                flags: &[],
                tensors: &[read.as_slice(), &[out]].concat(),
                count: out.len() / 4,
                params: &params,
                steps: heads / heads_out,
                work: 16 * (heads / heads_out),
            };
            run.record(&self.gpu)
        };
        ops::write_rows(out, &read, record)?;
        Ok(())
    }
}

/// Rows `x` `[batch, heads, keys, padded dim]` times numbers, added over the heads that share values.
fn values_back(x: &Tensor, numbers: &Tensor, out: &Tensor) -> Result<()> {
    let (heads, heads_kv, tokens) = (x.shape()[1], out.shape()[1], out.shape()[2]);
    if heads == heads_kv {
        let record = |out: &Tensor| scale_rows_into(x, numbers, 0.0, out);
        ops::write_rows(out, &[x, numbers], record)?;
        return Ok(());
    }
    let scaled = scale_rows(x, numbers, 0.0, tokens)?;
    ops::write_rows(out, &[&scaled], |out| {
        let width = tokens * out.shape()[3];
        let [batch, group] = [out.shape()[0], heads / heads_kv];
        let members = scaled.reshape(&[batch, heads_kv, group, width])?;
        column_sums_into(Columns::new(&members), &out.reshape(&[batch, heads_kv, width])?)
    })?;
    Ok(())
}
