//! Sparse attention from research papers: methods that select which keys a query attends to.
//!
//! Each paper is a crate of its own, which is a module here behind the feature of its name.
//!
//! | feature | module | paper |
//! |---|---|---|
//! | `flexprefill` | `flexprefill`, crate `attn-flexprefill` | FlexPrefill: A Context-Aware Sparse Attention Mechanism for Efficient Long-Sequence Inference (2025) |
//! | `routing` | `routing`, crate `attn-routing` | Efficient Content-Based Sparse Attention with Routing Transformers (2021) |
//!
//! Further features reach every paper that is on and has them: `model` (its policy for language models),
//! `serde`, and the back-ends `vulkan`, `metal` and `dx12`, which are on by default. Each module re-exports
//! the types that all share, such as `Gpu` and `Tensor`.
#![cfg_attr(all(doctest, feature = "flexprefill"), doc = include_str!("../README.md"))]

#[cfg(feature = "flexprefill")]
pub use attn_flexprefill as flexprefill;
#[cfg(feature = "routing")]
pub use attn_routing as routing;
