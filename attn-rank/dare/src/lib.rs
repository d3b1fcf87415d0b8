//! DARE: decoupled attention and representation embeddings, for click prediction from long histories.
//!
//! A user's history of up to tens of thousands of behaviours is searched for those that resemble a candidate
//! item, and the best few are pooled into features of the candidate. Search and pooling have embedding tables
//! of their own, so that their losses do not pull at the same numbers, and the tables that search may be
//! narrow. See [`mod@reference`] for the equations, [`Dare`] for the device, [`Head`] for the classifier, and
//! [`History`] for serving.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

mod config;
pub mod conflict;
#[cfg(feature = "data")]
pub mod data;
mod gpu;
pub mod reference;

pub use attn_core::ndarray;
pub use attn_wgpu::{Error, Gpu, Tensor, wgpu};
pub use config::{Config, Scores, Search, Widths};
#[cfg(feature = "bench")]
pub use gpu::kernels;
pub use gpu::{
    Auxiliary, Batch, Cotangents, Dare, EmbeddingTargets, Embeddings, Grads, Head, HeadCotangents,
    HeadGrads, HeadInputs, HeadOutput, HeadSaved, HeadTargets, History, Inputs, LinearGrads,
    LinearTensors, Output, Parameters, Recalled, Saved, Statistics, Tables, Targets,
};
