//! A sequence of tokens on its way through a model.

use std::any::Any;
use std::cell::OnceCell;
use std::ops::Range;

use attn_wgpu::cache::KvCache;
use attn_wgpu::softmax::log_softmax_gather;
use attn_wgpu::{DType, Tensor};

use crate::heads::DeviceEdits;
use crate::layer::{Guests, Step};
use crate::policy::{AttentionPolicy, Dense, ModelShape, Phase};
use crate::{HeadEdits, Model, Pass, Result, Unobserved};

/// Bytes of logits that are computed at once.
const LOGIT_BYTES: usize = 16 << 20;

/// One sequence: its tokens so far, their keys and values in every layer, and the policy by which they
/// attend to each other.
///
/// Calls record commands; reading a result submits them. Where a call fails, the session is as it was
/// before.
#[derive(Debug)]
pub struct Session {
    model: Model,
    caches: Vec<KvCache>,
    policy: Box<dyn AttentionPolicy>,
    edits: Option<DeviceEdits>,
    /// Of each token so far.
    positions: Vec<u32>,
    /// Tokens up to the last one that was part of a prompt.
    prompt: usize,
    /// Whether the policy could not undo a pass that failed.
    is_broken: bool,
    /// The first token that did not run through all layers, and the layers that all tokens ran through.
    shallow: Option<(usize, usize)>,
}

impl Session {
    /// An empty sequence with room for `capacity` tokens and the model's own attention; more tokens
    /// make it grow, with a copy. Up to there, memory does not change once the first tokens have run.
    ///
    /// # Errors
    /// Those of allocation.
    pub fn new(model: &Model, capacity: usize) -> Result<Session> {
        Session::with_policy(model, capacity, Box::new(Dense))
    }

