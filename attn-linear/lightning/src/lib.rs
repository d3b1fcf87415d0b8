//! Lightning attention of TransNormerLLM: linear attention with a fixed decay for each head.
//!
//! ```text
//! o_t = sum_{i <= t} exp(-s_h (t - i)) (q_t . k_i) v_i
//! ```
//!
//! A head is a state of fixed size, and the cost of a sequence is linear in its length. [`Lightning`] is
//! the mechanism, [`layer::Layer`] the layer of TransNormerLLM around it. See [`mod@reference`] for the
//! equations, and the README for when to use it.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

#[cfg(feature = "bench")]
pub mod bench;
mod config;
mod gpu;
pub mod reference;

pub use attn_core::ndarray;
pub use attn_wgpu::linear_attention::{Cotangents, Grads, Inputs, Output, Saved};
pub use attn_wgpu::{Error, Gpu, Tensor, wgpu};
pub use config::{Config, Slopes};
#[cfg(feature = "bench")]
pub use gpu::kernels;
pub use gpu::{Lightning, Lrpe, State, layer};
