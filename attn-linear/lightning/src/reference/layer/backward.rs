//! The derivative of a layer.

use attn_core::Result;
use ndarray::{Array2, Array3, ArrayView3, ArrayView4, s};

use super::{Mixer, Size, Weights};
use crate::Config;
use crate::reference::{
    Cotangents, Inputs, State, backward_chunked, expect, linear, lrpe, norm, sglu,
};

/// Derivatives of a loss by what a layer read.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Grads {
    /// By the tokens, `[batch, tokens, d_model]`.
    pub dx: Array3<f64>,
    /// By the weights.
    pub weights: Weights,
}

/// Vector-Jacobian product of [`super::forward`], from the cotangent `d_out` `[batch, tokens, d_model]`
/// of its output. Slopes and the state before the first token get no derivative.
///
/// # Errors
/// As [`super::forward`].
pub fn backward(
    x: ArrayView3<'_, f64>,
    state: Option<&State>,
    weights: &Weights,
    d_out: ArrayView3<'_, f64>,
    config: &Config,
) -> Result<Grads> {
    let size = Size::of(x, weights, config)?;
    expect("d_out", d_out.shape(), x.shape())?;
    let mixer = Mixer::forward(x, state, weights, config, &size)?;
    let epsilon = config.epsilon;
    let x = linear::rows(x);
    let gated = &mixer.u * &mixer.normed;
    let y = &x + &linear::apply(&gated, weights.w_out.view());

    let d_out = linear::rows(d_out);
    let n2 = norm::srmsnorm(y.view(), epsilon);
    let (d_n2, [d_w_v, d_w_u, d_w_o]) = sglu::backward_of_rows(&n2, weights.sglu(), &d_out);
    let dy = d_out + norm::srmsnorm_backward(y.view(), epsilon, d_n2.view())?;

    let (d_gated, d_w_out) = linear::backward(&gated, weights.w_out.view(), &dy);
    let d_normed = &d_gated * &mixer.u;
    let d_merged = norm::srmsnorm_backward(mixer.merged.view(), epsilon, d_normed.view())?;
    let (mut d_projected, d_theta) =
        mixer.attention_backward(&d_merged, state, weights, config, &size)?;
    d_projected.slice_mut(s![.., 3 * size.hidden..]).assign(&(&d_gated * &mixer.normed));

    let (d_n, d_w_qkvu) = linear::backward(&mixer.n, weights.w_qkvu.view(), &d_projected);
    let dx = dy + norm::srmsnorm_backward(x.view(), epsilon, d_n.view())?;
    Ok(Grads {
        dx: linear::tokens(&dx, size.batch, size.tokens),
        weights: Weights {
            w_qkvu: d_w_qkvu,
            w_out: d_w_out,
            w_v: d_w_v,
            w_u: d_w_u,
            w_o: d_w_o,
            theta: d_theta,
        },
    })
}

impl Mixer {
    /// From the cotangent of the heads' outputs to those of the projection, with 0 for the gate, and of
    /// the angles.
    fn attention_backward(
        &self,
        d_merged: &Array2<f64>,
        state: Option<&State>,
        weights: &Weights,
        config: &Config,
        size: &Size,
    ) -> Result<(Array2<f64>, Option<Array2<f64>>)> {
        let inputs = Inputs {
            kv: state.map(State::kv),
            ..Inputs::new(self.q.view(), self.k.view(), self.v.view())
        };
        let d_heads = linear::split_heads(d_merged.view(), size.heads());
        let grads = backward_chunked(inputs, Cotangents::new(d_heads.view()), config)?;
        let (dq, dk, d_theta) = match &weights.theta {
            None => (grads.dq, grads.dk, None),
            Some(theta) => {
                let rotated = |x: ArrayView4<'_, f64>, d_y: ArrayView4<'_, f64>| {
                    lrpe::lrpe_backward(x, theta.view(), self.first, d_y)
                };
                let (dq, by_q) = rotated(self.active[0].view(), grads.dq.view())?;
                let (dk, by_k) = rotated(self.active[1].view(), grads.dk.view())?;
                (dq, dk, Some(by_q + by_k))
            }
        };
        let mut d_projected = Array2::zeros(self.projected.raw_dim());
        for (i, d_part) in [dq, dk, grads.dv].iter().enumerate() {
            let part = s![.., i * size.hidden..(i + 1) * size.hidden];
            let mut d_part = linear::merge_heads(d_part.view());
            if i < 2 {
                d_part.zip_mut_with(&self.projected.slice(part), |d, x| *d *= silu_slope(*x));
            }
            d_projected.slice_mut(part).assign(&d_part);
        }
        Ok((d_projected, d_theta))
    }
}

/// The derivative of silu.
fn silu_slope(x: f64) -> f64 {
    let sigmoid = 1.0 / (1.0 + (-x).exp());
    sigmoid * (1.0 + x * (1.0 - sigmoid))
}
