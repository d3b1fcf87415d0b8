//! Linear maps `y = x W^T` of tokens, with weights `[out, in]`, and what changes the layout of tokens.

use ndarray::{Array2, Array3, Array4, ArrayView2, ArrayView3, ArrayView4};

/// `y = x W^T`.
pub fn apply(x: &Array2<f64>, w: ArrayView2<'_, f64>) -> Array2<f64> {
    x.dot(&w.t())
}

/// The derivatives by `x` and by `W`.
pub fn backward(
    x: &Array2<f64>,
    w: ArrayView2<'_, f64>,
    d_y: &Array2<f64>,
) -> (Array2<f64>, Array2<f64>) {
    (d_y.dot(&w), d_y.t().dot(x))
}

/// `[batch, tokens, dim]` as rows `[batch * tokens, dim]`.
pub fn rows(x: ArrayView3<'_, f64>) -> Array2<f64> {
    let (batch, tokens, dim) = x.dim();
    Array2::from_shape_fn((batch * tokens, dim), |(row, j)| x[[row / tokens, row % tokens, j]])
}

/// The inverse of [`rows`].
pub fn tokens(x: &Array2<f64>, batch: usize, tokens: usize) -> Array3<f64> {
    Array3::from_shape_fn((batch, tokens, x.ncols()), |(b, t, j)| x[[b * tokens + t, j]])
}

/// Rows of heads side by side as `[batch, heads, tokens, dim]`.
pub fn split_heads(x: ArrayView2<'_, f64>, [batch, heads, tokens]: [usize; 3]) -> Array4<f64> {
    let dim = x.ncols() / heads;
    Array4::from_shape_fn((batch, heads, tokens, dim), |(b, h, t, d)| {
        x[[b * tokens + t, h * dim + d]]
    })
}

/// The inverse of [`split_heads`].
pub fn merge_heads(x: ArrayView4<'_, f64>) -> Array2<f64> {
    let (batch, heads, tokens, dim) = x.dim();
    Array2::from_shape_fn((batch * tokens, heads * dim), |(row, j)| {
        x[[row / tokens, j / dim, row % tokens, j % dim]]
    })
}
