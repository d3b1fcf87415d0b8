//! Attention beside a memory.

use attn_core::dense::{self, Cotangents, Inputs, Output};
use attn_core::{Mask, Result};
use ndarray::{Array2, Array4, ArrayView2};

use super::parts::{linear, linear_backward, merge, split};
use super::weights::Attention;

/// Attention of rows over others, and what was on the way.
pub struct Attended {
    config: dense::Config,
    q: Array4<f64>,
    k: Array4<f64>,
    v: Array4<f64>,
    output: Output,
    merged: Array2<f64>,
    /// `[rows, d_model]`.
    pub out: Array2<f64>,
}

impl Attended {
    pub fn new(
        rows: ArrayView2<'_, f64>,
        others: ArrayView2<'_, f64>,
        heads: usize,
        mask: Mask,
        weights: &Attention,
    ) -> Result<Self> {
        let q = split(linear(rows, &weights.q).view(), heads);
        let k = split(linear(others, &weights.k).view(), heads);
        let v = split(linear(others, &weights.v).view(), heads);
        let config = dense::Config::new().with_mask(mask);
        let output = dense::forward(Inputs::new(q.view(), k.view(), v.view()), &config)?;
        let merged = merge(output.out.view());
        let out = linear(merged.view(), &weights.o);
        Ok(Attended { config, q, k, v, output, merged, out })
    }

    /// Adds to `grads`, and returns the cotangents of the rows and of the others.
    pub fn backward(
        &self,
        rows: ArrayView2<'_, f64>,
        others: ArrayView2<'_, f64>,
        d_out: &Array2<f64>,
        weights: &Attention,
        grads: &mut Attention,
    ) -> Result<[Array2<f64>; 2]> {
        let d_merged = linear_backward(self.merged.view(), &weights.o, d_out, &mut grads.o);
        let d_heads = split(d_merged.view(), self.q.dim().1);
        let inputs = Inputs::new(self.q.view(), self.k.view(), self.v.view());
        let cotangents = Cotangents { out: d_heads.view(), lse: None };
        let d = dense::backward(inputs, &self.config, &self.output, cotangents)?;
        let d_rows = linear_backward(rows, &weights.q, &merge(d.dq.view()), &mut grads.q);
        let by_k = linear_backward(others, &weights.k, &merge(d.dk.view()), &mut grads.k);
        let by_v = linear_backward(others, &weights.v, &merge(d.dv.view()), &mut grads.v);
        Ok([d_rows, by_k + by_v])
    }
}
