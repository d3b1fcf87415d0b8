//! Ranking by attention, from research papers.
//!
//! Each paper is a crate of its own, which is a module here behind the feature of its name.
//!
//! | feature | module | paper |
//! |---|---|---|
//! | `blockrank` | `blockrank`, crate `attn-blockrank` | Scalable In-context Ranking with Generative Models (2025) |
//! | `dare` | `dare`, crate `attn-dare` | Long-Sequence Recommendation Models Need Decoupled Embeddings (2025) |
//!
//! Further features reach every paper that is on and has them: `model`, `serde`, and the back-ends `vulkan`, `metal` and
//! `dx12`, which are on by default. Each module re-exports the types that all share, such as `Gpu` and
//! `Tensor`.
#![cfg_attr(all(doctest, feature = "blockrank"), doc = include_str!("../README.md"))]

#[cfg(feature = "blockrank")]
pub use attn_blockrank as blockrank;
#[cfg(feature = "dare")]
pub use attn_dare as dare;
