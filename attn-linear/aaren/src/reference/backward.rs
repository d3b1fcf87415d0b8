//! Derivatives, in one pass from the last token to the first.

use attn_core::{AttentionShape, Result};
use ndarray::{Array1, Array2, Array3, Array4, ArrayView2, ArrayView3, ArrayView4, s};

use super::element::Element;
use super::{Inputs, Output, State, check, expect, forward, weight};
use crate::Config;

/// Derivatives of a loss by what [`forward`] returned.
#[derive(Debug, Clone, Copy)]
pub struct Cotangents<'a> {
    /// By the outputs `[batch, heads, tokens, dim_v]`.
    pub out: ArrayView4<'a, f64>,
    /// By the log-sum-exps `[batch, heads, tokens]`, where the loss uses them.
    pub lse: Option<ArrayView3<'a, f64>>,
    /// By the output of the final state `[batch, heads, dim_v]`, as later parts of a stream give it.
    pub state_out: Option<ArrayView3<'a, f64>>,
    /// By the log-sum-exp of the final state `[batch, heads]`.
    pub state_lse: Option<ArrayView2<'a, f64>>,
}

impl<'a> Cotangents<'a> {
    /// Of a loss that uses the outputs alone.
    pub fn new(out: ArrayView4<'a, f64>) -> Self {
        Cotangents { out, lse: None, state_out: None, state_lse: None }
    }

    fn check(&self, shape: AttentionShape) -> Result<()> {
        expect("cotangents.out", self.out.shape(), &shape.out())?;
        if let Some(lse) = self.lse {
            expect("cotangents.lse", lse.shape(), &shape.lse())?;
        }
        let heads = [shape.batch, shape.heads, shape.dim_v];
        if let Some(out) = self.state_out {
            expect("cotangents.state_out", out.shape(), &heads)?;
        }
        if let Some(lse) = self.state_lse {
            expect("cotangents.state_lse", lse.shape(), &heads[..2])?;
        }
        Ok(())
    }
}

/// Derivatives of a loss by the inputs.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Grads {
    /// By the queries, of their shape: a query that the batch shares gets the sum over the batch.
    pub dq: Array3<f64>,
    /// By the keys `[batch, heads_kv, tokens, dim_qk]`.
    pub dk: Array4<f64>,
    /// By the values `[batch, heads_kv, tokens, dim_v]`.
    pub dv: Array4<f64>,
    /// By the output of the state before the first token `[batch, heads, dim_v]`; 0 without one.
    pub d_state_out: Array3<f64>,
    /// By the log-sum-exp of that state `[batch, heads]`; 0 without one.
    pub d_state_lse: Array2<f64>,
}

/// What flows back from a token to the one before it, each a sum over later tokens `r` with weights
/// `e^(lse_t - lse_r)`.
struct Carry {
    /// Of the cotangents of outputs, R.
    out: Array1<f64>,
    /// Of their products with the outputs, rho.
    delta: f64,
    /// Of the cotangents of log-sum-exps, lambda.
    lse: f64,
}

impl Carry {
    /// Of the cotangents of the final state alone.
    fn new(last: &Element, cotangents: Cotangents<'_>, [b, h]: [usize; 2]) -> Self {
        let own = cotangents.state_out.map(|out| out.slice_move(s![b, h, ..]).to_owned());
        let out = own.unwrap_or_else(|| Array1::zeros(last.weighted.len()));
        let lse = cotangents.state_lse.map_or(0.0, |lse| lse[[b, h]]);
        Carry { delta: out.dot(&last.out()), out, lse }
    }

    fn scale(&mut self, factor: f64) {
        self.out *= factor;
        self.delta *= factor;
        self.lse *= factor;
    }
}

