//! One layer, as commands on the device.
//!
//! ```text
//! x = x + post(attend(norm(x)) W_o)
//! x = x + post((act(norm(x) W_gate) * norm(x) W_up) W_down)
//! ```
//! where `post` is a norm in Gemma's models and nothing in others.

use std::cell::OnceCell;

use attn_wgpu::cache::KvCache;
use attn_wgpu::norm::rms_norm;
use attn_wgpu::{Activation, Tensor, ops};

use crate::device::{Device, LayerWeights};
use crate::heads::DeviceEdits;
use crate::linear::Linear;
use crate::model::rms;
use crate::observe::{Observer, Wants, view};
use crate::policy::{AttentionPolicy, KeyForm, Layer, Phase};
use crate::{ModelConfig, Result};

/// New tokens on their way through the layers.
#[derive(Debug)]
pub(crate) struct Step<'a> {
    pub(crate) config: &'a ModelConfig,
    pub(crate) device: &'a Device,
    /// Of each new token, `[tokens]`, u32.
    pub(crate) positions: Tensor,
    /// Of every token, the new ones last.
    pub(crate) all_positions: &'a [u32],
    /// The same on the device, once somebody asks.
    pub(crate) on_device: OnceCell<Tensor>,
    /// How many are new.
    pub(crate) tokens: usize,
    pub(crate) phase: Phase,
    pub(crate) form: KeyForm,
}

/// What others do with a layer's attention.
pub(crate) struct Guests<'a> {
    pub(crate) policy: &'a mut dyn AttentionPolicy,
    pub(crate) edits: Option<&'a DeviceEdits>,
    pub(crate) observer: &'a mut dyn Observer,
}

/// Queries, keys and values of some tokens in one layer, not rotated.
#[derive(Debug, Clone)]
pub struct Projection {
    /// `[1, heads, tokens, head_dim]`, f32.
    pub q: Tensor,
    /// `[1, heads_kv, tokens, head_dim]`, f32.
    pub k: Tensor,
    /// `[1, heads_kv, tokens, head_dim]`, f32.
    pub v: Tensor,
}

impl Step<'_> {
    /// Runs a layer on `x` `[tokens, hidden]`; keys and values go to the end of `cache`.
    pub(crate) fn layer(
        &self,
        number: usize,
        x: &Tensor,
        cache: &mut KvCache,
        guests: &mut Guests<'_>,
    ) -> Result<Tensor> {
        let layer = &self.device.layers[number];
        let attended = self.attention(number, x, cache, guests)?;
        let x = self.add(x, &attended, &layer.output, layer.post_attention_norm.as_ref())?;
        let normed = norm(self.config, &x, &layer.mlp_norm)?;
        let inner = self.gated(layer, &normed)?;
        self.add(&x, &inner, &layer.down, layer.post_mlp_norm.as_ref())
    }

    /// Positions of all tokens, `[N]`, u32.
    pub(crate) fn key_positions(&self) -> Result<Tensor> {
        if let Some(positions) = self.on_device.get() {
            return Ok(positions.clone());
        }
        let (gpu, all) = (self.positions.gpu(), self.all_positions);
        let positions = Tensor::from_slice(gpu, all, &[all.len()])?;
        Ok(self.on_device.get_or_init(|| positions).clone())
    }

    /// Attention of the new tokens to all cached ones, heads side by side: `[tokens, heads head_dim]`.
    fn attention(
        &self,
        number: usize,
        x: &Tensor,
        cache: &mut KvCache,
        guests: &mut Guests<'_>,
    ) -> Result<Tensor> {
        let weights = &self.device.layers[number];
        let kind = &self.device.kinds[weights.kind];
        let Projection { mut q, k, v } = project(self.config, weights, x)?;
        match self.form {
            KeyForm::Rotated => cache.append(&kind.rope.apply(&k, &self.positions)?, &v)?,
            KeyForm::Raw => cache.append(&k, &v)?,
        }
        if let Some(edits) = guests.edits {
            q = edits.queries(number, q)?;
        }
        let layer = Layer { index: number, q, cache, step: self, kind, found: Default::default() };
        let mut out = guests.policy.attend(&layer)?;
        layer.check(&out)?;
        if let Some(edits) = guests.edits {
            out = edits.outputs(&layer, out)?;
        }
        let end = self.all_positions.len();
        let wants = guests.observer.wants(number, end - self.tokens..end);
        if wants != Wants::nothing() {
            guests.observer.attention(number, &view(&layer, &out, &wants)?)?;
        }
        let width = self.config.heads * self.config.head_dim;
        Ok(out.permute(&[0, 2, 1, 3])?.contiguous()?.reshape(&[self.tokens, width])?)
    }

    fn gated(&self, layer: &LayerWeights, x: &Tensor) -> Result<Tensor> {
        let mlp = self.config.mlp;
        let both = layer.gate_up.apply(x)?;
        let activation = match self.config.activation {
            crate::Activation::Silu => Activation::Silu,
            crate::Activation::GeluTanh => Activation::GeluTanh,
        };
        Ok(ops::gated(&both.narrow(1, 0, mlp)?, &both.narrow(1, mlp, mlp)?, activation)?)
    }

    /// `x + norm(y W)`, without the norm where there is none.
    fn add(&self, x: &Tensor, y: &Tensor, map: &Linear, norm: Option<&Tensor>) -> Result<Tensor> {
        match norm {
            None => map.add_to(x, y),
            Some(norm) => Ok(ops::add(x, &self::norm(self.config, &map.apply(y)?, norm)?)?),
        }
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight`, or `* (1 + weight)`.
fn norm(config: &ModelConfig, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    Ok(rms_norm(x, weight, &rms(config))?)
}

/// Queries, keys and values of the residual stream `x` `[tokens, hidden]`.
pub(crate) fn project(
    config: &ModelConfig,
    weights: &LayerWeights,
    x: &Tensor,
) -> Result<Projection> {
    let ModelConfig { heads, heads_kv, head_dim, .. } = *config;
    let qkv = weights.qkv.apply(&norm(config, x, &weights.attention_norm)?)?;
    let part = |first: usize, count: usize| -> Result<Tensor> {
        let part = qkv.narrow(1, first * head_dim, count * head_dim)?;
        // [tokens, heads head_dim] as [1, heads, tokens, head_dim].
        let heads = part.split(1, &[count, head_dim])?.permute(&[1, 0, 2])?;
        Ok(heads.split(0, &[1, count])?)
    };
    let (mut q, mut k) = (part(0, heads)?, part(heads, heads_kv)?);
    let v = part(heads + heads_kv, heads_kv)?;
    if let Some([q_norm, k_norm]) = &weights.qk_norms {
        q = norm(config, &q, q_norm)?;
        k = norm(config, &k, k_norm)?;
    }
    Ok(Projection { q, k, v })
}
