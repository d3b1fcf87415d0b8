//! FlexPrefill: sparse attention for prompts, chosen by each head for each prompt.
//!
//! The choice is not causal: the last queries of a prompt choose for all, so a later token can change
//! earlier outputs. No query attends to a key behind its own. [`mod@reference`] has the equations.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

#[cfg(feature = "bench")]
pub mod bench;
mod chunk;
mod config;
mod gpu;
#[cfg(feature = "model")]
pub mod policy;
pub mod reference;
mod selection;

pub use attn_core::ndarray;
pub use attn_wgpu::attention::Inputs;
pub use attn_wgpu::{Error, Gpu, Tensor, wgpu};
pub use config::{BudgetRule, Config};
#[cfg(feature = "bench")]
pub use gpu::kernels;
pub use gpu::{FlexPrefill, Output};
pub use selection::{Head, Heads, Selection};
