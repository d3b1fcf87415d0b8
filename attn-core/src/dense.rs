//! Dense attention in f64: the judge in every test.
//!
//! For query `i` with position `pos(i) = i + N - M` and the set `S(i)` of allowed keys:
//!
//! ```text
//! s_it  = scale * q_i . k_t                       logits
//! lse_i = ln sum_{t in S(i)} exp(s_it)
//! p_it  = exp(s_it - lse_i)                       probabilities
//! o_i   = sum_{t in S(i)} p_it v_t
//! ```
//!
//! A row with empty `S(i)` has `o_i = 0` and `lse_i = -inf`. Keys and values outside `S(i)` are
//! never read for row `i`. NaN or an infinity in what a row does read makes that row meaningless
//! and no other.
//!
//! [`backward`] is the vector-Jacobian product of [`forward`]: given the cotangents `do` of the
//! output and `dlse` of the log-sum-exp, with `delta_i = do_i . o_i`,
//!
//! ```text
//! ds_it = p_it (do_i . v_t - delta_i + dlse_i)
//! dq_i  = scale * sum_{t in S(i)} ds_it k_t
//! dk_t  = scale * sum_{i: t in S(i)} ds_it q_i
//! dv_t  = sum_{i: t in S(i)} p_it do_i
//! ```
//!
//! where the last two sums also run over the query heads that share the key head.

mod backward;
mod forward;

use ndarray::{Array3, Array4, ArrayView3, ArrayView4};

pub use backward::backward;
pub use forward::{forward, forward_rows, forward_with_probs};

use crate::{AttentionShape, Error, Lengths, Mask, Result};

/// What is computed; the same type configures the reference and the GPU kernels.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Config {
    /// Which keys a query may see. Default: all.
    pub mask: Mask,
    /// Factor of the products q . k. Default (`None`): `1 / sqrt(dim_qk)`.
    pub scale: Option<f64>,
}

impl Config {
    /// Full attention with the default scale.
    pub fn new() -> Self {
        Config::default()
    }

    /// The same with another mask.
    pub fn with_mask(mut self, mask: Mask) -> Self {
        self.mask = mask;
        self
    }

    /// The same with another factor of the products q . k.
    pub fn with_scale(mut self, scale: f64) -> Self {
        self.scale = Some(scale);
        self
    }

    /// The factor in force for keys of `dim_qk` elements.
    pub fn scale_for(&self, dim_qk: usize) -> f64 {
        self.scale.unwrap_or_else(|| 1.0 / (dim_qk.max(1) as f64).sqrt())
    }

    /// Checks what does not depend on a call's shapes.
    ///
    /// # Errors
    /// [`Error::Config`] where the scale is not finite.
    pub fn validate(&self) -> Result<()> {
        match self.scale {
            Some(scale) if !scale.is_finite() => {
                Err(Error::config("scale", "a finite number", scale))
            }
            _ => Ok(()),
        }
    }

    /// [`Config::validate`] and [`Mask::validate`] for a call of these lengths.
    fn check(&self, lengths: Lengths) -> Result<()> {
        self.validate()?;
        self.mask.validate(lengths)
    }
}

/// Queries, keys and values on the host.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries `[batch, heads, queries, dim_qk]`.
    pub q: ArrayView4<'a, f64>,
    /// Keys `[batch, heads_kv, keys, dim_qk]`; `heads_kv` divides `heads`.
    pub k: ArrayView4<'a, f64>,
    /// Values `[batch, heads_kv, keys, dim_v]`.
    pub v: ArrayView4<'a, f64>,
}

impl Inputs<'_> {
    /// Checks that the three tensors fit together and returns their extents. Any extent may be 0.
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
    /// Natural log-sum-exp of the logits `[batch, heads, queries]`; -inf for an empty row.
    pub lse: Array3<f64>,
    /// Largest logit `[batch, heads, queries]`; -inf for an empty row.
    pub row_max: Array3<f64>,
    /// Key of the largest logit `[batch, heads, queries]`, the lowest one on ties; `None` for an
    /// empty row.
    pub argmax: Array3<Option<usize>>,
    /// Probabilities `[batch, heads, queries, keys]`, 0 where masked, if they were asked for.
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
