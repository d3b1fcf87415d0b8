//! Flow-Attention with its projections.

use attn_flowformer::Config as Flow;
use attn_wgpu::Result;
use burn::config::Config;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Int, Tensor};

use super::{check, head_dim, join, linear, split};
use crate::ops;

/// Extents of a [`FlowAttention`].
#[derive(Config, Debug)]
pub struct FlowAttentionConfig {
    /// Elements of a token.
    pub d_model: usize,
    /// Heads.
    pub heads: usize,
    /// Whether a token sees only itself and earlier ones.
    #[config(default = true)]
    pub causal: bool,
    /// Bound of what leaves a source; none by default.
    pub clamp: Option<f64>,
    /// Whether projections have a bias.
    #[config(default = true)]
    pub bias: bool,
}

/// Flow-Attention with projections of queries, keys, values and output. It knows no positions.
#[derive(Module, Debug)]
pub struct FlowAttention {
    /// `d_model` to `d_model`.
    pub query: Linear,
    /// `d_model` to `d_model`.
    pub key: Linear,
    /// `d_model` to `d_model`.
    pub value: Linear,
    /// `d_model` to `d_model`.
    pub output: Linear,
    heads: usize,
    d_model: usize,
    #[module(skip)]
    attention: ops::Flowformer,
}

impl FlowAttentionConfig {
    /// The module with random weights.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] for heads that do not divide, and as [`Flow::validate`].
    pub fn init(&self, device: &Device) -> Result<FlowAttention> {
        let FlowAttentionConfig { d_model, heads, bias, .. } = *self;
        head_dim(d_model, heads)?;
        let mut flow = Flow::new();
        (flow.causal, flow.clamp) = (self.causal, self.clamp);
        let project = || linear(d_model, d_model, bias, device);
        Ok(FlowAttention {
            query: project(),
            key: project(),
            value: project(),
            output: project(),
            heads,
            d_model,
            attention: ops::Flowformer::new(flow)?,
        })
    }
}

impl FlowAttention {
    /// Tokens `[batch, tokens, d_model]` attend to each other.
    ///
    /// # Errors
    /// Those of arguments that do not fit, and of [`apply`](crate::apply()).
    pub fn forward(&self, x: Tensor<3>) -> Result<Tensor<3>> {
        self.forward_valid(x, None)
    }

    /// The same with padding: `valid` `[batch, tokens]` is 1 for a token and 0 for padding.
    ///
    /// # Errors
    /// As [`FlowAttention::forward`].
    pub fn forward_valid(&self, x: Tensor<3>, valid: Option<Tensor<2, Int>>) -> Result<Tensor<3>> {
        self.attend(x.clone(), x, [valid.clone(), valid])
    }

    /// Tokens `[batch, queries, d_model]` attend to others, `[batch, keys, d_model]`, of which `valid`
    /// `[batch, keys]` tells padding; not for the causal form.
    ///
    /// # Errors
    /// As [`FlowAttention::forward`].
    pub fn forward_cross(
        &self,
        x: Tensor<3>,
        memory: Tensor<3>,
        valid: Option<Tensor<2, Int>>,
    ) -> Result<Tensor<3>> {
        self.attend(x, memory, [None, valid])
    }

    fn attend(
        &self,
        x: Tensor<3>,
        memory: Tensor<3>,
        [valid_q, valid_k]: [Option<Tensor<2, Int>>; 2],
    ) -> Result<Tensor<3>> {
        check("x", &x, self.d_model)?;
        check("memory", &memory, self.d_model)?;
        let q = split(self.query.forward(x), self.heads);
        let k = split(self.key.forward(memory.clone()), self.heads);
        let v = split(self.value.forward(memory), self.heads);
        let attended = self.attention.forward_valid(q, k, v, valid_q, valid_k)?;
        Ok(self.output.forward(join(attended)))
    }
}
