//! Memories beside and in place of attention, from research papers.
//!
//! Each paper is a crate of its own, which is a module here behind the feature of its name.
//!
//! | feature | module | paper |
//! |---|---|---|
//! | `titans` | `titans`, crate `attn-titans` | Titans: Learning to Memorize at Test Time (2024) |
//!
//! Further features reach every paper that is on and has them: `serde`, and the back-ends `vulkan`, `metal` and
//! `dx12`, which are on by default. Each module re-exports the types that all share, such as `Gpu` and
//! `Tensor`.
#![cfg_attr(all(doctest, feature = "titans"), doc = include_str!("../README.md"))]

#[cfg(feature = "titans")]
pub use attn_titans as titans;
