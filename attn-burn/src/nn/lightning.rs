//! The layer of TransNormerLLM: gated linear attention with decay, then a gated linear unit.

use attn_core::Error;
use attn_lightning::Config as Lightning;
use attn_lightning::reference::initial_theta;
use attn_wgpu::Result;
use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::activation::silu;
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::{check, head_dim, join, linear, split};
use crate::ops;

/// `x / sqrt(mean(x^2) + epsilon)` over the last dimension: a norm without weights.
pub fn simple_rms_norm<const D: usize>(x: Tensor<D>, epsilon: f64) -> Tensor<D> {
    let mean = x.clone().square().mean_dim(D - 1);
    x / (mean + epsilon).sqrt()
}

/// Extents of a [`GatedLinearAttention`].
#[derive(Config, Debug)]
pub struct GatedLinearAttentionConfig {
    /// Elements of a token.
    pub d_model: usize,
    /// Heads.
    pub heads: usize,
    /// Number of the layer, from 0: later layers forget less.
    #[config(default = 0)]
    pub layer: usize,
    /// Layers of the model.
    #[config(default = 1)]
    pub layers: usize,
    /// Whether queries and keys know their positions, by angles that are learned. The paper's first layer
    /// has them, and the others do not.
    #[config(default = false)]
    pub lrpe: bool,
}

/// `(u * SRMSNorm(a)) Wout` with `a` linear attention of `silu(x Wq)`, `silu(x Wk)` and `x Wv`, and the gate
/// `u = x Wu`; no map has a bias.
#[derive(Module, Debug)]
pub struct GatedLinearAttention {
    /// `d_model` to `d_model`.
    pub query: Linear,
    /// `d_model` to `d_model`.
    pub key: Linear,
    /// `d_model` to `d_model`.
    pub value: Linear,
    /// `d_model` to `d_model`.
    pub gate: Linear,
    /// `d_model` to `d_model`.
    pub output: Linear,
    /// Angles a position, `[heads, dim]`, where queries and keys know theirs.
    pub theta: Option<Param<Tensor<2>>>,
    heads: usize,
    d_model: usize,
    #[module(skip)]
    attention: ops::Lightning,
}

/// What a [`GatedLinearAttention`] keeps of the tokens so far.
#[derive(Debug, Clone)]
pub struct LightningState {
    /// `[batch, heads, dim_qk, dim]`, where `dim_qk` is twice `dim` in a layer with angles.
    pub kv: Tensor<4>,
    /// Number of tokens.
    pub tokens: usize,
}

impl GatedLinearAttentionConfig {
    /// The module with random weights and the decays of the released models.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] for heads that do not divide, and as [`Lightning::validate`].
    pub fn init(&self, device: &Device) -> Result<GatedLinearAttention> {
        let config = Lightning::new(self.heads).with_layer(self.layer, self.layers);
        self.init_with(config, device)
    }

    /// The module with random weights and any decays; `layer` and `layers` are not looked at.
    ///
    /// # Errors
    /// As [`GatedLinearAttentionConfig::init`].
    pub fn init_with(&self, config: Lightning, device: &Device) -> Result<GatedLinearAttention> {
        let (d_model, heads) = (self.d_model, self.heads);
        let dim = head_dim(d_model, heads)?;
        if config.heads != heads {
            return Err(Error::config("heads", heads.to_string(), config.heads).into());
        }
        let map = || linear(d_model, d_model, false, device);
        let theta = self.lrpe.then(|| {
            let angles = initial_theta(heads, dim).into_iter().map(|x| x as f32).collect();
            let angles = TensorData::new::<f32, _>(angles, [heads, dim]);
            Param::from_tensor(Tensor::from_data(angles, device))
        });
        Ok(GatedLinearAttention {
            query: map(),
            key: map(),
            value: map(),
            gate: map(),
            output: map(),
            theta,
            heads,
            d_model,
            attention: ops::Lightning::new(config)?,
        })
    }
}

impl GatedLinearAttention {
    /// Tokens `[batch, tokens, d_model]` attend to earlier ones.
    ///
    /// # Errors
    /// Those of arguments that do not fit, and of [`apply`](crate::apply()).
    pub fn forward(&self, x: Tensor<3>) -> Result<Tensor<3>> {
        let [q, k, v] = self.heads(&x, 0)?;
        let attended = self.attention.forward(q, k, v)?;
        Ok(self.gated(x, attended))
    }

    /// The same behind earlier tokens, or from the start, with what later ones go on from.
    ///
    /// # Errors
    /// As [`GatedLinearAttention::forward`].
    pub fn forward_with_state(
        &self,
        x: Tensor<3>,
        state: Option<LightningState>,
    ) -> Result<(Tensor<3>, LightningState)> {
        let first = state.as_ref().map_or(0, |state| state.tokens);
        let [q, k, v] = self.heads(&x, first)?;
        let tokens = first + x.dims()[1];
        let kv = state.map(|state| state.kv);
        let ops::Continued { out, kv } = self.attention.forward_with_state(q, k, v, kv)?;
        Ok((self.gated(x, out), LightningState { kv, tokens }))
    }

