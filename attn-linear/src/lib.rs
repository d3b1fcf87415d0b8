//! Attention whose cost is linear in the number of tokens, from research papers.
//!
//! Each paper is a crate of its own, which is a module here behind the feature of its name.
//!
//! | feature | module | paper |
//! |---|---|---|
//! | `aaren` | `aaren`, crate `attn-aaren` | Attention as an RNN (2024) |
//! | `flowformer` | `flowformer`, crate `attn-flowformer` | Flowformer: Linearizing Transformers with Conservation Flows (2022) |
//! | `lightning` | `lightning`, crate `attn-lightning` | Scaling TransNormer to 175 Billion Parameters (2023) |
//!
//! Further features reach every paper that is on and has them: `serde`, and the back-ends `vulkan`, `metal` and
//! `dx12`, which are on by default. Each module re-exports the types that all share, such as `Gpu` and
//! `Tensor`.
#![cfg_attr(all(doctest, feature = "aaren"), doc = include_str!("../README.md"))]

#[cfg(feature = "aaren")]
pub use attn_aaren as aaren;
#[cfg(feature = "flowformer")]
pub use attn_flowformer as flowformer;
#[cfg(feature = "lightning")]
pub use attn_lightning as lightning;
