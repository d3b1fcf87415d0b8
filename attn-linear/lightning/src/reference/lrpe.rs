//! Linearised relative position embedding.

use attn_core::{Error, Result};
use ndarray::{Array2, Array4, ArrayView2, ArrayView4, Axis, concatenate};

use super::expect;

/// The angles that training starts from, `[heads, dim]`: `10000^(-2 j / (heads dim))`, `j` running over
/// all elements of all heads.
pub fn initial_theta(heads: usize, dim: usize) -> Array2<f64> {
    let all = (heads * dim) as f64;
    let theta = |(h, d): (usize, usize)| 10_000_f64.powf(-2.0 * (h * dim + d) as f64 / all);
    Array2::from_shape_fn((heads, dim), theta)
}

/// `[x cos(n theta), x sin(n theta)]`, `[batch, heads, tokens, 2 dim]`, for `x`
/// `[batch, heads, tokens, dim]` at the positions `n = first, first + 1, ..` and `theta`
/// `[heads, dim]`. Products of two such rows depend on the difference of their positions alone:
/// `sum_d q_d k_d cos((n - m) theta_d)`.
///
/// # Errors
/// [`Error::Shape`] where the extents do not fit together.
pub fn lrpe(
    x: ArrayView4<'_, f64>,
    theta: ArrayView2<'_, f64>,
    first: usize,
) -> Result<Array4<f64>> {
    let [cos, sin] = waves(x.dim(), theta, first)?;
    join(&x * &cos, &x * &sin)
}

/// Vector-Jacobian product of [`lrpe`]: the derivatives by `x` and by `theta` from the cotangent `d_y`
/// `[batch, heads, tokens, 2 dim]`.
///
/// ```text
/// dx     = dy_c cos + dy_s sin
/// dtheta = sum_n n (dy_s x cos - dy_c x sin)
/// ```
///
/// # Errors
/// As [`lrpe`].
pub fn lrpe_backward(
    x: ArrayView4<'_, f64>,
    theta: ArrayView2<'_, f64>,
    first: usize,
    d_y: ArrayView4<'_, f64>,
) -> Result<(Array4<f64>, Array2<f64>)> {
    let [cos, sin] = waves(x.dim(), theta, first)?;
    let (batch, heads, tokens, dim) = x.dim();
    expect("d_y", d_y.shape(), &[batch, heads, tokens, 2 * dim])?;
    let (dc, ds) = d_y.split_at(Axis(3), dim);
    let dx = &dc * &cos + &ds * &sin;
    let mut slopes = (&ds * &cos - &dc * &sin) * x;
    for (n, mut slopes) in slopes.axis_iter_mut(Axis(2)).enumerate() {
        slopes *= (first + n) as f64;
    }
    Ok((dx, slopes.sum_axis(Axis(2)).sum_axis(Axis(0))))
}

/// Cosine and sine of every angle, `[1, heads, tokens, dim]`.
fn waves(
    (_, heads, tokens, dim): (usize, usize, usize, usize),
    theta: ArrayView2<'_, f64>,
    first: usize,
) -> Result<[Array4<f64>; 2]> {
    expect("theta", theta.shape(), &[heads, dim])?;
    let angles = Array4::from_shape_fn((1, heads, tokens, dim), |(_, h, n, d)| {
        (first + n) as f64 * theta[[h, d]]
    });
    Ok([angles.cos(), angles.sin()])
}

fn join(cos: Array4<f64>, sin: Array4<f64>) -> Result<Array4<f64>> {
    concatenate(Axis(3), &[cos.view(), sin.view()])
        .map_err(|_| Error::shape("x", "an array of which twice as many elements fit", cos.shape()))
}
