//! Attention mechanisms of this workspace as operations and modules of `burn` 0.22.
//!
//! * [`device()`]: burn's wgpu device, shared with our kernels; [`gpu`] is the handle for `attn-wgpu`.
//! * [`nn`]: modules with projections and records.
//! * [`ops`]: the mechanisms as functions of burn's tensors.
//! * [`Operation`] and [`apply()`]: how kernels of one's own become differentiable operations.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

mod apply;
mod cross;
mod device;
pub mod nn;
mod operands;
mod operation;
pub mod ops;

pub use apply::{Inputs, Outputs, apply};
pub use attn_aaren;
pub use attn_blockrank;
pub use attn_core::{self, dense, plan};
pub use attn_dare;
pub use attn_flowformer;
pub use attn_lightning;
pub use attn_routing;
pub use attn_titans;
pub use attn_wgpu::{self, DType, Error, Gpu, Result, wgpu};
pub use burn;
pub use device::{device, gpu, init, share};
pub use operation::{Backward, Operation, Spec};
