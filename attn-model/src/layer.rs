//! One layer, as commands on the device.
//!
//! ```text
//! x = x + post(attend(norm(x)) W_o)
//! x = x + post((act(norm(x) W_gate) * norm(x) W_up) W_down)
//! ```
//! where `post` is a norm in Gemma's models and nothing in others.

use attn_wgpu::attention::Inputs;
use attn_wgpu::cache::KvCache;
use attn_wgpu::matmul::{Epilogue, matmul_with};
use attn_wgpu::norm::rms_norm;
use attn_wgpu::{Activation, DType, Tensor, ops};

use crate::device::{Device, Layer, Linear};
use crate::model::rms;
use crate::observe::{AttentionView, Observer};
use crate::{ModelConfig, Result};

/// New tokens on their way through the layers.
pub(crate) struct Step<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) device: &'a Device,
    /// Of each new token, `[tokens]`, u32.
    pub(crate) positions: Tensor,
    /// How many.
    pub(crate) tokens: usize,
}

impl Step<'_> {
    /// Runs a layer on `x` `[tokens, hidden]`; keys and values go to the end of `cache`.
    pub(crate) fn layer(
        &self,
        number: usize,
        x: &Tensor,
        cache: &mut KvCache,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        let layer = &self.device.layers[number];
        let normed = self.norm(x, &layer.attention_norm)?;
        let attended = self.attention(number, &normed, cache, observer)?;
        let x = self.add(x, &attended, &layer.output, layer.post_attention_norm.as_ref())?;
        let normed = self.norm(&x, &layer.mlp_norm)?;
        let inner = self.gated(layer, &normed)?;
        self.add(&x, &inner, &layer.down, layer.post_mlp_norm.as_ref())
    }

    /// `x / sqrt(mean(x^2) + eps) * weight`, or `* (1 + weight)`.
    pub(crate) fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        Ok(rms_norm(x, weight, &rms(self.config))?)
    }

    /// Attention of the new tokens to all cached ones, heads side by side: `[tokens, heads head_dim]`.
    fn attention(
        &self,
        number: usize,
        x: &Tensor,
        cache: &mut KvCache,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        let ModelConfig { heads, heads_kv, head_dim, .. } = *self.config;
        let layer = &self.device.layers[number];
        let kind = &self.device.kinds[layer.kind];
        let qkv = linear(x, &layer.qkv)?;
        let part = |first: usize, count: usize| -> Result<Tensor> {
            let part = qkv.narrow(1, first * head_dim, count * head_dim)?;
            // [tokens, heads head_dim] as [1, heads, tokens, head_dim].
            let heads = part.split(1, &[count, head_dim])?.permute(&[1, 0, 2])?;
            Ok(heads.split(0, &[1, count])?)
        };
        let (mut q, mut k) = (part(0, heads)?, part(heads, heads_kv)?);
        let v = part(heads + heads_kv, heads_kv)?;
        if let Some([q_norm, k_norm]) = &layer.qk_norms {
            q = self.norm(&q, q_norm)?;
            k = self.norm(&k, k_norm)?;
        }
        // Attention takes queries of the type of the keys.
        let rotated = Tensor::uninit(x.gpu(), q.shape(), cache.dtype())?;
        kind.rope.apply_into(&q, &self.positions, &rotated)?;
        cache.append(&kind.rope.apply(&k, &self.positions)?, &v)?;
        let (keys, values) = (cache.keys()?, cache.values()?);
        // Written so that the heads of a token lie side by side, as the output map reads them.
        let out = Tensor::uninit(x.gpu(), &[1, self.tokens, heads, head_dim], cache.dtype())?;
        kind.attention.forward_into(
            Inputs::new(&rotated, &keys, &values),
            &out.permute(&[0, 2, 1, 3])?,
            None,
        )?;
        observer
            .attention(number, &AttentionView { q: &rotated, k: &keys, v: &values, out: &out })?;
        Ok(out.reshape(&[self.tokens, heads * head_dim])?)
    }

    fn gated(&self, layer: &Layer, x: &Tensor) -> Result<Tensor> {
        let mlp = self.config.mlp;
        let both = linear(x, &layer.gate_up)?;
        let activation = match self.config.activation {
            crate::Activation::Silu => Activation::Silu,
            crate::Activation::GeluTanh => Activation::GeluTanh,
        };
        Ok(ops::gated(&both.narrow(1, 0, mlp)?, &both.narrow(1, mlp, mlp)?, activation)?)
    }

    /// `x + norm(y W)`, without the norm where there is none.
    fn add(&self, x: &Tensor, y: &Tensor, map: &Linear, norm: Option<&Tensor>) -> Result<Tensor> {
        match norm {
            None => Ok(matmul_with(y, &map.weight, &epilogue(map).with_residual(x))?),
            Some(norm) => Ok(ops::add(x, &self.norm(&linear(y, map)?, norm)?)?),
        }
    }
}

/// `x W^T + b`, in f32.
fn linear(x: &Tensor, map: &Linear) -> Result<Tensor> {
    Ok(matmul_with(x, &map.weight, &epilogue(map))?)
}

fn epilogue(map: &Linear) -> Epilogue<'_> {
    let plain = Epilogue::new().with_dtype(DType::F32);
    match &map.bias {
        Some(bias) => plain.with_bias(bias),
        None => plain,
    }
}
