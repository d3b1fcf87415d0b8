//! Dense attention in f64: the judge in every test.
//!
//! For query `i` with position `pos(i) = i + N - M` and the set `S(i)` of allowed keys:
//!
//! ```text
//! x_it  = scale * q_i . k_t
//! y_it  = cap * tanh(x_it / cap)                  soft-cap, or x_it without one
//! s_it  = modifier(y_it, b, h, pos(i), t)         logits, or y_it without one
//! lse_i = ln (sum_{t in S(i)} exp(s_it) + exp(sink_h))
//! p_it  = exp(s_it - lse_i)                       probabilities
//! o_i   = sum_{t in S(i)} p_it v_t
//! ```
//!
//! A modified logit of at most -1e30 takes its key out of `S(i)`, as does a mask modifier; for these
//! keys the key is read, and the value is not. Keys and values outside of the mask are never read
//! for row `i`. NaN or an infinity in what a row does read makes that row meaningless and no other.
//!
//! The sinks are one more logit for each query head, without a value, in the denominator alone; they
//! are neither scaled nor capped nor modified. A row with empty `S(i)` has `o_i = 0` and
//! `lse_i = sink_h`, or -inf without sinks.
//!
//! [`backward`] is the vector-Jacobian product of [`forward`]: given the cotangents `do` of the
//! output and `dlse` of the log-sum-exp, with `delta_i = do_i . o_i`,
//!
//! ```text
//! ds_it   = p_it (do_i . v_t - delta_i + dlse_i)
//! dx_it   = ds_it * modifier'(y_it) * (1 - tanh^2(x_it / cap))
//! dq_i    = scale * sum_{t in S(i)} dx_it k_t
//! dk_t    = scale * sum_{i: t in S(i)} dx_it q_i
//! dv_t    = sum_{i: t in S(i)} p_it do_i
//! dsink_h = sum_{b, i} exp(sink_h - lse_i) (dlse_i - delta_i)
//! ```
//!
//! where the sums of `dk` and `dv` also run over the query heads that share the key head.

mod backward;
mod config;
pub(crate) mod forward;
pub(crate) mod logits;
mod merge;

use ndarray::{Array1, Array3, Array4, ArrayView1, ArrayView3, ArrayView4};

pub use backward::backward;
pub use config::Config;
pub use forward::{forward, forward_rows, forward_with_probs};
pub use merge::{column_sums, merge};

use crate::{AttentionShape, Error, Result};

/// Queries, keys, values and perhaps sinks on the host.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries `[batch, heads, queries, dim_qk]`.
    pub q: ArrayView4<'a, f64>,
    /// Keys `[batch, heads_kv, keys, dim_qk]`; `heads_kv` divides `heads`.
    pub k: ArrayView4<'a, f64>,
    /// Values `[batch, heads_kv, keys, dim_v]`.
    pub v: ArrayView4<'a, f64>,
    /// One more logit `[heads]` for every row of a query head, without a value.
    pub sinks: Option<ArrayView1<'a, f64>>,
}

impl<'a> Inputs<'a> {
    /// Queries, keys and values without sinks.
    pub fn new(q: ArrayView4<'a, f64>, k: ArrayView4<'a, f64>, v: ArrayView4<'a, f64>) -> Self {
        Inputs { q, k, v, sinks: None }
    }

    /// The same with sinks `[heads]`.
    pub fn with_sinks(mut self, sinks: ArrayView1<'a, f64>) -> Self {
        self.sinks = Some(sinks);
        self
    }

    /// Checks that the tensors fit together and returns their extents. Any extent may be 0.
    ///
    /// # Errors
    /// [`Error::Shape`], as [`AttentionShape::from_shapes`], and where a view repeats its elements
    /// so often that no allocation could hold a copy.
    pub fn check(&self) -> Result<AttentionShape> {
        let (q, k, v) = (self.q.shape(), self.k.shape(), self.v.shape());
        let shape = AttentionShape::from_shapes(q, k, v)?;
        check_size("q", q)?;
        check_size("k", k)?;
        check_size("v", v)?;
        if let Some(sinks) = self.sinks {
            expect("sinks", sinks.shape(), &[shape.heads])?;
            check_size("sinks", sinks.shape())?;
        }
        Ok(shape)
    }
}

/// What [`forward`] computes. `queries` is the number of rows asked for: all, or the chosen ones
/// of [`forward_rows`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// Output `[batch, heads, queries, dim_v]`; 0 for a row without any allowed key.
    pub out: Array4<f64>,
    /// Natural log-sum-exp of the logits and the sink `[batch, heads, queries]`; for an empty row the
    /// sink, or -inf without one.
    pub lse: Array3<f64>,
    /// Largest logit of a key `[batch, heads, queries]`; -inf for an empty row.
    pub row_max: Array3<f64>,
    /// Largest `|scale| |q| |k|` of a key that takes part `[batch, heads, queries]`: it bounds the
    /// products before soft-cap and modifier, and says how far rounding can move the logits, also
    /// where the terms of a product cancel; -inf for an empty row.
    pub product_bound: Array3<f64>,
    /// Key of the largest logit `[batch, heads, queries]`, the lowest one on ties; `None` for an
    /// empty row.
    pub argmax: Array3<Option<usize>>,
    /// Probabilities of the keys `[batch, heads, queries, keys]`, 0 where masked, if they were asked
    /// for. What a row lacks to 1 is the sink's.
    pub probs: Option<Array4<f64>>,
}

/// Derivatives of a loss by what [`forward`] returned.
#[derive(Debug, Clone, Copy)]
pub struct Cotangents<'a> {
    /// By the output `[batch, heads, queries, dim_v]`.
    pub out: ArrayView4<'a, f64>,
    /// By the log-sum-exp `[batch, heads, queries]`, where the loss uses it.
    pub lse: Option<ArrayView3<'a, f64>>,
}

/// Derivatives of a loss by the inputs.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Grads {
    /// By the queries `[batch, heads, queries, dim_qk]`.
    pub dq: Array4<f64>,
    /// By the keys `[batch, heads_kv, keys, dim_qk]`.
    pub dk: Array4<f64>,
    /// By the values `[batch, heads_kv, keys, dim_v]`.
    pub dv: Array4<f64>,
    /// By the sinks `[heads]`, where there were any.
    pub d_sinks: Option<Array1<f64>>,
}

/// Refuses an array that no allocator could hold. Extents of 0 are left out of the product, as
/// `ndarray` does for its strides: views of few or no elements can have enormous extents.
fn check_size(arg: &'static str, shape: &[usize]) -> Result<()> {
    // `argmax` has the largest elements.
    let largest = isize::MAX as usize / size_of::<Option<usize>>();
    let elements = shape.iter().filter(|&&n| n > 0).try_fold(1_usize, |all, &n| all.checked_mul(n));
    match elements {
        Some(elements) if elements <= largest => Ok(()),
        _ => Err(Error::shape(arg, format!("at most {largest} elements"), shape)),
    }
}

pub(crate) fn expect(arg: &'static str, got: &[usize], expected: &[usize]) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::shape(arg, format!("{expected:?}"), got)) }
}
