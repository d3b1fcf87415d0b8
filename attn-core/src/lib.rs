//! Vocabulary of the `attn` crates, without any GPU.
//!
//! * [`Mask`]: which query-key pairs are allowed, with one definition, [`Mask::allows`].
//! * [`dense`]: attention in f64 with output, log-sum-exp, optional probabilities and row
//!   statistics, and its vector-Jacobian product: the judge in every test.
//! * [`AttentionShape`]: extents of a call, checked to fit together.
//! * [`Error`]: what was wrong with a call.
//! * `testing` (feature `testing`): error budgets, proptest strategies, counter-based random data,
//!   golden files, named problems.
//!
//! # Vocabulary
//! Tensors are `[batch, heads, tokens, dim]`. `heads_kv` divides `heads` (grouped-query attention:
//! query head `h` reads key head `h / (heads / heads_kv)`). `dim_qk` and `dim_v` may differ.
//! `lse` is the natural logarithm of the sum of exponentials of a query's logits.

pub mod dense;
mod error;
mod mask;
mod shape;
#[cfg(feature = "testing")]
pub mod testing;

pub use error::{Error, Result};
pub use mask::{Lengths, Mask, RowKeys};
pub use ndarray;
pub use shape::AttentionShape;

/// Compiles and runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
