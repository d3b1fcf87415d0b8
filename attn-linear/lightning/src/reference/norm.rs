//! SimpleRMSNorm: a root-mean-square norm without a gain.

use attn_core::Result;
use ndarray::{Array, ArrayView, ArrayView1, Dimension};

use super::expect;

/// `y = x r` with `r = (mean(x^2) + epsilon)^(-1/2)` over the last axis.
pub fn srmsnorm<D: Dimension>(x: ArrayView<'_, f64, D>, epsilon: f64) -> Array<f64, D> {
    let mut y = x.to_owned();
    for mut row in y.rows_mut() {
        let r = inverse(row.view(), epsilon);
        row *= r;
    }
    y
}

/// Vector-Jacobian product of [`srmsnorm`]: `dx = r (dy - y mean(y dy))`, for `d_y` of the shape of `x`.
///
/// # Errors
/// [`attn_core::Error::Shape`] where the shapes differ.
pub fn srmsnorm_backward<D: Dimension>(
    x: ArrayView<'_, f64, D>,
    epsilon: f64,
    d_y: ArrayView<'_, f64, D>,
) -> Result<Array<f64, D>> {
    expect("d_y", d_y.shape(), x.shape())?;
    let mut dx = d_y.to_owned();
    for (mut row, x) in dx.rows_mut().into_iter().zip(x.rows()) {
        let r = inverse(x, epsilon);
        let mean = r * x.dot(&row) / x.len() as f64;
        row.zip_mut_with(&x, |d, x| *d = r * (*d - r * x * mean));
    }
    Ok(dx)
}

fn inverse(x: ArrayView1<'_, f64>, epsilon: f64) -> f64 {
    (x.dot(&x) / x.len() as f64 + epsilon).sqrt().recip()
}
