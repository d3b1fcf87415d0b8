//! BlockRank (Gupta et al., "Scalable In-context Ranking with Generative Models", 2025, arXiv 2510.05396):
//! ranking the documents of a prompt by attention in blocks.
//!
//! * [`Segments`]: which tokens are instruction, documents and query; mask, positions and signal tokens.
//! * [`BlockRank`]: attention over the mask, scores of documents, the contrastive loss, all with backward passes.
//! * `ranker` (feature `model`): a language model with an instruction, documents and a query in, an order out;
//!   `policy` and `prompt` are its parts.
//! * [`mod@reference`]: the same in f64 on the host, with the equations.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

#[cfg(feature = "bench")]
pub mod bench;
mod config;
mod gpu;
#[cfg(feature = "model")]
pub mod policy;
#[cfg(feature = "model")]
pub mod projections;
#[cfg(feature = "model")]
pub mod prompt;
#[cfg(feature = "model")]
pub mod ranker;
pub mod reference;
mod segments;

pub use attn_core::ndarray;
pub use attn_wgpu::attention::{Cotangents, Inputs, Output};
pub use attn_wgpu::plan::{Grads, Saved, Targets};
pub use attn_wgpu::{Error, Gpu, Tensor, wgpu};
pub use config::{Config, QueryOffset};
#[cfg(feature = "bench")]
pub use gpu::kernels;
pub use gpu::{BlockRank, DeviceSegments, Loss, Positives, SavedScores, ScoreGrads, ScoreTargets};
pub use segments::{Segment, Segments};