    /// [`Session::new`] with attention by `policy`.
    ///
    /// # Errors
    /// Those of allocation, and of [`AttentionPolicy::begin`].
    pub fn with_policy(
        model: &Model,
        capacity: usize,
        mut policy: Box<dyn AttentionPolicy>,
    ) -> Result<Session> {
        let config = model.config();
        policy.begin(&ModelShape {
            gpu: model.gpu().clone(),
            heads: config.heads,
            heads_kv: config.heads_kv,
            head_dim: config.head_dim,
            windows: config.layers.iter().map(|layer| layer.window).collect(),
            context: config.context,
            scale: config.scale,
            soft_cap: config.attention_soft_cap,
            dtype: model.options().cache,
        })?;
        let cache = || {
            let (heads, dim) = (config.heads_kv, config.head_dim);
            KvCache::new(model.gpu(), 1, heads, dim, dim, model.options().cache, capacity)
        };
        let caches = config.layers.iter().map(|_| cache()).collect::<Result<_, _>>()?;
        for kind in &model.device().kinds {
            kind.rope.reserve(capacity)?;
        }
        Ok(Session {
            model: model.clone(),
            caches,
            policy,
            edits: None,
            positions: Vec::new(),
            prompt: 0,
            is_broken: false,
            shallow: None,
        })
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

    /// The policy.
    pub fn policy(&self) -> &dyn AttentionPolicy {
        self.policy.as_ref()
    }

    /// The policy as what it is, for what it can tell of itself; `None` if it is of another type.
    pub fn policy_as<P: AttentionPolicy>(&self) -> Option<&P> {
        let policy: &dyn Any = self.policy.as_ref();
        policy.downcast_ref()
    }

    /// Edits of heads from the next pass on, in place of those so far. Keys and values of earlier tokens
    /// stay what they are: edits that are set behind a prompt affect the continuation alone.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] for a layer or a head that the model lacks,
    /// [`attn_core::Error::Shape`] for another number of elements than a head has,
    /// [`attn_core::Error::Data`] for numbers that are not finite; those of allocation.
    pub fn edit_heads(&mut self, edits: &HeadEdits) -> Result<()> {
        let (gpu, config) = (self.model.gpu(), self.model.config());
        self.edits = match edits.is_empty() {
            true => None,
            false => Some(DeviceEdits::new(gpu, config, edits)?),
        };
        Ok(())
    }

    /// The edits of heads, where there are any.
    pub fn head_edits(&self) -> Option<&HeadEdits> {
        self.edits.as_ref().map(DeviceEdits::edits)
    }

    /// Runs the model on `tokens` behind those so far, and keeps their keys and values. Returns the
    /// residual stream behind the last layer, `[tokens, hidden]`, f32, of which [`Session::logits`]
    /// makes logits.
    ///
    /// # Errors
    /// [`attn_core::Error::Data`] for a token that the vocabulary lacks; those of the policy and of the
    /// device.
    pub fn forward(&mut self, tokens: &[u32]) -> Result<Tensor> {
        self.forward_with(tokens, Pass::new())
    }

    /// [`Session::forward`] with options.
    ///
    /// # Errors
    /// As [`Session::forward`], [`attn_core::Error::Shape`] for another number of positions than of
    /// tokens, and those of the observer.
    pub fn forward_with(&mut self, tokens: &[u32], pass: Pass<'_>) -> Result<Tensor> {
        self.keep_to(self.caches.len(), tokens, pass)
    }

    /// The residual stream behind the first `layer` layers, `[tokens, hidden]`, for `tokens` behind those so far,
    /// which the session keeps: a long prompt in parts, where nobody needs the layers above. Until
    /// [`Session::truncate`] has forgotten these tokens, no pass can go further than `layer`.
    ///
    /// # Errors
    /// As [`Session::run_to`].
    pub fn keep_to(&mut self, layer: usize, tokens: &[u32], pass: Pass<'_>) -> Result<Tensor> {
        let (before, is_decode) = (self.len(), pass.is_decode);
        self.check_layer(layer)?;
        self.check_positions(tokens, pass.positions)?;
        let outcome = self.run(layer, tokens, pass);
        if outcome.is_err() {
            self.cut(before);
            // What the policy knows of the tokens that failed must go too.
            self.is_broken = self.policy.truncate(before).is_err();
            return outcome;
        }
        if !is_decode {
            self.prompt = self.len();
        }
        if layer < self.caches.len() {
            let (first, most) = self.shallow.unwrap_or((before, layer));
            self.shallow = Some((first, most.min(layer)));
        }
        outcome
    }

    /// The residual stream behind the first `layer` layers, `[tokens, hidden]`, for `tokens` behind
    /// those so far; with 0 the embedding. The session stays as it is; a fork of its policy attends.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] for a layer that the model lacks; as [`Session::forward_with`].
    pub fn run_to(&mut self, layer: usize, tokens: &[u32], pass: Pass<'_>) -> Result<Tensor> {
        self.check_layer(layer)?;
        self.check_positions(tokens, pass.positions)?;
        let (before, fork) = (self.len(), self.policy.fork()?);
        let policy = std::mem::replace(&mut self.policy, fork);
        let outcome = self.run(layer, tokens, pass);
        self.policy = policy;
        self.cut(before);
        outcome
    }

    /// Forgets all tokens but the first `len`.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] if there are not so many; those of the policy.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len > self.len() {
            let expected = format!("at most {} tokens", self.len());
            return Err(attn_core::Error::config("len", expected, len).into());
        }
        self.policy.truncate(len)?;
        self.cut(len);
        self.is_broken = false;
        self.shallow = self.shallow.filter(|(first, _)| *first < len);
        Ok(())
    }

    /// Another session with the same tokens, policy and edits. Keys and values are shared until one of
    /// the two goes on.
    ///
    /// # Errors
    /// Those of the policy.
    pub fn fork(&self) -> Result<Session> {
        Ok(Session {
            model: self.model.clone(),
            caches: self.caches.iter().map(KvCache::fork).collect(),
            policy: self.policy.fork()?,
            edits: self.edits.clone(),
            positions: self.positions.clone(),
            ..*self
        })
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
        let hidden = self.forward(tokens)?;
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

    /// Whether a pass can go through so many layers: earlier tokens did.
    fn check_layer(&self, layer: usize) -> Result<()> {
        let (most, why) = match self.shallow {
            Some((first, most)) => (most, format!(", as the tokens from number {first} on")),
            None => (self.caches.len(), String::new()),
        };
        if layer > most {
            let expected = format!("at most {most} layers{why}");
            return Err(attn_core::Error::config("layer", expected, layer).into());
        }
        Ok(())
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

    /// Whether new tokens at these positions can be run.
    fn check_positions(&self, tokens: &[u32], positions: Option<&[u32]>) -> Result<()> {
        if self.is_broken {
            let got = "one that could not forget a pass that failed";
            return Err(attn_core::Error::config("policy", "a policy in order", got).into());
        }
        self.check_tokens(tokens)?;
        let first = self.next_position();
        let end = u32::try_from(tokens.len()).ok().and_then(|count| first.checked_add(count));
        match (positions, end) {
            (Some(given), _) if given.len() != tokens.len() => {
                let expected = format!("[{}], one a token", tokens.len());
                Err(attn_core::Error::shape("positions", expected, &[given.len()]).into())
            }
            (None, None) => {
                let got = format!("{first} + {}", tokens.len());
                Err(attn_core::Error::data("positions", "numbers below 2^32", got).into())
            }
            _ => Ok(()),
        }
    }

    /// Runs checked tokens through the first layers; what fails leaves caches and positions to be cut.
    fn run(&mut self, layers: usize, tokens: &[u32], pass: Pass<'_>) -> Result<Tensor> {
        let phase = match pass.is_decode {
            true => Phase::Decode { step: self.decode_step() },
            false => Phase::Prefill,
        };
        let (first, before) = (self.next_position(), self.len());
        match pass.positions {
            Some(given) => self.positions.extend(given),
            None => self.positions.extend(first..first + tokens.len() as u32),
        }
        let (gpu, config, device) = (self.model.gpu(), self.model.config(), self.model.device());
        if tokens.is_empty() {
            return Ok(Tensor::zeros(gpu, &[0, config.hidden], DType::F32)?);
        }
        let positions = &self.positions[before..];
        if let Some(&last) = positions.iter().max() {
            device.kinds.iter().try_for_each(|kind| kind.rope.reserve(last as usize + 1))?;
        }
        let ids = Tensor::from_slice(gpu, tokens, &[tokens.len()])?;
        let step = Step {
            config,
            device,
            positions: Tensor::from_slice(gpu, positions, &[positions.len()])?,
            all_positions: &self.positions,
            on_device: OnceCell::new(),
            tokens: tokens.len(),
            phase,
            form: self.policy.keys(),
        };
        let mut unobserved = Unobserved;
        let mut guests = Guests {
            policy: self.policy.as_mut(),
            edits: self.edits.as_ref(),
            observer: pass.observer.unwrap_or(&mut unobserved),
        };
        let scale = config.embedding_scale as f32;
        let mut x = device.embedding.rows(&ids, scale)?;
        guests.observer.hidden(0, &x)?;
        for (number, cache) in self.caches.iter_mut().take(layers).enumerate() {
            x = step.layer(number, &x, cache, &mut guests)?;
            guests.observer.hidden(number + 1, &x)?;
        }
        Ok(x)
    }

    /// Number of the next token behind the last prompt, from 1.
    fn decode_step(&self) -> usize {
        self.len() - self.prompt + 1
    }

    /// Leaves the first `len` tokens in the caches.
    fn cut(&mut self, len: usize) {
        self.positions.truncate(len);
        self.prompt = self.prompt.min(len);
        for cache in &mut self.caches {
            // Layers behind the one that failed have nothing to forget.
            let _ = cache.truncate(len);
        }
    }
}
