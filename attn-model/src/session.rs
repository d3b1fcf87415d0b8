//! A sequence of tokens on its way through a model.

use std::ops::Range;

use attn_wgpu::cache::KvCache;
use attn_wgpu::embedding::gather_rows;
use attn_wgpu::softmax::log_softmax_gather;
use attn_wgpu::{DType, Tensor};

use crate::layer::Step;
use crate::observe::{Observer, Unobserved};
use crate::{Model, Result};

/// Bytes of logits that are computed at once.
const LOGIT_BYTES: usize = 16 << 20;

/// One sequence: its tokens so far, and their keys and values in every layer.
///
/// Calls record commands; reading a result submits them. Where a call fails, the session is as it was
/// before.
#[derive(Debug)]
pub struct Session {
    model: Model,
    caches: Vec<KvCache>,
    /// Of each token so far.
    positions: Vec<u32>,
}

impl Session {
    /// An empty sequence with room for `capacity` tokens; more tokens make it grow, with a copy.
    /// Up to there, memory does not change once the first tokens have run.
    ///
    /// # Errors
    /// Those of allocation.
    pub fn new(model: &Model, capacity: usize) -> Result<Session> {
        let config = model.config();
        let cache = || {
            let (heads, dim) = (config.heads_kv, config.head_dim);
            KvCache::new(model.gpu(), 1, heads, dim, dim, model.options().cache, capacity)
        };
        let caches = config.layers.iter().map(|_| cache()).collect::<Result<_, _>>()?;
        for kind in &model.device().kinds {
            kind.rope.reserve(capacity)?;
        }
        Ok(Session { model: model.clone(), caches, positions: Vec::new() })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Number of tokens so far.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether there is no token yet.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Bytes that keys and values take on the device.
    pub fn bytes(&self) -> u64 {
        self.caches.iter().map(KvCache::bytes).sum()
    }

    /// Runs the model on `tokens` behind those so far, and keeps their keys and values. Returns the
    /// residual stream behind the last layer, `[tokens, hidden]`, f32, of which [`Session::logits`]
    /// makes logits.
    ///
    /// `positions` are what queries and keys are rotated by, one a token; `None` counts on from the
    /// last token. Which keys a token sees depends on the order of the tokens alone.
    ///
    /// # Errors
    /// [`attn_core::Error::Data`] for a token that the vocabulary lacks,
    /// [`attn_core::Error::Shape`] for another number of positions; those of the device.
    pub fn forward(&mut self, tokens: &[u32], positions: Option<&[u32]>) -> Result<Tensor> {
        self.forward_observed(tokens, positions, &mut Unobserved)
    }

    /// [`Session::forward`], with an observer looking on.
    ///
    /// # Errors
    /// As [`Session::forward`], and those of the observer.
    pub fn forward_observed(
        &mut self,
        tokens: &[u32],
        positions: Option<&[u32]>,
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        let positions = self.checked(tokens, positions)?;
        let layers = self.caches.len();
        let outcome = self.run(layers, tokens, &positions, observer);
        match &outcome {
            Ok(_) => self.positions.extend(positions),
            Err(_) => self.cut(self.len()),
        }
        outcome
    }

    /// The residual stream behind the first `layer` layers, `[tokens, hidden]`, for `tokens` behind
    /// those so far; with 0 the embedding. The session stays as it is.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] for a layer that the model lacks; as [`Session::forward`].
    pub fn run_to(
        &mut self,
        layer: usize,
        tokens: &[u32],
        positions: Option<&[u32]>,
    ) -> Result<Tensor> {
        if layer > self.caches.len() {
            let expected = format!("at most {} layers", self.caches.len());
            return Err(attn_core::Error::config("layer", expected, layer).into());
        }
        let positions = self.checked(tokens, positions)?;
        let outcome = self.run(layer, tokens, &positions, &mut Unobserved);
        self.cut(self.len());
        outcome
    }

    /// Forgets all tokens but the first `len`.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] if there are not so many.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len > self.len() {
            let expected = format!("at most {} tokens", self.len());
            return Err(attn_core::Error::config("len", expected, len).into());
        }
        self.positions.truncate(len);
        self.cut(len);
        Ok(())
    }

    /// Another session with the same tokens. Keys and values are shared until one of the two goes on.
    pub fn fork(&self) -> Session {
        Session {
            model: self.model.clone(),
            caches: self.caches.iter().map(KvCache::fork).collect(),
            positions: self.positions.clone(),
        }
    }

    /// Logits `[rows, vocabulary]`, f32, of the rows `rows` of what [`Session::forward`] returned.
    /// They are large: [`Session::logit_rows`] are a good number at once.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] for rows that `hidden` lacks; those of the device.
    pub fn logits(&self, hidden: &Tensor, rows: Range<usize>) -> Result<Tensor> {
        self.model.logits(hidden, rows)
    }

    /// How many rows of logits take 16 MiB, at least 1.
    pub fn logit_rows(&self) -> usize {
        (LOGIT_BYTES / 4 / self.model.config().vocabulary.max(1)).max(1)
    }

    /// Runs the model on `tokens` and returns the negative log-probability of each but the first
    /// behind those in front of it, in nats. Logits are made some rows at a time.
    ///
    /// # Errors
    /// As [`Session::forward`].
    pub fn score(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let hidden = self.forward(tokens, None)?;
        let count = tokens.len().saturating_sub(1);
        let (gpu, at_once) = (self.model.gpu().clone(), self.logit_rows());
        let mut all = Vec::with_capacity(count);
        for first in (0..count).step_by(at_once) {
            let rows = first..(first + at_once).min(count);
            let targets = &tokens[rows.start + 1..rows.end + 1];
            let targets = Tensor::from_slice(&gpu, targets, &[targets.len()])?;
            let logits = self.logits(&hidden, rows)?;
            let scores = log_softmax_gather(&logits, &targets, None)?.to_vec::<f32>()?;
            all.extend(scores.into_iter().map(|score| -score));
        }
        Ok(all)
    }

    /// Position of the next token.
    fn next_position(&self) -> u32 {
        self.positions.last().map_or(0, |last| last.saturating_add(1))
    }

    pub(crate) fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let vocabulary = self.model.config().vocabulary;
        match tokens.iter().find(|token| **token as usize >= vocabulary) {
            None => Ok(()),
            Some(token) => {
                let expected = format!("tokens below {vocabulary}");
                Err(attn_core::Error::data("tokens", expected, token).into())
            }
        }
    }

    /// Positions of new tokens that can be run.
    fn checked(&self, tokens: &[u32], positions: Option<&[u32]>) -> Result<Vec<u32>> {
        self.check_tokens(tokens)?;
        let first = self.next_position();
        let count = u32::try_from(tokens.len()).ok().and_then(|count| first.checked_add(count));
        match (positions, count) {
            (Some(given), _) if given.len() != tokens.len() => {
                let expected = format!("[{}], one a token", tokens.len());
                Err(attn_core::Error::shape("positions", expected, &[given.len()]).into())
            }
            (Some(given), _) => Ok(given.to_vec()),
            (None, Some(end)) => Ok((first..end).collect()),
            (None, None) => {
                let got = format!("{first} + {}", tokens.len());
                Err(attn_core::Error::data("positions", "numbers below 2^32", got).into())
            }
        }
    }

    fn run(
        &mut self,
        layers: usize,
        tokens: &[u32],
        positions: &[u32],
        observer: &mut dyn Observer,
    ) -> Result<Tensor> {
        let (gpu, config, device) = (self.model.gpu(), self.model.config(), self.model.device());
        if tokens.is_empty() {
            return Ok(Tensor::zeros(gpu, &[0, config.hidden], DType::F32)?);
        }
        if let Some(&last) = positions.iter().max() {
            device.kinds.iter().try_for_each(|kind| kind.rope.reserve(last as usize + 1))?;
        }
        let ids = Tensor::from_slice(gpu, tokens, &[tokens.len()])?;
        let step = Step {
            config,
            device,
            positions: Tensor::from_slice(gpu, positions, &[positions.len()])?,
            tokens: tokens.len(),
        };
        let scale = config.embedding_scale as f32;
        let mut x = gather_rows(&device.embedding, &ids, scale, DType::F32)?;
        observer.hidden(0, &x)?;
        for (number, cache) in self.caches.iter_mut().take(layers).enumerate() {
            x = step.layer(number, &x, cache, observer)?;
            observer.hidden(number + 1, &x)?;
        }
        Ok(x)
    }

    fn cut(&mut self, len: usize) {
        for cache in &mut self.caches {
            // Layers behind the one that failed have nothing to forget.
            let _ = cache.truncate(len);
        }
    }
}
