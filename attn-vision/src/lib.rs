//! Attention of vision-language models put to use, from research papers.
//!
//! Each paper is a crate of its own, which is a module here behind the feature of its name.
//!
//! | feature | module | paper |
//! |---|---|---|
//! | `vlsam` | `vlsam`, crate `attn-vlsam` | Training-Free Open-Ended Object Detection and Segmentation via Attention as Prompts (2024) |
//!
//! Further features reach every paper that is on and has them: `model`, `serde`, and the back-ends `vulkan`, `metal` and
//! `dx12`, which are on by default. Each module re-exports the types that all share, such as `Gpu` and
//! `Tensor`.
#![cfg_attr(all(doctest, feature = "vlsam"), doc = include_str!("../README.md"))]

#[cfg(feature = "vlsam")]
pub use attn_vlsam as vlsam;
