//! The recurrence, token by token, and its derivative.

use attn_core::Result;
use ndarray::{Array2, Array4, ArrayView1, Axis, s};

use super::{Cotangents, Grads, Inputs, Output, head, state_of};
use crate::Config;

/// Attention as the recurrence defines it.
///
/// # Errors
/// [`attn_core::Error::Config`] for parameters out of range, [`attn_core::Error::Shape`] for tensors
/// that do not fit together or to the number of heads.
pub fn forward(inputs: Inputs<'_>, config: &Config) -> Result<Output> {
    let shape = inputs.check(config)?;
    let slopes = config.head_slopes()?;
    let mut out = Array4::zeros(shape.0.out());
    let mut states = Array4::zeros(shape.kv());
    for [b, h, h_kv] in shape.heads() {
        let lambda = (-slopes[h]).exp();
        let q = head(inputs.q, b, h);
        let (k, v) = (head(inputs.k, b, h_kv), head(inputs.v, b, h_kv));
        let mut kv = state_of(inputs.kv, &shape, b, h);
        for (t, mut out) in out.slice_mut(s![b, h, .., ..]).rows_mut().into_iter().enumerate() {
            kv *= lambda;
            add_outer(&mut kv, k.row(t), v.row(t));
            out.assign(&q.row(t).dot(&kv));
        }
        states.slice_mut(s![b, h, .., ..]).assign(&kv);
    }
    Ok(Output { out, kv: states })
}

/// Vector-Jacobian product of [`forward`]. With the state `KV_t` behind token t and its cotangent
/// `dKV_t`:
///
/// ```text
/// dKV_t = lambda dKV_(t+1) + q_t^T do_t         from the last token to the first
/// dq_t  = do_t KV_t^T     dk_t = v_t dKV_t^T     dv_t = k_t dKV_t
/// ```
///
/// Heads that share keys and values add up.
///
/// # Errors
/// As [`forward`].
pub fn backward(inputs: Inputs<'_>, cotangents: Cotangents<'_>, config: &Config) -> Result<Grads> {
    let shape = inputs.check(config)?;
    cotangents.check(&shape)?;
    let slopes = config.head_slopes()?;
    let mut grads = Grads::zeros(&shape);
    for [b, h, h_kv] in shape.heads() {
        let lambda = (-slopes[h]).exp();
        let q = head(inputs.q, b, h);
        let (k, v) = (head(inputs.k, b, h_kv), head(inputs.v, b, h_kv));
        let d_out = head(cotangents.out, b, h);
        let mut kv = state_of(inputs.kv, &shape, b, h);
        for t in 0..shape.0.queries {
            kv *= lambda;
            add_outer(&mut kv, k.row(t), v.row(t));
            grads.dq.slice_mut(s![b, h, t, ..]).assign(&kv.dot(&d_out.row(t)));
        }
        let mut d_kv = state_of(cotangents.kv, &shape, b, h);
        for t in (0..shape.0.queries).rev() {
            add_outer(&mut d_kv, q.row(t), d_out.row(t));
            let mut dk = grads.dk.slice_mut(s![b, h_kv, t, ..]);
            dk += &d_kv.dot(&v.row(t));
            let mut dv = grads.dv.slice_mut(s![b, h_kv, t, ..]);
            dv += &k.row(t).dot(&d_kv);
            d_kv *= lambda;
        }
        grads.d_kv.slice_mut(s![b, h, .., ..]).assign(&d_kv);
    }
    Ok(grads)
}

/// `sum += a^T b`.
fn add_outer(sum: &mut Array2<f64>, a: ArrayView1<'_, f64>, b: ArrayView1<'_, f64>) {
    for (mut row, &a) in sum.axis_iter_mut(Axis(0)).zip(a) {
        row.scaled_add(a, &b);
    }
}
