//! VL-SAM: finding and segmenting objects without a list of categories, by a vision-language model's attention.
//!
//! * [`AttentionFlow`]: one map over an image's patches out of the attention of all layers and heads
//!   ([`AttentionSource`]); [`mod@reference`] has the equations.
//! * [`prompt`]: from maps to points, refinement, ensembles over scales and questions.
//! * [`segment`]: what is plugged in, a namer of objects and a segmenter by prompts.
//! * [`detect`]: all of it in one call.
//! * [`image`]: pictures in and out.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

mod config;
pub mod detect;
mod gpu;
pub mod image;
mod map;
#[cfg(feature = "model")]
mod observe;
pub mod prompt;
pub mod reference;
pub mod segment;
mod source;

pub use attn_core::ndarray;
pub use attn_core::{Mask, dense};
pub use attn_wgpu::{Error, Gpu, Tensor, wgpu};
pub use config::{Config, Regularisation, TokenLayout, causal_counts, column_factor};
#[cfg(feature = "bench")]
pub use gpu::kernels;
pub use gpu::{AttentionFlow, Flow, MAX_LAYERS, Output, ROWS_AT_ONCE};
pub use map::AttentionMap;
#[cfg(feature = "model")]
pub use observe::{ModelAttention, Recorder};
pub use source::{AttentionSource, LayerAttention, Layers, QueriesKeys};
