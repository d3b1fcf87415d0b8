//! Dense attention with its projections.

use attn_core::Mask;
use attn_core::dense::Config as Dense;
use attn_wgpu::Result;
use burn::config::Config;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};

use super::{check, head_dim, join, key_heads, linear, split};
use crate::ops;

/// Extents of an [`Attention`].
#[derive(Config, Debug)]
pub struct AttentionConfig {
    /// Elements of a token.
    pub d_model: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values, a divisor of `heads`; as many as queries have by default.
    pub heads_kv: Option<usize>,
    /// Whether a token sees only itself and earlier ones.
    #[config(default = true)]
    pub causal: bool,
    /// Whether projections have a bias.
    #[config(default = true)]
    pub bias: bool,
}

/// Dense attention with projections of queries, keys, values and output.
#[derive(Module, Debug)]
pub struct Attention {
    /// `d_model` to `heads * dim`.
    pub query: Linear,
    /// `d_model` to `heads_kv * dim`.
    pub key: Linear,
    /// `d_model` to `heads_kv * dim`.
    pub value: Linear,
    /// `heads * dim` to `d_model`.
    pub output: Linear,
    heads: usize,
    heads_kv: usize,
    d_model: usize,
    #[module(skip)]
    attention: ops::Attention,
}

impl AttentionConfig {
    /// The module with random weights and the mask that `causal` says.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] for heads that do not divide.
    pub fn init(&self, device: &Device) -> Result<Attention> {
        let mask = if self.causal { Mask::Causal } else { Mask::Full };
        self.init_with(Dense::new().with_mask(mask), device)
    }

    /// The module with random weights and any mask, soft-cap and modifier; `causal` is not looked at.
    ///
    /// # Errors
    /// As [`AttentionConfig::init`], and those of the configuration.
    pub fn init_with(&self, attention: Dense, device: &Device) -> Result<Attention> {
        let AttentionConfig { d_model, heads, bias, .. } = *self;
        let dim = head_dim(d_model, heads)?;
        let heads_kv = key_heads(heads, self.heads_kv)?;
        Ok(Attention {
            query: linear(d_model, d_model, bias, device),
            key: linear(d_model, heads_kv * dim, bias, device),
            value: linear(d_model, heads_kv * dim, bias, device),
            output: linear(d_model, d_model, bias, device),
            heads,
            heads_kv,
            d_model,
            attention: ops::Attention::new(attention)?,
        })
    }
}

impl Attention {
    /// Tokens `[batch, tokens, d_model]` attend to each other.
    ///
    /// # Errors
    /// Those of arguments that do not fit, and of [`apply`](crate::apply()).
    pub fn forward(&self, x: Tensor<3>) -> Result<Tensor<3>> {
        self.forward_cross(x.clone(), x)
    }

    /// Tokens `[batch, queries, d_model]` attend to others, `[batch, keys, d_model]`.
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn forward_cross(&self, x: Tensor<3>, memory: Tensor<3>) -> Result<Tensor<3>> {
        self.forward_by(&self.attention, x, memory)
    }

    /// The same by another operation, for masks that depend on lengths.
    pub(super) fn forward_by(
        &self,
        attention: &ops::Attention,
        x: Tensor<3>,
        memory: Tensor<3>,
    ) -> Result<Tensor<3>> {
        check("x", &x, self.d_model)?;
        check("memory", &memory, self.d_model)?;
        let q = split(self.query.forward(x), self.heads);
        let k = split(self.key.forward(memory.clone()), self.heads_kv);
        let v = split(self.value.forward(memory), self.heads_kv);
        Ok(self.output.forward(join(attention.forward(q, k, v)?)))
    }
}