/// The vector-Jacobian product of [`forward`].
///
/// ```text
/// c_t   = e^(lse_t - lse_(t+1))            at most 1: lse never falls; 0 where nothing counts yet
/// R_t   = do_t + c_t R_(t+1)
/// rho_t = do_t . o_t + c_t rho_(t+1)       lambda_t = dlse_t + c_t lambda_(t+1)
/// p_t   = e^(s_t - lse_t)                  0 for a masked token
/// dv_t  = p_t R_t                          ds_t = p_t (v_t . R_t - rho_t + lambda_t)
/// dk_t  = scale ds_t q                     dq = scale sum_t ds_t k_t
/// ```
///
/// The cotangents of the final state are added to those of the last token. The state before the first token
/// is a token 0 with score `lse_0` and value `o_0`: `do_0 = c_0 R_1`,
/// `dlse_0 = c_0 (o_0 . R_1 - rho_1 + lambda_1)`.
///
/// # Errors
/// As [`forward`], and for cotangents of other shapes.
pub fn backward(
    inputs: Inputs<'_>,
    state: Option<&State>,
    config: &Config,
    cotangents: Cotangents<'_>,
) -> Result<Grads> {
    let shape = check(inputs, state, config)?;
    cotangents.check(shape)?;
    let output = forward(inputs, state, config)?;
    let mut grads = Grads {
        dq: Array3::zeros(inputs.q.dim()),
        dk: Array4::zeros(shape.k()),
        dv: Array4::zeros(shape.v()),
        d_state_out: Array3::zeros((shape.batch, shape.heads, shape.dim_v)),
        d_state_lse: Array2::zeros((shape.batch, shape.heads)),
    };
    for b in 0..shape.batch {
        for h in 0..shape.heads {
            let (mut carry, lse) = grads.head(inputs, config, &output, cotangents, shape, [b, h]);
            let Some(state) = state else { continue };
            let first = state.at(b, h);
            carry.scale(weight(first.lse(), lse));
            let product = first.out().dot(&carry.out);
            grads.d_state_lse[[b, h]] = product - carry.delta + carry.lse;
            grads.d_state_out.slice_mut(s![b, h, ..]).assign(&carry.out);
        }
    }
    Ok(grads)
}

impl Grads {
    /// Adds what one head gives. Returns what flows back to before the first token, and the log-sum-exp to
    /// which its weights are relative.
    fn head(
        &mut self,
        inputs: Inputs<'_>,
        config: &Config,
        output: &Output,
        cotangents: Cotangents<'_>,
        shape: AttentionShape,
        [b, h]: [usize; 2],
    ) -> (Carry, f64) {
        let scale = config.scale_for(shape.dim_qk);
        let (entry, h_kv) = (if inputs.q.dim().0 == 1 { 0 } else { b }, h / shape.group());
        let scores = inputs.scores(scale, b, h, shape.group());
        let last = output.state.at(b, h);
        let (mut carry, mut next) = (Carry::new(&last, cotangents, [b, h]), last.lse());
        for t in (0..shape.keys).rev() {
            let lse = output.lse[[b, h, t]];
            carry.scale(weight(lse, next));
            next = lse;
            let d_out = cotangents.out.slice(s![b, h, t, ..]);
            carry.out += &d_out;
            carry.delta += d_out.dot(&output.out.slice(s![b, h, t, ..]));
            carry.lse += cotangents.lse.map_or(0.0, |d_lse| d_lse[[b, h, t]]);
            let Some(score) = scores[t] else { continue };
            let p = weight(score, lse);
            let value = inputs.v.slice(s![b, h_kv, t, ..]);
            let ds = p * (value.dot(&carry.out) - carry.delta + carry.lse);
            self.dv.slice_mut(s![b, h_kv, t, ..]).scaled_add(p, &carry.out);
            let (query, key) =
                (inputs.q.slice(s![entry, h, ..]), inputs.k.slice(s![b, h_kv, t, ..]));
            self.dk.slice_mut(s![b, h_kv, t, ..]).scaled_add(scale * ds, &query);
            self.dq.slice_mut(s![entry, h, ..]).scaled_add(scale * ds, &key);
        }
        (carry, next)
    }
}
