//! Aaren with its query and projections.

use attn_aaren::Config as Prefixes;
use attn_wgpu::Result;
use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::nn::Linear;
use burn::tensor::{Device, Int, Tensor};

use super::{check, head_dim, join, linear, split};
use crate::ops;

/// Extents of an [`Aaren`].
#[derive(Config, Debug)]
pub struct AarenConfig {
    /// Elements of a token.
    pub d_model: usize,
    /// Heads.
    pub heads: usize,
    /// Factor of the products of query and keys, `1 / sqrt(dim)` by default.
    pub scale: Option<f64>,
    /// Whether projections have a bias.
    #[config(default = true)]
    pub bias: bool,
}

/// Softmax attention of a learned query over the tokens up to each one, with projections of the query, keys,
/// values and output. All tokens share the query: a layer decides once how much a token matters.
#[derive(Module, Debug)]
pub struct Aaren {
    /// What the layer asks for, `[d_model]`.
    pub token: Param<Tensor<1>>,
    /// `d_model` to `d_model`, of `token`.
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
    attention: ops::Aaren,
}

impl AarenConfig {
    /// The module with random weights.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] for heads that do not divide, and for a scale that is not finite.
    pub fn init(&self, device: &Device) -> Result<Aaren> {
        let AarenConfig { d_model, heads, bias, scale } = *self;
        head_dim(d_model, heads)?;
        let mut config = Prefixes::new();
        config.scale = scale;
        let project = || linear(d_model, d_model, bias, device);
        Ok(Aaren {
            token: Initializer::Normal { mean: 0.0, std: 1.0 }.init([d_model], device),
            query: project(),
            key: project(),
            value: project(),
            output: project(),
            heads,
            d_model,
            attention: ops::Aaren::new(config)?,
        })
    }
}

impl Aaren {
    /// Outputs of all prefixes of tokens `[batch, tokens, d_model]`.
    ///
    /// # Errors
    /// Those of arguments that do not fit, and of [`apply`](crate::apply()).
    pub fn forward(&self, x: Tensor<3>) -> Result<Tensor<3>> {
        self.forward_valid(x, None)
    }

    /// The same with tokens that do not count: `valid` `[batch, tokens]` is 1 for a token that does and 0 for
    /// one that does not.
    ///
    /// # Errors
    /// As [`Aaren::forward`].
    pub fn forward_valid(&self, x: Tensor<3>, valid: Option<Tensor<2, Int>>) -> Result<Tensor<3>> {
        check("x", &x, self.d_model)?;
        let q = self.query.forward(self.token.val()).reshape([self.heads as i32, -1]);
        let k = split(self.key.forward(x.clone()), self.heads);
        let v = split(self.value.forward(x), self.heads);
        let attended = self.attention.forward_valid::<2>(q, k, v, valid)?;
        Ok(self.output.forward(join(attended)))
    }
}
