//! Routing Transformer: tokens attend within clusters that online k-means finds.
//!
//! The choice of tokens is not causal: see [`mod@reference`] and the README.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

#[cfg(feature = "bench")]
pub mod bench;
mod config;
mod gpu;
pub mod reference;

pub use attn_core::ndarray;
pub use attn_wgpu::attention::Inputs;
pub use attn_wgpu::{Error, Gpu, Tensor, wgpu};
pub use config::{Config, UpdateRule};
#[cfg(feature = "bench")]
pub use gpu::kernels;
pub use gpu::{
    Centroids, Commitment, Cotangents, Grads, Output, Routes, Routing, Saved, State, Targets,
    Uninitialised,
};
