//! The memory as a network: reading, the gradient of a token's loss, and the derivatives of both.
//!
//! ```text
//! x_1 = k,  z_i = x_i W_i,  x_(i+1) = sg(z_i),  M(k) = z_L
//! d_L = M(k) - v,  d_i = (d_(i+1) W_(i+1)^T) * sg'(z_i)
//! u_i = x_i^T g_i,  g_i = c d_i
//! ```
//!
//! The gradient `u_i` of a token is the product of a column and a row, so that a chunk keeps `x_i` and
//! `g_i` and never `u_i`, and so that its norm is `|x_i| |g_i|`.

use ndarray::{Array1, Array2, ArrayView2, Axis, Zip};

use crate::{Activation, Config};

/// Weights of one head's memory, or as many numbers of another meaning, by layer `[in, out]`.
pub(super) type Weights = Vec<Array2<f64>>;

impl Activation {
    fn value(self, z: f64) -> f64 {
        match self {
            Activation::Silu => z * sigmoid(z),
            Activation::Gelu => z * normal_distribution(z),
        }
    }

    fn slope(self, z: f64) -> f64 {
        match self {
            Activation::Silu => {
                let s = sigmoid(z);
                s * (1.0 + z * (1.0 - s))
            }
            Activation::Gelu => normal_distribution(z) + z * normal_density(z),
        }
    }

    fn curvature(self, z: f64) -> f64 {
        match self {
            Activation::Silu => {
                let s = sigmoid(z);
                s * (1.0 - s) * (2.0 + z * (1.0 - 2.0 * s))
            }
            Activation::Gelu => normal_density(z) * (2.0 - z * z),
        }
    }
}

pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn normal_distribution(x: f64) -> f64 {
    0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

fn normal_density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

/// The activation's derivative of every element times `d`.
pub(super) fn times_slope(d: &Array2<f64>, z: &Array2<f64>, config: &Config) -> Array2<f64> {
    Zip::from(d).and(z).map_collect(|d, &z| d * config.activation.slope(z))
}

/// The input of the next layer.
pub(super) fn activated(z: &Array2<f64>, config: &Config) -> Array2<f64> {
    z.mapv(|z| config.activation.value(z))
}

/// Inputs `x_i` and results `z_i` of every layer.
fn pass(
    weights: &[Array2<f64>],
    rows: ArrayView2<'_, f64>,
    config: &Config,
) -> (Vec<Array2<f64>>, Vec<Array2<f64>>) {
    let (mut x, mut z) = (vec![rows.to_owned()], Vec::<Array2<f64>>::new());
    for (i, w) in weights.iter().enumerate() {
        if i > 0 {
            x.push(activated(&z[i - 1], config));
        }
        z.push(x[i].dot(w));
    }
    (x, z)
}

/// `M(W; q)` for rows `[tokens, dim_qk]`.
pub(super) fn read(
    weights: &[Array2<f64>],
    q: ArrayView2<'_, f64>,
    config: &Config,
) -> Array2<f64> {
    pass(weights, q, config).1.pop().unwrap_or_default()
}

/// Vector-Jacobian product of [`read`]: by the queries and by the weights.
pub(super) fn read_backward(
    weights: &[Array2<f64>],
    q: ArrayView2<'_, f64>,
    d_y: ArrayView2<'_, f64>,
    config: &Config,
) -> (Array2<f64>, Weights) {
    let (x, z) = pass(weights, q, config);
    let (dx, dw) = pass_backward(weights, &x, &z, d_y.to_owned(), config);
    (dx, dw)
}

/// From the cotangent of the last `z`.
fn pass_backward(
    weights: &[Array2<f64>],
    x: &[Array2<f64>],
    z: &[Array2<f64>],
    d_y: Array2<f64>,
    config: &Config,
) -> (Array2<f64>, Weights) {
    let mut d_z = zeros_like(z);
    let d_x = zeros_like(x);
    if let Some(last) = d_z.last_mut() {
        *last += &d_y;
    }
    let mut dw = zeros_like(weights);
    let dx = accumulate(weights, x, z, d_z, d_x, &mut dw, config);
    (dx, dw)
}

/// Backward through the pass where every `z_i` and `x_i` has a cotangent of its own; adds to `dw`, and
/// returns the cotangent of the rows.
fn accumulate(
    weights: &[Array2<f64>],
    x: &[Array2<f64>],
    z: &[Array2<f64>],
    mut d_z: Vec<Array2<f64>>,
    mut d_x: Vec<Array2<f64>>,
    dw: &mut Weights,
    config: &Config,
) -> Array2<f64> {
    for i in (0..weights.len()).rev() {
        d_x[i] += &d_z[i].dot(&weights[i].t());
        dw[i] += &x[i].t().dot(&d_z[i]);
        if i > 0 {
            d_z[i - 1] += &times_slope(&d_x[i], &z[i - 1], config);
        }
    }
    d_x.swap_remove(0)
}

pub(super) fn zeros_like(arrays: &[Array2<f64>]) -> Weights {
    arrays.iter().map(|array| Array2::zeros(array.raw_dim())).collect()
}

/// The gradients of some tokens' losses at the same weights, `u_i = x_i^T g_i` row by row.
pub(super) struct Surprise {
    /// By layer `[tokens, in]`.
    pub x: Vec<Array2<f64>>,
    /// By layer `[tokens, out]`, with the coefficient and within the bound of the norm.
    pub g: Vec<Array2<f64>>,
    z: Vec<Array2<f64>>,
    /// `d_i`, and `g_i` before the bound.
    d: Vec<Array2<f64>>,
    unbounded: Vec<Array2<f64>>,
}

impl Surprise {
    /// Of keys `[tokens, dim_qk]` and values `[tokens, dim_v]`.
    pub fn new(
        weights: &[Array2<f64>],
        k: ArrayView2<'_, f64>,
        v: ArrayView2<'_, f64>,
        config: &Config,
    ) -> Self {
        let (x, z) = pass(weights, k, config);
        let mut d = zeros_like(&z);
        let last = z.len() - 1;
        d[last] = &z[last] - &v;
        for i in (0..last).rev() {
            d[i] = times_slope(&d[i + 1].dot(&weights[i + 1].t()), &z[i], config);
        }
        let unbounded: Vec<_> = d.iter().map(|d| d * config.coefficient).collect();
        let g = match config.max_grad_norm {
            None => unbounded.clone(),
            Some(bound) => x.iter().zip(&unbounded).map(|(x, g)| bounded(x, g, bound)).collect(),
        };
        Surprise { x, g, z, d, unbounded }
    }

    /// Vector-Jacobian product of [`Surprise::new`]: by keys, values and weights from the cotangents of `x`
    /// and `g`. Since these are gradients, this is of second order.
    pub fn backward(
        &self,
        weights: &[Array2<f64>],
        mut d_x: Vec<Array2<f64>>,
        mut d_g: Vec<Array2<f64>>,
        config: &Config,
    ) -> (Array2<f64>, Array2<f64>, Weights) {
        if let Some(bound) = config.max_grad_norm {
            for (i, g) in self.unbounded.iter().enumerate() {
                bounded_backward(&self.x[i], g, bound, &mut d_x[i], &mut d_g[i]);
            }
        }
        let mut dw = zeros_like(weights);
        let mut d_z = zeros_like(&self.z);
        // The errors went from the last layer to the first; their cotangents come back.
        let mut d_d = zeros_like(&self.d);
        for i in 0..weights.len() {
            d_d[i].scaled_add(config.coefficient, &d_g[i]);
            if let Some(next) = weights.get(i + 1) {
                let back = self.d[i + 1].dot(&next.t());
                let d_back = times_slope(&d_d[i], &self.z[i], config);
                Zip::from(&mut d_z[i]).and(&d_d[i]).and(&back).and(&self.z[i]).for_each(
                    |d_z, d_d, back, &z| *d_z += d_d * back * config.activation.curvature(z),
                );
                d_d[i + 1] += &d_back.dot(next);
                dw[i + 1] += &d_back.t().dot(&self.d[i + 1]);
            }
        }
        let last = weights.len() - 1;
        let dv = -&d_d[last];
        d_z[last] += &d_d[last];
        let dk = accumulate(weights, &self.x, &self.z, d_z, d_x, &mut dw, config);
        (dk, dv, dw)
    }
}

/// Squared norms of rows.
fn squares(x: &Array2<f64>) -> Array1<f64> {
    x.map_axis(Axis(1), |row| row.dot(&row))
}

/// `tanh(n / bound) bound / n` and its derivative by n over n, for a norm n; both have limits at 0.
fn shrink(norm: f64, bound: f64) -> (f64, f64) {
    let r = norm / bound;
    if r < 1e-4 {
        return (1.0 - r * r / 3.0, -2.0 / (3.0 * bound * bound));
    }
    let factor = r.tanh() / r;
    let slope = 1.0 - r.tanh().powi(2);
    (factor, (slope - factor) / (norm * norm))
}

fn bounded(x: &Array2<f64>, g: &Array2<f64>, bound: f64) -> Array2<f64> {
    let mut out = g.clone();
    for ((mut row, x), g) in out.rows_mut().into_iter().zip(squares(x)).zip(squares(g)) {
        row *= shrink((x * g).sqrt(), bound).0;
    }
    out
}

/// Turns `d_g`, of the bounded rows, into that of the rows before, and adds to `d_x`.
fn bounded_backward(
    x: &Array2<f64>,
    g: &Array2<f64>,
    bound: f64,
    d_x: &mut Array2<f64>,
    d_g: &mut Array2<f64>,
) {
    let (x_squares, g_squares) = (squares(x), squares(g));
    for t in 0..x.nrows() {
        let (factor, slope) = shrink((x_squares[t] * g_squares[t]).sqrt(), bound);
        let by_factor = slope * g.row(t).dot(&d_g.row(t));
        d_g.row_mut(t).mapv_inplace(|d| d * factor);
        d_g.row_mut(t).scaled_add(by_factor * x_squares[t], &g.row(t));
        d_x.row_mut(t).scaled_add(by_factor * g_squares[t], &x.row(t));
    }
}
