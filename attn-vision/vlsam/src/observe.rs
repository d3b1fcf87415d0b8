//! A language model of `attn-model` as a source of attention (feature `model`).

use std::ops::Range;

use attn_core::{Mask, dense};
use attn_model::{AttentionView, Model, ModelConfig, Observer, Wants};
use attn_wgpu::{Result, Tensor, ops};

use crate::{AttentionSource, LayerAttention, QueriesKeys};

/// Keeps the queries of every layer and token of a session, from its beginning, while it runs; the keys stay in
/// the session's cache. Looking on changes nothing of what the model computes.
///
/// The attention is the model's own on these queries and keys, whatever policy the session has.
#[derive(Debug, Clone)]
pub struct Recorder {
    layers: Vec<Recorded>,
}

#[derive(Debug, Clone)]
struct Recorded {
    attention: dense::Config,
    /// Of the pass that runs.
    tokens: Range<usize>,
    /// `[1, heads, .., head_dim]`, one after another.
    q: Vec<Tensor>,
    /// Of all tokens so far.
    k: Option<Tensor>,
}

impl Recorded {
    fn len(&self) -> usize {
        self.q.iter().map(|q| q.shape()[2]).sum()
    }

    /// Forgets tokens from `len` on: a session was cut.
    fn truncate(&mut self, len: usize) -> Result<()> {
        while self.len() > len {
            let Some(q) = self.q.pop() else { break };
            let first = self.len();
            if first < len {
                self.q.push(q.narrow(2, 0, len - first)?);
            }
        }
        Ok(())
    }
}

impl Recorder {
    /// For sessions of this model.
    pub fn new(model: &Model) -> Recorder {
        Recorder::of(model.config())
    }

    /// For sessions of a model of this configuration.
    pub fn of(config: &ModelConfig) -> Recorder {
        let layer = |window: Option<usize>| {
            let mask = match window {
                Some(window) => Mask::Window { left: window.saturating_sub(1), right: 0 },
                None => Mask::Causal,
            };
            let mut attention = dense::Config::new().with_mask(mask).with_scale(config.scale);
            if let Some(cap) = config.attention_soft_cap {
                attention = attention.with_soft_cap(cap);
            }
            Recorded { attention, tokens: 0..0, q: Vec::new(), k: None }
        };
        Recorder { layers: config.layers.iter().map(|own| layer(own.window)).collect() }
    }

    /// Bytes that the queries take which are kept: layers times heads times tokens times `head_dim` numbers.
    pub fn bytes(&self) -> u64 {
        let queries = self.layers.iter().flat_map(|layer| &layer.q);
        queries.map(|q| (q.len() * q.dtype().bytes()) as u64).sum()
    }

    /// Tokens seen so far.
    pub fn tokens(&self) -> usize {
        self.layers.first().map_or(0, Recorded::len)
    }

    /// What was seen, as a source of attention. It reads the keys in the session's cache: use it before the session
    /// is cut and goes on with other tokens.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] where nothing was seen, or a pass ended before the last layer; those of the
    /// device.
    pub fn source(&self) -> Result<ModelAttention> {
        let tokens = self.tokens();
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let whole =
                layer.len() == tokens && layer.k.as_ref().is_some_and(|k| k.shape()[2] >= tokens);
            let (Some(k), Some(first), true) = (&layer.k, layer.q.first(), whole) else {
                let expected = "passes through all layers";
                let got = format!("{} tokens in a layer, {tokens} in the first", layer.len());
                return Err(attn_core::Error::config("recorder", expected, got).into());
            };
            let q = match layer.q.len() {
                1 => first.clone(),
                _ => joined(&layer.q, tokens)?,
            };
            layers.push(QueriesKeys::new(&q, &k.narrow(2, 0, tokens)?, layer.attention.clone()));
        }
        Ok(ModelAttention { tokens, layers })
    }
}

/// Tensors one behind the other along dimension 2.
fn joined(parts: &[Tensor], tokens: usize) -> Result<Tensor> {
    let mut shape = parts[0].shape().to_vec();
    shape[2] = tokens;
    // By tokens, so that parts of half types are contiguous.
    let by_token = [shape[0], shape[2], shape[1], shape[3]];
    let all = Tensor::uninit(parts[0].gpu(), &by_token, parts[0].dtype())?;
    let mut first = 0;
    for part in parts {
        let count = part.shape()[2];
        ops::copy(&part.permute(&[0, 2, 1, 3])?, &all.narrow(1, first, count)?)?;
        first += count;
    }
    all.permute(&[0, 2, 1, 3])
}

impl Observer for Recorder {
    fn wants(&mut self, layer: usize, tokens: Range<usize>) -> Wants {
        let Some(layer) = self.layers.get_mut(layer) else { return Wants::nothing() };
        layer.tokens = tokens;
        Wants::nothing().with_inputs()
    }

    fn attention(&mut self, layer: usize, view: &AttentionView) -> attn_model::Result<()> {
        let (Some(layer), Some(inputs)) = (self.layers.get_mut(layer), &view.inputs) else {
            return Ok(());
        };
        let first = layer.tokens.start;
        layer.truncate(first)?;
        if layer.len() < first {
            let expected = format!("those from {} on", layer.len());
            let error = attn_core::Error::config("tokens", expected, format!("{:?}", layer.tokens));
            return Err(error.into());
        }
        layer.q.push(inputs.q.clone());
        layer.k = Some(inputs.k.clone());
        Ok(())
    }
}

/// Attention of a model over a sequence that a [`Recorder`] saw.
#[derive(Debug, Clone)]
pub struct ModelAttention {
    tokens: usize,
    layers: Vec<QueriesKeys>,
}

impl AttentionSource for ModelAttention {
    fn tokens(&self) -> usize {
        self.tokens
    }

    fn layers(&self) -> usize {
        self.layers.len()
    }

    fn layer(&self, layer: usize) -> Result<LayerAttention> {
        let missing = || attn_core::Error::config("layer", "one of the model", layer);
        Ok(LayerAttention::QueriesKeys(self.layers.get(layer).cloned().ok_or_else(missing)?))
    }
}
