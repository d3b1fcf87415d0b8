//! Derivatives of the layer, with all routes fixed, and of the commitment loss.

use attn_core::{Error, Result};
use ndarray::{Array1, Array3, Array4, ArrayView4, Axis, s};

use super::{Centroids, Inputs, Normalised, Routes, check, normalise, weights};
use crate::Config;

/// Derivatives of a loss by the inputs.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Grads {
    /// By the queries, `[batch, heads, tokens, dim]`.
    pub dq: Array4<f64>,
    /// By the keys; 0 where keys are the queries.
    pub dk: Array4<f64>,
    /// By the values.
    pub dv: Array4<f64>,
}

/// The vector-Jacobian product of [`super::attend`] for the cotangent `d_out` of its output.
///
/// ```text
/// g    = dout_i / (n_i + epsilon)
/// dv_j = sum p_ij g     ds = p_ij (g . v_j - g . y_i)
/// dq^_i = scale sum_j ds k^_j     dk^_j = scale sum_i ds q^_i     sums over all centroids
/// dx   = (dx^ - mean dx^ - x^ mean(dx^ x^)) / sqrt(var + 1e-6)
/// ```
///
/// # Errors
/// As [`super::forward`], and for a cotangent of another shape.
pub fn backward(
    inputs: Inputs<'_>,
    routes: &Routes,
    config: &Config,
    d_out: ArrayView4<'_, f64>,
) -> Result<Grads> {
    let shape = inputs.check()?;
    if d_out.shape() != shape.out() {
        return Err(Error::shape("d_out", format!("{:?}", shape.out()), d_out.shape()));
    }
    let q = normalise(inputs.q);
    let k = if config.shared_qk { normalise(inputs.q) } else { normalise(inputs.k) };
    let (mut dq, mut dk) = (Array4::zeros(q.x.dim()), Array4::zeros(k.x.dim()));
    let mut dv = Array4::zeros(inputs.v.dim());
    for (plane, clusters) in routes.queries.iter().enumerate() {
        let (entry, head) = (plane / shape.heads, plane % shape.heads);
        let own_q = q.x.slice(s![entry, head, .., ..]);
        let own_k = k.x.slice(s![entry, head, .., ..]);
        let v = inputs.v.slice(s![entry, head, .., ..]);
        for (cluster, members) in clusters.iter().enumerate() {
            let keys = &routes.keys[plane][cluster];
            for &i in members {
                let weights = weights(own_q.row(i), own_k, keys, i, config);
                let total = routes.counts[[entry, head, i]] as f64 + config.epsilon;
                let g = d_out.slice(s![entry, head, i, ..]).mapv(|d| d / total);
                let products: Array1<f64> = keys.iter().map(|&j| g.dot(&v.row(j))).collect();
                let mean = products.dot(&weights);
                for ((&j, &weight), &product) in keys.iter().zip(&weights).zip(&products) {
                    dv.slice_mut(s![entry, head, j, ..]).scaled_add(weight, &g);
                    let ds = config.scale * weight * (product - mean);
                    dq.slice_mut(s![entry, head, i, ..]).scaled_add(ds, &own_k.row(j));
                    dk.slice_mut(s![entry, head, j, ..]).scaled_add(ds, &own_q.row(i));
                }
            }
        }
    }
    if config.shared_qk {
        dq += &dk;
        return Ok(Grads { dq: through_norm(&q, dq), dk: Array4::zeros(inputs.k.dim()), dv });
    }
    Ok(Grads { dq: through_norm(&q, dq), dk: through_norm(&k, dk), dv })
}

/// The commitment loss, which draws tokens to their centroids, and its derivatives by queries and keys:
///
/// ```text
/// beta mean (q^ - mu of q^)^2 + beta mean (k^ - mu of k^)^2
/// ```
///
/// Centroids get no derivative.
///
/// # Errors
/// As [`super::forward`].
pub fn commitment_loss(
    inputs: Inputs<'_>,
    routes: &Routes,
    centroids: &Centroids,
    config: &Config,
) -> Result<(f64, [Array4<f64>; 2])> {
    check(inputs, centroids, config)?;
    let q = normalise(inputs.q);
    let k = if config.shared_qk { normalise(inputs.q) } else { normalise(inputs.k) };
    let one = |x: &Normalised, assigned: &Array3<Option<usize>>| {
        let mut difference = Array4::<f64>::zeros(x.x.dim());
        for ((entry, head, token), cluster) in assigned.indexed_iter() {
            if let Some(cluster) = *cluster {
                let mean = centroids.means.slice(s![head, cluster, ..]);
                let row = &x.x.slice(s![entry, head, token, ..]) - &mean;
                difference.slice_mut(s![entry, head, token, ..]).assign(&row);
            }
        }
        let each = config.commitment / (difference.len().max(1)) as f64;
        let loss = each * difference.iter().map(|x| x * x).sum::<f64>();
        (loss, through_norm(x, difference * (2.0 * each)))
    };
    let (loss_q, mut dq) = one(&q, &routes.assigned_q);
    let (loss_k, mut dk) = one(&k, &routes.assigned_k);
    if config.shared_qk {
        dq += &dk;
        dk.fill(0.0);
    }
    Ok((loss_q + loss_k, [dq, dk]))
}

/// From derivatives by normalised rows to those by the rows.
fn through_norm(x: &Normalised, mut d: Array4<f64>) -> Array4<f64> {
    let dim = d.len_of(Axis(3)) as f64;
    let rows = d.rows_mut().into_iter().zip(x.x.rows()).zip(&x.inverse);
    for ((mut d, x), &inverse) in rows {
        let (mean, product) = (d.sum() / dim, d.dot(&x) / dim);
        d.zip_mut_with(&x, |d, &x| *d = (*d - mean - x * product) * inverse);
    }
    d
}
