//! Flow-Attention of Flowformer: attention in linear time by conservation of flows.
//!
//! Queries are sinks and keys are sources; what flows between them is `sigmoid(q) . sigmoid(k)`. What leaves a
//! source is fixed, so that sinks compete for it, and what enters a sink is fixed, so that sources compete to
//! give it. See [`mod@reference`] for the equations.
//!
//! The competition is between sources and not between pairs: it can mute tokens that do not matter, but a
//! query does not retrieve as it does with softmax. The causal form conserves flows only approximately. There
//! is no position inside.
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
pub use gpu::{Cotangents, Flowformer, Flows, Grads, Inputs, Output, Saved, State, Targets};
