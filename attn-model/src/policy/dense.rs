//! The model's own attention.

use attn_wgpu::Tensor;

use super::{AttentionPolicy, Layer};
use crate::Result;

/// Attention as the model was trained with: every query meets all keys that the layer's mask allows.
/// The default.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dense;

impl AttentionPolicy for Dense {
    fn attend(&mut self, layer: &Layer<'_>) -> Result<Tensor> {
        layer.dense()
    }

    fn fork(&self) -> Result<Box<dyn AttentionPolicy>> {
        Ok(Box::new(*self))
    }
}
