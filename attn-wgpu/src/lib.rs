//! Portable GPU compute for attention mechanisms, on `wgpu`.
//!
//! * [`Gpu`]: a device with its command stream, memory pool and compiled kernels. [`Gpu::new`]
//!   opens the best adapter, [`Gpu::builder`] chooses, [`Gpu::from_wgpu`] takes a caller's device.
//! * [`Tensor`]: a strided view of a device buffer.
//! * [`attention`]: fused dense attention with masks, grouped queries and log-sum-exp.
//! * [`plan`]: attention over sparse plans, which say the keys of each query.
//! * [`norm`], [`rope`], [`softmax`], [`embedding`], [`sample`], [`cache`], [`ops`]: the small
//!   kernels around attention in a language model, from token numbers to the next token.
//! * [`matmul`]: matrix products with bias, activation and residual, weights in f32 or half types.
//! * [`packed`]: the same products with weights that stay quantised, in the block formats of GGUF files.
//! * [`linear_attention`]: causal linear attention with decay, in blocks, with states and gradients.
//! * [`select`]: kernels of which selecting methods are made: sums, sorting, choices by row, bitsets.
//! * [`scan`]: linear recurrences, softmax over prefixes, products of rows and sums of columns.
//! * [`Kernel`]: loading and dispatching WGSL kernels, for the crates of this workspace and for
//!   yours alike; [`each`] runs those whose invocations are independent.
//! * [`settings`]: how kernels split their work, measured by `cargo xtask tune`.
//! * `bench` (feature `bench`): what a benchmark needs to know of a mechanism, and speed probes.
//!
//! Operations record; [`Gpu::flush`] or reading a tensor submits. Wrong arguments are errors of the
//! call, failures of the device are errors of the flush or the read. Nothing needs more than
//! WebGPU's default limits or any optional feature; subgroups, immediates and timestamps are used
//! where a device has them.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

mod activation;
pub mod attention;
#[cfg(feature = "bench")]
pub mod bench;
mod bind_groups;
pub mod cache;
mod capabilities;
pub mod dispatch;
pub mod each;
mod elementwise;
pub mod embedding;
mod error;
mod gpu;
mod guard;
mod kernel;
pub mod linear_attention;
pub mod matmul;
#[cfg(feature = "bench")]
mod mutant;
pub mod norm;
pub mod ops;
pub mod packed;
pub mod plan;
mod pool;
mod profile;
pub mod rope;
mod rows;
pub mod sample;
pub mod scan;
pub mod select;
pub mod settings;
pub mod softmax;
mod stream;
mod target;
mod tensor;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod vec4;

pub use activation::Activation;
#[cfg(feature = "bench")]
pub use attention::catalogue;
pub use attn_core;
pub use attn_core::ndarray;
pub use capabilities::{Capabilities, DeviceKind, Subgroups};
pub use error::{Error, Result};
pub use gpu::{AdapterDescription, Gpu, GpuBuilder, WarmUp};
pub use kernel::{Binding, Call, Constants, Kernel, KernelSource, expand};
pub use pool::MemoryStats;
pub use profile::{Clock, KernelTime, Profile};
pub use stream::StreamStats;
pub use tensor::{DType, Element, Tensor};
pub use wgpu;
