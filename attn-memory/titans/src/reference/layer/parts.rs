//! Maps of rows `[tokens, features]`, each with its vector-Jacobian product.

use ndarray::{Array1, Array2, Array4, ArrayView2, ArrayView4, Axis, Zip, s};

use crate::reference::network::sigmoid;

/// `x W^T` for `W` `[out, in]`.
pub fn linear(x: ArrayView2<'_, f64>, w: &Array2<f64>) -> Array2<f64> {
    x.dot(&w.t())
}

/// Adds to `d_w`, and returns the cotangent of `x`.
pub fn linear_backward(
    x: ArrayView2<'_, f64>,
    w: &Array2<f64>,
    d_y: &Array2<f64>,
    d_w: &mut Array2<f64>,
) -> Array2<f64> {
    *d_w += &d_y.t().dot(&x);
    d_y.dot(w)
}

/// Causal convolution of every feature on its own, `y_t = sum_j w[j] x_(t-j)` with `w` `[kernel, features]`;
/// there are zeros before the first row.
pub fn conv(x: &Array2<f64>, w: &Array2<f64>) -> Array2<f64> {
    let mut y = Array2::zeros(x.raw_dim());
    for (j, w) in w.rows().into_iter().enumerate().take(x.nrows()) {
        let mut late = y.slice_mut(s![j.., ..]);
        late += &(&x.slice(s![..x.nrows() - j, ..]) * &w);
    }
    y
}

/// Adds to `d_w`, and returns the cotangent of `x`.
pub fn conv_backward(
    x: &Array2<f64>,
    w: &Array2<f64>,
    d_y: &Array2<f64>,
    d_w: &mut Array2<f64>,
) -> Array2<f64> {
    let mut d_x = Array2::zeros(x.raw_dim());
    for (j, w) in w.rows().into_iter().enumerate().take(x.nrows()) {
        let (early, late) = (s![..x.nrows() - j, ..], s![j.., ..]);
        let mut d_w = d_w.row_mut(j);
        d_w += &(&x.slice(early) * &d_y.slice(late)).sum_axis(Axis(0));
        let mut d_x = d_x.slice_mut(early);
        d_x += &(&d_y.slice(late) * &w);
    }
    d_x
}

pub fn silu(x: &Array2<f64>) -> Array2<f64> {
    x.mapv(|x| x * sigmoid(x))
}

/// The cotangent of `x` from that of `silu(x)`.
pub fn silu_backward(x: &Array2<f64>, d_y: &Array2<f64>) -> Array2<f64> {
    Zip::from(x).and(d_y).map_collect(|&x, d_y| {
        let s = sigmoid(x);
        d_y * s * (1.0 + x * (1.0 - s))
    })
}

/// Every head's part of a row divided by `sqrt(|part|^2 + epsilon)`.
pub fn l2(x: &Array2<f64>, heads: usize, epsilon: f64) -> Array2<f64> {
    let mut y = x.clone();
    for mut part in y.axis_chunks_iter_mut(Axis(1), width(x, heads)) {
        for mut row in part.rows_mut() {
            let inverse = (row.dot(&row) + epsilon).sqrt().recip();
            row *= inverse;
        }
    }
    y
}

/// The cotangent of `x`, with `r` the factor of a part: `dx = r (dy - y (y . dy))`.
pub fn l2_backward(x: &Array2<f64>, heads: usize, epsilon: f64, d_y: &Array2<f64>) -> Array2<f64> {
    let mut d_x = d_y.clone();
    let parts = x.axis_chunks_iter(Axis(1), width(x, heads));
    for (mut d_part, part) in d_x.axis_chunks_iter_mut(Axis(1), width(x, heads)).zip(parts) {
        for (mut d_row, row) in d_part.rows_mut().into_iter().zip(part.rows()) {
            let inverse = (row.dot(&row) + epsilon).sqrt().recip();
            let along = row.dot(&d_row) * inverse * inverse;
            d_row.scaled_add(-along, &row);
            d_row *= inverse;
        }
    }
    d_x
}

fn width(x: &Array2<f64>, heads: usize) -> usize {
    (x.ncols() / heads).max(1)
}

/// Rows divided by their root mean square, times a gain.
pub fn rms(x: ArrayView2<'_, f64>, gain: &Array1<f64>, epsilon: f64) -> Array2<f64> {
    let mut y = x.to_owned();
    for mut row in y.rows_mut() {
        let inverse = (row.dot(&row) / row.len() as f64 + epsilon).sqrt().recip();
        row *= inverse;
        row *= gain;
    }
    y
}

/// Adds to `d_gain`, and returns the cotangent of `x`: with the normalised row `n = x r`,
/// `dx = r (dn - n mean(n dn))`.
pub fn rms_backward(
    x: ArrayView2<'_, f64>,
    gain: &Array1<f64>,
    epsilon: f64,
    d_y: &Array2<f64>,
    d_gain: &mut Array1<f64>,
) -> Array2<f64> {
    let mut d_x = d_y * gain;
    for ((mut d_row, row), d_y) in d_x.rows_mut().into_iter().zip(x.rows()).zip(d_y.rows()) {
        let inverse = (row.dot(&row) / row.len() as f64 + epsilon).sqrt().recip();
        let n = &row * inverse;
        *d_gain += &(&n * &d_y);
        let mean = n.dot(&d_row) / row.len() as f64;
        d_row.scaled_add(-mean, &n);
        d_row *= inverse;
    }
    d_x
}

/// Heads side by side `[tokens, heads * dim]` as `[1, heads, tokens, dim]`.
pub fn split(x: ArrayView2<'_, f64>, heads: usize) -> Array4<f64> {
    let dim = x.ncols() / heads;
    Array4::from_shape_fn((1, heads, x.nrows(), dim), |(_, h, t, d)| x[[t, h * dim + d]])
}

/// The inverse of [`split`].
pub fn merge(x: ArrayView4<'_, f64>) -> Array2<f64> {
    let (_, heads, tokens, dim) = x.dim();
    Array2::from_shape_fn((tokens, heads * dim), |(t, j)| x[[0, j / dim, t, j % dim]])
}

/// Rows below each other.
pub fn stack(parts: &[ArrayView2<'_, f64>]) -> Array2<f64> {
    let columns = parts.first().map_or(0, |part| part.ncols());
    let mut all = Array2::zeros((parts.iter().map(|part| part.nrows()).sum(), columns));
    let mut from = 0;
    for part in parts {
        all.slice_mut(s![from..from + part.nrows(), ..]).assign(part);
        from += part.nrows();
    }
    all
}
