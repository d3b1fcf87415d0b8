//! Aaren: attention as a recurrent network.
//!
//! Softmax attention of a query that is learned and does not depend on the input, over every prefix of a
//! sequence: in parallel by a scan, or token by token in constant memory. See [`mod@reference`] for the
//! equations, and [`Aaren`] for the device.
//!
//! All positions share the query, so that a layer decides once how much a token matters. Where every token
//! must ask its own question (language models, retrieval), this does not replace attention. There is no
//! position inside: add features of time or position to the input.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

#[cfg(feature = "bench")]
pub mod bench;
mod config;
mod gpu;
pub mod reference;

pub use attn_core::ndarray;
pub use attn_wgpu::{Error, Gpu, Tensor, wgpu};
pub use config::Config;
#[cfg(feature = "bench")]
pub use gpu::kernels;
pub use gpu::{Aaren, Cotangents, Grads, Inputs, Output, Saved, State, Targets};
