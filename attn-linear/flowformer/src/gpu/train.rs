//! Derivatives on a device: the steps of a forward pass in the reverse order, each by a kernel of its kind.

use attn_core::{AttentionShape, Error};
use attn_wgpu::linear_attention;
use attn_wgpu::matmul::matmul;
use attn_wgpu::scan::{Columns, Recurrence, RowDot, column_sums, recurrence, row_dot};
use attn_wgpu::{DType, Result, Tensor, ops};

use super::kernels::{BACK, Run};
use super::parts::{Formula, Pass, Side, planes, scale_rows, single_heads, whole};
use super::sums::{Totals, product};
use super::{Flowformer, Inputs, Output, is_empty};

/// What [`Flowformer::backward`] needs of a call.
#[derive(Clone)]
pub struct Saved {
    shape: AttentionShape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
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
        let shape = self.check(inputs)?;
        let (q, k, v) = (inputs.q.clone(), inputs.k.clone(), inputs.v.clone());
        if is_empty(&shape) {
            return Ok((self.nothing(inputs, &shape)?, Saved { shape, q, k, v, pass: None }));
        }
        let pass = self.pass(inputs, &shape)?;
        let output = pass.output()?;
        Ok((output, Saved { shape, q, k, v, pass: Some(std::sync::Arc::new(pass)) }))
    }

    /// The vector-Jacobian product of [`Flowformer::forward`], exact; see [`crate::reference::backward`]. A state
    /// before the first token counts as a constant.
    ///
    /// # Errors
    /// [`attn_core::Error`] for a cotangent of another shape or type; errors of the device.
    pub fn backward(&self, saved: &Saved, cotangents: Cotangents<'_>) -> Result<Grads> {
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
            let zeros = |x: &Tensor| Tensor::zeros(&self.gpu, x.shape(), x.dtype());
            let (dq, dk, dv) = (zeros(&saved.q)?, zeros(&saved.k)?, zeros(&saved.v)?);
            return Ok(Grads { dq, dk, dv });
        };
        let [dq, dk, dv] = self.through(saved, pass, d_out)?;
        Ok(Grads {
            dq: ops::convert(&dq, saved.q.dtype())?,
            dk: ops::convert(&dk, saved.k.dtype())?,
            dv: ops::convert(&dv, saved.v.dtype())?,
        })
    }

    fn through(&self, saved: &Saved, pass: &Pass, d_out: &Tensor) -> Result<[Tensor; 3]> {
        let (sinks, sources, flows) = (&pass.sinks, &pass.sources, &pass.flows);
        let shape = pass.shape;
        let totals = Totals { causal: self.config.causal };
        let shift = self.config.shift();
        let (a, b) = (sinks.rows()?, sources.rows()?);

        // o = (alloc / I) r with r = a M.
        let out = pass.out.narrow(3, 0, shape.dim_v)?;
        let d_scale = row_dot(RowDot::new(d_out, &out))?;
        let padded = sinks.sigmoids.shape()[2];
        let d_r = scale_rows(&whole(d_out)?, &pass.scale, 0.0, padded)?;
        let core = self.core_back(pass, &d_r)?;
        let competition = &flows.competition;
        let d_weighted = core.weighted.narrow(2, 0, shape.keys)?;
        let dv = scale_rows(&d_weighted, competition, 0.0, shape.keys)?;
        let dv = grouped(&dv, shape.heads_kv)?.narrow(3, 0, shape.dim_v)?.contiguous()?;
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
        let dq = self.sigmoid_back(
            (sinks, shape.heads),
            &core.sinks,
            [&d_sink, &pass.rates[0], &d_incoming],
            [k_hat, &d_q_hat, k, &d_q],
        )?;
        let dk = self.sigmoid_back(
            (sources, shape.heads_kv),
            &core.sources,
            [&d_source, &pass.rates[1], &d_outgoing],
            [q_hat, &d_k_hat, q, &d_k],
        )?;
        Ok([dq, dk, dv])
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
        (side, heads_out): (&Side, usize),
        core: &Tensor,
        numbers: [&Tensor; 3],
        sums: [&Tensor; 4],
    ) -> Result<Tensor> {
        let &[batch, heads, padded, width] = side.sigmoids.shape() else {
            return Ok(core.clone());
        };
        let &[_, _, rows, dim] = sums[0].shape() else { return Ok(core.clone()) };
        let vectors = Tensor::uninit(&self.gpu, &[batch, heads, rows, 4 * width], DType::F32)?;
        for (slot, sum) in sums.into_iter().enumerate() {
            ops::copy(sum, &vectors.narrow(3, slot * width, dim)?)?;
        }
        let shape = [batch, heads_out, side.tokens, width];
        let out = Tensor::uninit(&self.gpu, &shape, DType::F32)?;
        let step = if rows > 1 { width } else { 0 };
        let params =
            [heads_out, side.tokens, width / 4, heads / heads_out, padded, step, rows * width];
        let mut params: Vec<u32> = params.iter().map(|&number| number as u32).collect();
        params.push(self.config.shift().to_bits());
        let [f_0, f_1, f_2] = numbers;
        let run = Run {
            source: &BACK,
            flags: &[],
            tensors: &[&side.sigmoids, core, f_0, f_1, f_2, &vectors, &out],
            count: out.len() / 4,
            params: &params,
            steps: heads / heads_out,
        };
        run.record(&self.gpu)?;
        out.narrow(3, 0, dim)?.contiguous()
    }
}

/// Sums over the heads that share one of `heads_kv`.
fn grouped(x: &Tensor, heads_kv: usize) -> Result<Tensor> {
    let &[batch, heads, tokens, width] = x.shape() else { return Ok(x.clone()) };
    if heads == heads_kv {
        return Ok(x.clone());
    }
    let members = x.reshape(&[batch, heads_kv, heads / heads_kv, tokens * width])?;
    let sums = column_sums(Columns::new(&members))?;
    sums.reshape(&[batch, heads_kv, tokens, width])
}
