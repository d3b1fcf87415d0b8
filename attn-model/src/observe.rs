//! Looking into a model while it runs.

use attn_wgpu::Tensor;

use crate::Result;

/// Sees what a model computes, layer by layer. Tensors are handles to what has been recorded: reading
/// one submits everything before it.
pub trait Observer {
    /// The residual stream `[tokens, hidden]`: behind the embedding with `layer` 0, and behind each
    /// layer, the first of which is 1.
    ///
    /// # Errors
    /// Whatever the observer makes of it; the pass ends there.
    fn hidden(&mut self, layer: usize, hidden: &Tensor) -> Result<()> {
        let _ = (layer, hidden);
        Ok(())
    }

    /// What the attention of a layer, the first of which is 0, read and gave.
    ///
    /// # Errors
    /// Whatever the observer makes of it; the pass ends there.
    fn attention(&mut self, layer: usize, view: &AttentionView<'_>) -> Result<()> {
        let _ = (layer, view);
        Ok(())
    }
}

/// One layer's attention.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct AttentionView<'a> {
    /// Rotated queries of the new tokens, `[1, heads, tokens, head_dim]`.
    pub q: &'a Tensor,
    /// Rotated keys of all tokens, `[1, heads_kv, length, head_dim]`.
    pub k: &'a Tensor,
    /// Values of all tokens, `[1, heads_kv, length, head_dim]`.
    pub v: &'a Tensor,
    /// The result, `[1, tokens, heads, head_dim]`.
    pub out: &'a Tensor,
}

/// Sees nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}
