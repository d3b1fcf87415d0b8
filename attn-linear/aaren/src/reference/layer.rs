//! The layer of the paper: projections around the attention.

use attn_core::{Error, Result};
use ndarray::{Array1, Array2, Array3, Array4, ArrayView1, ArrayView2, ArrayView3};

use super::{Cotangents, Inputs, backward, expect, forward};
use crate::Config;

/// Parameters of a layer, weights as `[out, in]`:
///
/// ```text
/// q = w_q query     k_t = w_k x_t     v_t = w_v x_t     split into heads
/// y_t = w_o (o_t of all heads)
/// ```
///
/// The query of the layer is learned. Layers stack as those of a Transformer do: the outputs of one are the
/// tokens of the next, which has a query of its own; residual connections, norms and MLPs are the caller's.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`.
    pub heads_kv: usize,
    /// The learned query token `[d_query]`.
    pub query: ArrayView1<'a, f64>,
    /// `[heads * dim_qk, d_query]`.
    pub w_q: ArrayView2<'a, f64>,
    /// `[heads_kv * dim_qk, d_in]`.
    pub w_k: ArrayView2<'a, f64>,
    /// `[heads_kv * dim_v, d_in]`.
    pub w_v: ArrayView2<'a, f64>,
    /// `[d_out, heads * dim_v]`.
    pub w_o: ArrayView2<'a, f64>,
}

/// Derivatives of a loss by the parameters and the input of a layer, each of its shape.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LayerGrads {
    /// By the learned query token.
    pub d_query: Array1<f64>,
    /// By the query projection.
    pub d_w_q: Array2<f64>,
    /// By the key projection.
    pub d_w_k: Array2<f64>,
    /// By the value projection.
    pub d_w_v: Array2<f64>,
    /// By the output projection.
    pub d_w_o: Array2<f64>,
    /// By the input `[batch, tokens, d_in]`.
    pub d_x: Array3<f64>,
}

/// The query, keys and values of a call.
struct Projected {
    q: Array2<f64>,
    k: Array4<f64>,
    v: Array4<f64>,
}

