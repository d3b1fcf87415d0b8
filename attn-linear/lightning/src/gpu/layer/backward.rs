//! The derivative of a layer.

use attn_core::Error;
use attn_wgpu::linear_attention::Cotangents;
use attn_wgpu::matmul::{Epilogue, matmul, matmul_into};
use attn_wgpu::norm::simple_rms_norm_backward;
use attn_wgpu::{DType, Result, Tensor, ops};

use super::{Layer, Mixer, Output, Unit, Weights, product};
use crate::gpu::State;
use crate::gpu::kernels::{Each, SILU_BACKWARD};
use crate::gpu::lrpe::whole;

/// What [`Layer::backward`] needs of a forward pass.
pub struct Saved {
    x: Tensor,
    mixer: Mixer,
    unit: Unit,
}

/// Derivatives of a loss by what a layer read.
#[derive(Debug)]
#[non_exhaustive]
pub struct Grads {
    /// By the tokens, `[batch, tokens, d_model]`.
    pub dx: Tensor,
    /// By the weights.
    pub weights: Weights,
}

impl Layer {
    /// [`Layer::forward`], and what [`Layer::backward`] needs.
    ///
    /// # Errors
    /// As [`Layer::forward`].
    pub fn forward_saved(&self, x: &Tensor, state: Option<&State>) -> Result<(Output, Saved)> {
        let mixer = self.mix(x, state, true)?;
        let unit = self.unit(x, &mixer)?;
        let saved = Saved { x: x.clone(), mixer: mixer.clone(), unit: unit.clone() };
        Ok((self.output(x, mixer, &unit)?, saved))
    }

    /// Records the gradients from the cotangent `d_out` `[batch, tokens, d_model]` of the output. Slopes and
    /// the state before the first token get none.
    ///
    /// # Errors
    /// As [`Layer::forward`].
    pub fn backward(&self, saved: &Saved, d_out: &Tensor) -> Result<Grads> {
        let Saved { x, mixer, unit } = saved;
        self.check(d_out)?;
        if d_out.shape() != x.shape() {
            return Err(Error::shape("d_out", format!("{:?}", x.shape()), d_out.shape()).into());
        }
        let (weights, epsilon) = (&self.weights, self.epsilon());
        let (d_product, d_w_o) = linear(&unit.product, &weights.w_o, d_out)?;
        let (by_v, d_w_v) = linear(&unit.n, &weights.w_v, &product(&d_product, &unit.u)?)?;
        let (by_u, d_w_u) = linear(&unit.n, &weights.w_u, &product(&d_product, &unit.v)?)?;
        let d_n = ops::add(&by_v, &by_u)?;
        let d_after = ops::add(d_out, &simple_rms_norm_backward(&unit.after, &d_n, epsilon)?)?;

        let gate = mixer.vu.narrow(2, self.hidden, self.hidden)?;
        let gated = product(&gate, &mixer.normed)?;
        let (d_gated, d_w_out) = linear(&gated, &weights.w_out, &d_after)?;
        let d_normed = product(&d_gated, &gate)?;
        let d_merged = simple_rms_norm_backward(&mixer.merged, &d_normed, epsilon)?;
        let (d_projected, d_theta) = self.attention_backward(mixer, &d_merged)?;
        let d_gate = d_projected.narrow(2, 3 * self.hidden, self.hidden)?;
        ops::copy(&product(&d_gated, &mixer.normed)?, &d_gate)?;

        let (d_n, d_w_qkvu) = linear(&mixer.n, &weights.w_qkvu, &d_projected)?;
        let dx = ops::add(&d_after, &simple_rms_norm_backward(x, &d_n, epsilon)?)?;
        let weights = Weights {
            w_qkvu: d_w_qkvu,
            w_out: d_w_out,
            w_v: d_w_v,
            w_u: d_w_u,
            w_o: d_w_o,
            theta: d_theta,
        };
        Ok(Grads { dx, weights })
    }

    /// From the cotangent of the heads' outputs to that of the projection, in which the gate's part is left
    /// open, and of the angles.
    fn attention_backward(
        &self,
        mixer: &Mixer,
        d_merged: &Tensor,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let gpu = self.lightning.gpu();
        let Some(saved) = &mixer.saved else {
            return Err(Error::config("saved", "of `forward_saved`", "nothing").into());
        };
        let d_heads = self.heads(d_merged, 0)?;
        let grads = self.lightning.backward(saved, Cotangents::new(&d_heads))?;
        let (dq, dk, d_theta) = match &self.lrpe {
            None => (grads.dq, grads.dk, None),
            Some(lrpe) => {
                let (dq, by_q) = lrpe.backward(&mixer.active[0], mixer.first, &grads.dq)?;
                let (dk, by_k) = lrpe.backward(&mixer.active[1], mixer.first, &grads.dk)?;
                (dq, dk, Some(ops::add(&by_q, &by_k)?))
            }
        };
        let [batch, tokens] = [d_merged.shape()[0], d_merged.shape()[1]];
        let new =
            |parts: usize| Tensor::uninit(gpu, &[batch, tokens, parts * self.hidden], DType::F32);
        let (d_active, d_projected) = (new(2)?, new(4)?);
        ops::copy(&dq, &self.heads(&d_active, 0)?)?;
        ops::copy(&dk, &self.heads(&d_active, 1)?)?;
        ops::copy(&grads.dv, &self.heads(&d_projected, 2)?)?;
        let d_qk = new(2)?;
        let run = Each {
            source: &SILU_BACKWARD,
            flags: &[],
            tensors: &[&whole(&mixer.qk)?, &d_active, &d_qk],
            count: d_qk.len(),
            params: &[],
            steps: 0,
            work: 20,
        };
        run.record(gpu)?;
        ops::copy(&d_qk, &d_projected.narrow(2, 0, 2 * self.hidden)?)?;
        Ok((d_projected, d_theta))
    }
}

/// Derivatives of `x w^T` by `x` `[batch, tokens, in]` and `w` `[out, in]`.
fn linear(x: &Tensor, w: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let rows = |x: &Tensor| {
        let shape = x.shape();
        x.contiguous()?.reshape(&[shape[0] * shape[1], shape[2]])
    };
    let dw = Tensor::uninit(w.gpu(), w.shape(), DType::F32)?;
    matmul_into(&rows(dy)?.permute(&[1, 0])?, &rows(x)?, &Epilogue::new(), &dw)?;
    Ok((matmul(dy, w)?, dw))
}
