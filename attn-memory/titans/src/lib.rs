//! Titans: a memory that learns while it reads.
//!
//! The state of the sequence layer is the weights of a small network, the memory. Every token is a step of
//! gradient descent on "map the key to the value", with momentum and weight decay; reading is a forward
//! pass with the query. See [`mod@reference`] for the equations and [`reference::layer`] for the four ways
//! to build a layer on it.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

#[cfg(feature = "bench")]
pub mod bench;
mod config;
mod gpu;
mod layer_config;
pub mod reference;

pub use attn_core::ndarray;
pub use attn_wgpu::{Error, Gpu, Tensor, wgpu};
pub use config::{Activation, Config};
#[cfg(feature = "bench")]
pub use gpu::kernels;
pub use gpu::{Cotangents, Decoder, Grads, Inputs, Output, Saved, State, Titans};
pub use layer_config::{Combination, LayerConfig};
