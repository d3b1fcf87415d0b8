//! Attention of the Routing Transformer with its projections and centroids.

use attn_routing::Config as Routes;
use attn_wgpu::Result;
use burn::config::Config;
use burn::module::{Flag, Module, Param, RunningState};
use burn::nn::Linear;
use burn::tensor::{Device, Distribution, Int, Tensor};

use super::{check, head_dim, join, linear, split};
use crate::ops;

/// Extents of a [`RoutingAttention`].
#[derive(Config, Debug)]
pub struct RoutingAttentionConfig {
    /// Elements of a token.
    pub d_model: usize,
    /// Heads.
    pub heads: usize,
    /// Centroids of a head.
    pub clusters: usize,
    /// Tokens that a centroid takes; `clusters * window` is about the length.
    pub window: usize,
    /// Whether a token sees only itself and earlier ones. The choice of tokens is not causal.
    #[config(default = true)]
    pub causal: bool,
    /// Whether keys are the queries.
    #[config(default = true)]
    pub shared_qk: bool,
    /// Share that centroids keep in a step.
    #[config(default = 0.999)]
    pub decay: f64,
    /// Factor of the commitment loss.
    #[config(default = 1e-4)]
    pub commitment: f64,
    /// Factor of the products of normalised queries and keys.
    #[config(default = 1.0)]
    pub scale: f64,
    /// Whether projections have a bias.
    #[config(default = true)]
    pub bias: bool,
}

/// Attention within the clusters of online k-means, with projections of queries, keys, values and output.
///
/// In training, that is on a device with gradients and while `training` is enabled, each forward pass moves
/// the centroids, as burn's `BatchNorm` does with its averages; they are in the record.
#[derive(Module, Debug)]
pub struct RoutingAttention {
    /// `d_model` to `d_model`.
    pub query: Linear,
    /// `d_model` to `d_model`; none where keys are the queries.
    pub key: Option<Linear>,
    /// `d_model` to `d_model`.
    pub value: Linear,
    /// `d_model` to `d_model`.
    pub output: Linear,
    /// The centroids, `[heads, clusters, dim]`.
    pub means: RunningState<Tensor<3>>,
    /// Their moving sums.
    pub sums: RunningState<Tensor<3>>,
    /// Their moving counts, `[heads, clusters]`.
    pub counts: RunningState<Tensor<2>>,
    /// Whether centroids follow the tokens.
    pub training: Param<Flag>,
    heads: usize,
    d_model: usize,
    #[module(skip)]
    routing: ops::Routing,
}

/// What [`RoutingAttention::forward`] computes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Routed {
    /// `[batch, tokens, d_model]`.
    pub out: Tensor<3>,
    /// The commitment loss, `[1]`, to be added to the model's loss; none outside of training.
    pub commitment: Option<Tensor<1>>,
}

impl RoutingAttentionConfig {
    /// The module with random weights and centroids.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] for heads that do not divide, and as [`attn_routing::Config::validate`].
    pub fn init(&self, device: &Device) -> Result<RoutingAttention> {
        let RoutingAttentionConfig { d_model, heads, bias, clusters, .. } = *self;
        let dim = head_dim(d_model, heads)?;
        let mut routes = Routes::new(clusters, self.window)
            .with_shared_qk(self.shared_qk)
            .with_decay(self.decay)
            .with_scale(self.scale);
        (routes.causal, routes.commitment) = (self.causal, self.commitment);
        let routing = ops::Routing::new(routes)?;
        let project = || linear(d_model, d_model, bias, device);
        let normals =
            Tensor::random([heads, clusters, dim], Distribution::Normal(0.0, 1.0), device);
        let means: Tensor<3> = normalised(normals);
        Ok(RoutingAttention {
            query: project(),
            key: (!self.shared_qk).then(project),
            value: project(),
            output: project(),
            sums: RunningState::new(means.clone()),
            means: RunningState::new(means),
            counts: RunningState::new(Tensor::ones([heads, clusters], device)),
            training: Param::from_bool(true),
            heads,
            d_model,
            routing,
        })
    }
}

/// Centroids begin normalised as tokens are.
fn normalised(x: Tensor<3>) -> Tensor<3> {
    let centred = x.clone() - x.mean_dim(2);
    let variance = centred.clone().square().mean_dim(2);
    centred / (variance + 1e-6).sqrt()
}

impl RoutingAttention {
    /// Tokens `[batch, tokens, d_model]` attend within clusters; `valid`, `[batch, tokens]`, is 1 for a
    /// token and 0 for padding.
    ///
    /// # Errors
    /// Those of arguments that do not fit, and of [`apply`](crate::apply()).
    pub fn forward(&self, x: Tensor<3>, valid: Option<Tensor<2, Int>>) -> Result<Routed> {
        check("x", &x, self.d_model)?;
        let device = x.device();
        let q = split(self.query.forward(x.clone()), self.heads);
        let k = match &self.key {
            Some(key) => split(key.forward(x.clone()), self.heads),
            None => q.clone(),
        };
        let v = split(self.value.forward(x), self.heads);
        if !(device.is_autodiff() && self.training.is_enabled()) {
            let means = self.means.value().to_device(&device);
            let out = self.routing.forward(q, k, v, valid, means)?;
            return Ok(Routed { out: self.output.forward(join(out)), commitment: None });
        }
        let centroids = ops::Centroids {
            means: self.means.value_sync().to_device(&device),
            sums: self.sums.value_sync().to_device(&device),
            counts: self.counts.value_sync().to_device(&device),
        };
        let trained = self.routing.train(q, k, v, valid, &centroids)?;
        self.means.update(trained.centroids.means.detach());
        self.sums.update(trained.centroids.sums.detach());
        self.counts.update(trained.centroids.counts.detach());
        let out = self.output.forward(join(trained.out));
        Ok(Routed { out, commitment: Some(trained.commitment) })
    }
}
