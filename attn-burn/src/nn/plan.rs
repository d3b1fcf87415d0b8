//! Attention over a plan with its projections.

use attn_core::Mask;
use attn_core::dense::Config as Dense;
use attn_wgpu::Result;
use burn::config::Config;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor};

use super::{check, head_dim, join, key_heads, linear, split};
use crate::ops;

/// Extents of a [`PlanAttention`].
#[derive(Config, Debug)]
pub struct PlanAttentionConfig {
    /// Elements of a token.
    pub d_model: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values, a divisor of `heads`; as many as queries have by default.
    pub heads_kv: Option<usize>,
    /// Whether plans are causal.
    #[config(default = true)]
    pub causal: bool,
    /// Whether projections have a bias.
    #[config(default = true)]
    pub bias: bool,
}

/// Attention over plans, with projections of queries, keys, values and output.
#[derive(Module, Debug)]
pub struct PlanAttention {
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
    attention: ops::PlanAttention,
}

impl PlanAttentionConfig {
    /// The module with random weights.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] for heads that do not divide.
    pub fn init(&self, device: &Device) -> Result<PlanAttention> {
        let PlanAttentionConfig { d_model, heads, bias, causal, .. } = *self;
        let dim = head_dim(d_model, heads)?;
        let heads_kv = key_heads(heads, self.heads_kv)?;
        let mask = if causal { Mask::Causal } else { Mask::Full };
        Ok(PlanAttention {
            query: linear(d_model, d_model, bias, device),
            key: linear(d_model, heads_kv * dim, bias, device),
            value: linear(d_model, heads_kv * dim, bias, device),
            output: linear(d_model, d_model, bias, device),
            heads,
            heads_kv,
            d_model,
            attention: ops::PlanAttention::new(Dense::new().with_mask(mask))?,
        })
    }
}

impl PlanAttention {
    /// Tokens `[batch, tokens, d_model]` attend to those that the plan gives them. The plan is of this
    /// batch, these heads and this number of tokens.
    ///
    /// # Errors
    /// Those of arguments that do not fit, and of [`apply`](crate::apply()).
    pub fn forward(&self, x: Tensor<3>, plan: &ops::Plan) -> Result<Tensor<3>> {
        check("x", &x, self.d_model)?;
        let q = split(self.query.forward(x.clone()), self.heads);
        let k = split(self.key.forward(x.clone()), self.heads_kv);
        let v = split(self.value.forward(x), self.heads_kv);
        Ok(self.output.forward(join(self.attention.forward(q, k, v, plan)?)))
    }
}