impl Layer<'_> {
    /// Outputs `[batch, tokens, d_out]` for tokens `x` `[batch, tokens, d_in]`, of which `valid` `[batch,
    /// tokens]` says which ones count.
    ///
    /// # Errors
    /// As [`forward`], and [`Error::Shape`] for parameters that do not fit.
    pub fn forward(
        &self,
        x: ArrayView3<'_, f64>,
        valid: Option<ArrayView2<'_, bool>>,
        config: &Config,
    ) -> Result<Array3<f64>> {
        let projected = self.project(x)?;
        let output = forward(projected.inputs(valid), None, config)?;
        Ok(unrows(joined(&output.out).dot(&self.w_o.t()), x.dim()))
    }

    /// The vector-Jacobian product of [`Layer::forward`] for the cotangent `d_y` of its output.
    ///
    /// # Errors
    /// As [`Layer::forward`], and for a cotangent of another shape.
    pub fn backward(
        &self,
        x: ArrayView3<'_, f64>,
        valid: Option<ArrayView2<'_, bool>>,
        config: &Config,
        d_y: ArrayView3<'_, f64>,
    ) -> Result<LayerGrads> {
        let projected = self.project(x)?;
        let (batch, tokens, _) = x.dim();
        expect("d_y", d_y.shape(), &[batch, tokens, self.w_o.nrows()])?;
        let inputs = projected.inputs(valid);
        let output = forward(inputs, None, config)?;
        let (x_rows, d_y) = (rows(x), rows(d_y));
        let d_out = split(d_y.dot(&self.w_o), [batch, tokens, self.heads]);
        let grads = backward(inputs, None, config, Cotangents::new(d_out.view()))?;
        let d_q = Array1::from_iter(grads.dq.iter().copied());
        let (d_k, d_v) = (joined(&grads.dk), joined(&grads.dv));
        let column = d_q.view().insert_axis(ndarray::Axis(1));
        Ok(LayerGrads {
            d_query: self.w_q.t().dot(&d_q),
            d_w_q: column.dot(&self.query.insert_axis(ndarray::Axis(0))),
            d_w_k: d_k.t().dot(&x_rows),
            d_w_v: d_v.t().dot(&x_rows),
            d_w_o: d_y.t().dot(&joined(&output.out)),
            d_x: unrows(d_k.dot(&self.w_k) + d_v.dot(&self.w_v), x.dim()),
        })
    }

    fn project(&self, x: ArrayView3<'_, f64>) -> Result<Projected> {
        let (batch, tokens, d_in) = x.dim();
        for (arg, heads) in [("heads", self.heads), ("heads_kv", self.heads_kv)] {
            if heads == 0 {
                return Err(Error::config(arg, "at least 1", heads));
            }
        }
        let dim = |arg, weight: ArrayView2<'_, f64>, heads: usize| match weight.nrows() {
            rows if rows.is_multiple_of(heads) => Ok(rows / heads),
            _ => Err(Error::shape(arg, format!("rows of {heads} heads"), weight.shape())),
        };
        let dim_qk = dim("w_q", self.w_q, self.heads)?;
        let dim_v = dim("w_v", self.w_v, self.heads_kv)?;
        expect("w_q", self.w_q.shape(), &[self.heads * dim_qk, self.query.len()])?;
        expect("w_k", self.w_k.shape(), &[self.heads_kv * dim_qk, d_in])?;
        expect("w_v", self.w_v.shape(), &[self.heads_kv * dim_v, d_in])?;
        expect("w_o", self.w_o.shape(), &[self.w_o.nrows(), self.heads * dim_v])?;
        let (x, q) = (rows(x), self.w_q.dot(&self.query));
        let extents = [batch, tokens, self.heads_kv];
        Ok(Projected {
            q: Array2::from_shape_fn((self.heads, dim_qk), |(h, d)| q[h * dim_qk + d]),
            k: split(x.dot(&self.w_k.t()), extents),
            v: split(x.dot(&self.w_v.t()), extents),
        })
    }
}

impl Projected {
    fn inputs<'a>(&'a self, valid: Option<ArrayView2<'a, bool>>) -> Inputs<'a> {
        Inputs { valid, ..Inputs::shared(self.q.view(), self.k.view(), self.v.view()) }
    }
}

/// `[batch * tokens, dim]` of `[batch, tokens, dim]`.
fn rows(x: ArrayView3<'_, f64>) -> Array2<f64> {
    let (batch, tokens, dim) = x.dim();
    Array2::from_shape_fn((batch * tokens, dim), |(row, d)| x[[row / tokens, row % tokens, d]])
}

/// Back to a batch of as many tokens as `x` has.
fn unrows(rows: Array2<f64>, (batch, tokens, _): (usize, usize, usize)) -> Array3<f64> {
    let shape = (batch, tokens, rows.ncols());
    Array3::from_shape_fn(shape, |(b, t, d)| rows[[b * tokens + t, d]])
}

/// `[batch, heads, tokens, dim]` of `[batch * tokens, heads * dim]`.
fn split(rows: Array2<f64>, [batch, tokens, heads]: [usize; 3]) -> Array4<f64> {
    let dim = rows.ncols() / heads;
    let shape = (batch, heads, tokens, dim);
    Array4::from_shape_fn(shape, |(b, h, t, d)| rows[[b * tokens + t, h * dim + d]])
}

/// `[batch * tokens, heads * dim]` of `[batch, heads, tokens, dim]`.
fn joined(x: &Array4<f64>) -> Array2<f64> {
    let (batch, heads, tokens, dim) = x.dim();
    let shape = (batch * tokens, heads * dim);
    let element = |(row, c): (usize, usize)| x[[row / tokens, c / dim, row % tokens, c % dim]];
    Array2::from_shape_fn(shape, element)
}
