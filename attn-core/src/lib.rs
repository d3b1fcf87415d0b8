//! Vocabulary of the `attn` crates, without any GPU.
//!
//! * [`Mask`]: which query-key pairs are allowed, with one definition, [`Mask::allows`].
//! * [`Modifier`]: functions of logits and positions, in WGSL and on the host.
//! * [`dense`]: attention in f64 with output, log-sum-exp, optional probabilities and row
//!   statistics, and its vector-Jacobian product: the judge in every test.
//! * [`plan`]: which keys each query attends to, as sparse methods select them, with a reference in f64.
//! * [`AttentionShape`]: extents of a call, checked to fit together.
//! * [`Error`]: what was wrong with a call.
//! * `ArrayFile` (feature `files`): arrays by name in files, as which streaming states are saved.
//! * `testing` (feature `testing`): error budgets, proptest strategies, counter-based random data,
//!   golden files, named problems.
//!
//! # Vocabulary
//! Tensors are `[batch, heads, tokens, dim]`. `heads_kv` divides `heads` (grouped-query attention:
//! query head `h` reads key head `h / (heads / heads_kv)`). `dim_qk` and `dim_v` may differ.
//! `lse` is the natural logarithm of the sum of exponentials of a query's logits.

#[cfg(feature = "files")]
mod array_file;
mod bit_mask;
pub mod dense;
mod error;
mod mask;
mod modifier;
mod offsets;
pub mod plan;
mod rows;
mod shape;
#[cfg(feature = "testing")]
pub mod testing;

#[cfg(feature = "files")]
pub use array_file::ArrayFile;
pub use bit_mask::BitMask;
pub use error::{Error, Result};
pub use mask::Mask;
pub use modifier::{Modifier, ModifierArgs, ModifierFn, ModifierKind, ModifierParam, alibi_slopes};
pub use ndarray;
pub use rows::{Lengths, Place, RowKeys};
pub use shape::AttentionShape;

/// Compiles and runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
