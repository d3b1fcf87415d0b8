//! Continuing a text, token by token.

use attn_wgpu::Tensor;
use attn_wgpu::sample::{Sampling, argmax, sample};

use crate::{Observer, Pass, Result, Session, Unobserved};

/// Tokens of a prompt that run at once.
const PROMPT_CHUNK: usize = 512;

/// How a text is continued.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Generate {
    /// Tokens at most.
    pub max_tokens: usize,
    /// How each is chosen; `None` takes the most probable one.
    pub sampling: Option<Sampling>,
    /// Seed of the random numbers: the same seed gives the same text.
    pub seed: u64,
    /// Tokens behind which the text ends; they are returned too.
    pub stop: Vec<u32>,
}

impl Generate {
    /// The most probable tokens, without a stop.
    pub fn greedy(max_tokens: usize) -> Self {
        Generate { max_tokens, sampling: None, seed: 0, stop: Vec::new() }
    }

    /// Random tokens by `sampling`.
    pub fn with_sampling(self, sampling: Sampling, seed: u64) -> Self {
        Generate { sampling: Some(sampling), seed, ..self }
    }

    /// Ends behind any of these tokens.
    pub fn with_stop(self, stop: &[u32]) -> Self {
        Generate { stop: stop.to_vec(), ..self }
    }
}

/// The tokens of a continuation, each computed when it is asked for. Ends after an error.
///
/// A token that was returned is part of the session once the next one is asked for: a session whose
/// generation is dropped lacks the last token.
#[derive(Debug)]
pub struct Generation<'a> {
    session: &'a mut Session,
    options: Generate,
    random: fastrand::Rng,
    /// Tokens that have not run yet: the prompt, then each new token.
    waiting: Vec<u32>,
    is_decode: bool,
    left: usize,
}

impl Session {
    /// Continues behind `prompt`, which must hold a token.
    ///
    /// # Errors
    /// [`attn_core::Error::Data`] for an empty prompt or a token that the vocabulary lacks,
    /// [`attn_core::Error::Config`] for a sampling out of range. Those of the device come with the
    /// tokens.
    pub fn generate(&mut self, prompt: &[u32], options: Generate) -> Result<Generation<'_>> {
        if prompt.is_empty() {
            return Err(attn_core::Error::data("prompt", "a token at least", "none").into());
        }
        self.check_tokens(prompt)?;
        if let Some(sampling) = &options.sampling {
            sampling.validate()?;
        }
        Ok(Generation {
            random: fastrand::Rng::with_seed(options.seed),
            waiting: prompt.to_vec(),
            is_decode: false,
            left: options.max_tokens,
            session: self,
            options,
        })
    }
}

impl Generation<'_> {
    fn uniform(&mut self) -> Result<Tensor> {
        Ok(Tensor::from_slice(self.session.model().gpu(), &[self.random.f32()], &[1])?)
    }

    /// The next token, with an observer looking on: for the first one, at the whole prompt.
    pub fn next_observed(&mut self, observer: &mut dyn Observer) -> Option<Result<u32>> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let token = self.step(observer);
        let ends = match &token {
            Ok(token) => self.options.stop.contains(token),
            Err(_) => true,
        };
        if ends {
            self.left = 0;
        }
        Some(token)
    }

    fn step(&mut self, observer: &mut dyn Observer) -> Result<u32> {
        let waiting = std::mem::take(&mut self.waiting);
        let mut last = None;
        for chunk in waiting.chunks(PROMPT_CHUNK) {
            let pass = Pass { is_decode: self.is_decode, ..Pass::new().with_observer(observer) };
            last = Some((self.session.forward_with(chunk, pass)?, chunk.len()));
        }
        let Some((hidden, rows)) = last else {
            return Err(attn_core::Error::data("prompt", "a token at least", "none").into());
        };
        let logits = self.session.logits(&hidden, rows - 1..rows)?;
        let chosen = match self.options.sampling {
            None => argmax(&logits)?,
            Some(sampling) => sample(&logits, &sampling, &self.uniform()?)?,
        };
        let token = chosen.to_vec::<u32>()?.first().copied().unwrap_or(0);
        self.waiting.push(token);
        self.is_decode = true;
        Ok(token)
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<u32>;

    fn next(&mut self) -> Option<Result<u32>> {
        self.next_observed(&mut Unobserved)
    }
}
