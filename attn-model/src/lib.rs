//! Decoder-only language models from Hugging Face folders and GGUF files, run on any GPU.
//!
//! * [`Model`]: a model's weights on a device. [`Session`]: one sequence on its way through it.
//! * [`Options`]: how a model lies there, quantised weights packed or not; [`weight_forms`]: what that takes.
//! * [`Generate`]: continuing a text.
//! * [`policy`]: another attention in a model. [`Observer`]: looking on, layer by layer. [`HeadEdits`]:
//!   heads switched off, scaled or replaced.
//! * [`Source`]: a model's files, opened and checked. Weights stay on disk until they are asked for.
//! * [`ModelConfig`]: what the model is made of, in one form for all [families](Family).
//! * [`RopeConfig`]: rotary frequencies, with the scalings for long contexts.
//! * [`Weights`]: tensors, or rows of them, by their Hugging Face names, as f32, f16 or bf16.
//! * [`Tokenizer`], [`ChatTemplate`], [`DecodeStream`]: text to tokens and back.
//! * [`export`]: any source as a Hugging Face folder.
//! * [`Error`]: the file, the key or the tensor, what was expected, what came.
//!
//! Files may be damaged or hostile: every length, count, offset and extent is held against the size of
//! the file before anything is allocated for it.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]

mod blob;
mod cache;
mod config;
mod device;
mod error;
mod export;
mod form;
mod generate;
pub mod gguf;
mod heads;
mod layer;
mod linear;
mod model;
mod observe;
mod pass;
pub mod policy;
mod rope;
mod session;
mod source;
mod tokenizer;
mod weights;

pub use attn_core;
pub use attn_wgpu;
pub use attn_wgpu::DType;
pub use attn_wgpu::packed::BlockType;
pub use blob::Blob;
pub use cache::cache_dir;
pub use config::{
    Activation, Biases, EMBEDDING, FINAL_NORM, Family, HEAD, LayerConfig, ModelConfig,
};
pub use error::{Error, Result};
pub use export::{Progress, export};
pub use form::{WeightForm, weight_bytes, weight_forms};
pub use generate::{Generate, Generation};
pub use heads::{HeadEdit, HeadEdits};
pub use layer::Projection;
pub use model::{Model, Options, cache_bytes};
pub use observe::{AttentionInputs, AttentionView, Observer, Rows, TopKeys, Unobserved, Wants};
pub use pass::Pass;
pub use policy::AttentionPolicy;
pub use rope::{RopeConfig, RopeScaling};
pub use session::Session;
pub use source::Source;
pub use tokenizer::{ChatTemplate, DecodeStream, Message, Tokenizer};
pub use weights::{StoredType, TensorData, Values, Weights};