    /// Queries, keys and values of tokens from position `first` on.
    fn heads(&self, x: &Tensor<3>, first: usize) -> Result<[Tensor<4>; 3]> {
        check("x", x, self.d_model)?;
        let map = |by: &Linear| by.forward(x.clone());
        let [q, k] = [&self.query, &self.key].map(|by| split(silu(map(by)), self.heads));
        let v = split(map(&self.value), self.heads);
        let Some(theta) = &self.theta else { return Ok([q, k, v]) };
        let positions = first as i64..(first + x.dims()[1]) as i64;
        let positions = Tensor::<1, Int>::arange(positions, &x.device()).float();
        let angles =
            positions.reshape([1, 1, -1, 1]) * theta.val().reshape([1, self.heads as i32, 1, -1]);
        let (cos, sin) = (angles.clone().cos(), angles.sin());
        let turned = |x: Tensor<4>| Tensor::cat(vec![x.clone() * cos.clone(), x * sin.clone()], 3);
        Ok([turned(q), turned(k), v])
    }

    fn gated(&self, x: Tensor<3>, attended: Tensor<4>) -> Tensor<3> {
        let normed = simple_rms_norm(join(attended), self.attention.config().epsilon);
        self.output.forward(self.gate.forward(x) * normed)
    }
}

/// Extents of a [`GatedLinearUnit`].
#[derive(Config, Debug)]
pub struct GatedLinearUnitConfig {
    /// Elements of a token.
    pub d_model: usize,
    /// Elements in between.
    pub d_hidden: usize,
}

/// The simple gated linear unit, `((x Wv) * (x Wu)) Wo`: no activation and no bias.
#[derive(Module, Debug)]
pub struct GatedLinearUnit {
    /// `d_model` to `d_hidden`.
    pub value: Linear,
    /// `d_model` to `d_hidden`.
    pub gate: Linear,
    /// `d_hidden` to `d_model`.
    pub output: Linear,
}

impl GatedLinearUnitConfig {
    /// The module with random weights.
    pub fn init(&self, device: &Device) -> GatedLinearUnit {
        let up = || linear(self.d_model, self.d_hidden, false, device);
        let output = linear(self.d_hidden, self.d_model, false, device);
        GatedLinearUnit { value: up(), gate: up(), output }
    }
}

impl GatedLinearUnit {
    /// Of tokens `[batch, tokens, d_model]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.output.forward(self.value.forward(x.clone()) * self.gate.forward(x))
    }
}

/// Extents of a [`TransNormerLayer`].
#[derive(Config, Debug)]
pub struct TransNormerLayerConfig {
    /// Of the attention.
    pub attention: GatedLinearAttentionConfig,
    /// Elements within the gated linear unit.
    pub d_hidden: usize,
}

/// `y = x + GLA(SRMSNorm(x))`, and `z = y + SGLU(SRMSNorm(y))`.
#[derive(Module, Debug)]
pub struct TransNormerLayer {
    /// Mixes tokens.
    pub attention: GatedLinearAttention,
    /// Of each token alone.
    pub unit: GatedLinearUnit,
}

impl TransNormerLayerConfig {
    /// The module with random weights and the decays of the released models.
    ///
    /// # Errors
    /// As [`GatedLinearAttentionConfig::init`].
    pub fn init(&self, device: &Device) -> Result<TransNormerLayer> {
        Ok(self.around(self.attention.init(device)?, device))
    }

    /// The module with random weights and any decays.
    ///
    /// # Errors
    /// As [`GatedLinearAttentionConfig::init_with`].
    pub fn init_with(&self, config: Lightning, device: &Device) -> Result<TransNormerLayer> {
        Ok(self.around(self.attention.init_with(config, device)?, device))
    }

    fn around(&self, attention: GatedLinearAttention, device: &Device) -> TransNormerLayer {
        let unit = GatedLinearUnitConfig::new(self.attention.d_model, self.d_hidden).init(device);
        TransNormerLayer { attention, unit }
    }
}

impl TransNormerLayer {
    /// Of tokens `[batch, tokens, d_model]`.
    ///
    /// # Errors
    /// As [`GatedLinearAttention::forward`].
    pub fn forward(&self, x: Tensor<3>) -> Result<Tensor<3>> {
        let attended = self.attention.forward(self.norm(x.clone()))?;
        Ok(self.second_half(x + attended))
    }

    /// The same behind earlier tokens, or from the start, with what later ones go on from.
    ///
    /// # Errors
    /// As [`GatedLinearAttention::forward`].
    pub fn forward_with_state(
        &self,
        x: Tensor<3>,
        state: Option<LightningState>,
    ) -> Result<(Tensor<3>, LightningState)> {
        let (attended, state) = self.attention.forward_with_state(self.norm(x.clone()), state)?;
        Ok((self.second_half(x + attended), state))
    }

    fn norm(&self, x: Tensor<3>) -> Tensor<3> {
        simple_rms_norm(x, self.attention.attention.config().epsilon)
    }

    fn second_half(&self, y: Tensor<3>) -> Tensor<3> {
        y.clone() + self.unit.forward(self.norm(y))
    }
}
