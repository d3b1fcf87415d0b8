//! The simple gated linear unit: two maps multiplied, without an activation.

use attn_core::Result;
use ndarray::{Array2, Array3, ArrayView2, ArrayView3};

use super::{expect, linear};

/// Weights of [`sglu`].
#[derive(Debug, Clone, Copy)]
pub struct Sglu<'a> {
    /// `[glu_dim, dim]`.
    pub w_v: ArrayView2<'a, f64>,
    /// `[glu_dim, dim]`.
    pub w_u: ArrayView2<'a, f64>,
    /// `[dim, glu_dim]`.
    pub w_o: ArrayView2<'a, f64>,
}

impl Sglu<'_> {
    pub(super) fn check(&self, dim: usize) -> Result<()> {
        let glu_dim = self.w_v.nrows();
        expect("w_v", self.w_v.shape(), &[glu_dim, dim])?;
        expect("w_u", self.w_u.shape(), &[glu_dim, dim])?;
        expect("w_o", self.w_o.shape(), &[dim, glu_dim])
    }
}

/// `((x Wv^T) * (x Wu^T)) Wo^T` of tokens `[batch, tokens, dim]`.
///
/// # Errors
/// [`attn_core::Error::Shape`] where weights do not fit.
pub fn sglu(x: ArrayView3<'_, f64>, weights: Sglu<'_>) -> Result<Array3<f64>> {
    let (batch, tokens, dim) = x.dim();
    weights.check(dim)?;
    Ok(linear::tokens(&of_rows(&linear::rows(x), weights), batch, tokens))
}

/// Vector-Jacobian product of [`sglu`]: the derivatives by `x`, `w_v`, `w_u` and `w_o`.
///
/// # Errors
/// As [`sglu`].
pub fn sglu_backward(
    x: ArrayView3<'_, f64>,
    weights: Sglu<'_>,
    d_y: ArrayView3<'_, f64>,
) -> Result<(Array3<f64>, [Array2<f64>; 3])> {
    let (batch, tokens, dim) = x.dim();
    weights.check(dim)?;
    expect("d_y", d_y.shape(), x.shape())?;
    let (dx, d_weights) = backward_of_rows(&linear::rows(x), weights, &linear::rows(d_y));
    Ok((linear::tokens(&dx, batch, tokens), d_weights))
}

pub(super) fn of_rows(x: &Array2<f64>, weights: Sglu<'_>) -> Array2<f64> {
    let product = linear::apply(x, weights.w_v) * linear::apply(x, weights.w_u);
    linear::apply(&product, weights.w_o)
}

pub(super) fn backward_of_rows(
    x: &Array2<f64>,
    weights: Sglu<'_>,
    d_y: &Array2<f64>,
) -> (Array2<f64>, [Array2<f64>; 3]) {
    let [v, u] = [weights.w_v, weights.w_u].map(|w| linear::apply(x, w));
    let (d_product, d_w_o) = linear::backward(&(&v * &u), weights.w_o, d_y);
    let (dx_v, d_w_v) = linear::backward(x, weights.w_v, &(&d_product * &u));
    let (dx_u, d_w_u) = linear::backward(x, weights.w_u, &(&d_product * &v));
    (dx_v + dx_u, [d_w_v, d_w_u, d_w_o])
}
