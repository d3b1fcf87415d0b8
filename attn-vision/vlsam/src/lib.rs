//! VL-SAM on wgpu: attention maps of vision-language models as prompts for segmentation.

pub mod detect;
pub mod image;
mod map;
pub mod prompt;
pub mod segment;

pub use attn_core::ndarray;
pub use attn_wgpu::{Error, Gpu, Tensor, wgpu};
pub use map::AttentionMap;
