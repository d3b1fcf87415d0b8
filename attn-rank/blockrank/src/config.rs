//! What the paper leaves to choose.

use attn_core::{Error, Result};

/// Position of the first token of the query segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum QueryOffset {
    /// A fixed one: the paper takes 8,192, the authors' code 16,384.
    At(u32),
    /// Right behind the longest document, so that nothing lies beyond what a small model was trained on.
    /// Another document can then move it.
    AfterLongest,
}

/// The paper's parameters.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct Config {
    /// Factor of `q.k` in attention and scores, `1 / sqrt(D)` where it is not set.
    pub scale: Option<f64>,
    /// Where the positions of the query segment begin.
    pub query_offset: QueryOffset,
    /// Signal tokens: the last so many of a prompt. Where an answer stands behind them, as in training, they are
    /// others: scores take the queries of any.
    pub signal_rows: usize,
    /// Query heads whose attention is a score, rising; all where it is not set.
    pub heads: Option<Vec<usize>>,
    /// Temperature of the contrastive loss.
    pub tau: f64,
    /// Factor of the contrastive loss beside that of the next token.
    pub lambda: f64,
}

impl Default for Config {
    /// The paper's: query segment at 8,192, two signal tokens, all heads, tau 0.05, lambda 0.1.
    fn default() -> Self {
        Config {
            scale: None,
            query_offset: QueryOffset::At(8192),
            signal_rows: 2,
            heads: None,
            tau: 0.05,
            lambda: 0.1,
        }
    }
}

impl Config {
    /// The paper's parameters.
    pub fn new() -> Self {
        Config::default()
    }

    /// The same with another factor of `q.k`.
    pub fn with_scale(self, scale: f64) -> Self {
        Config { scale: Some(scale), ..self }
    }

    /// The same with the query segment at another position.
    pub fn with_query_offset(self, query_offset: QueryOffset) -> Self {
        Config { query_offset, ..self }
    }

    /// The same with another number of signal tokens.
    pub fn with_signal_rows(self, signal_rows: usize) -> Self {
        Config { signal_rows, ..self }
    }

    /// The same with scores of these query heads alone.
    pub fn with_heads(self, heads: Vec<usize>) -> Self {
        Config { heads: Some(heads), ..self }
    }

    /// The same with another temperature of the loss.
    pub fn with_tau(self, tau: f64) -> Self {
        Config { tau, ..self }
    }

    /// The same with another factor of the loss.
    pub fn with_lambda(self, lambda: f64) -> Self {
        Config { lambda, ..self }
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// [`Error::Config`] for no signal token, no head, heads that do not rise, a temperature that is not
    /// positive, and numbers that are not finite.
    pub fn validate(&self) -> Result<()> {
        if self.signal_rows == 0 {
            return Err(Error::config("signal_rows", "at least 1", 0));
        }
        if let Some(heads) = &self.heads
            && (heads.is_empty() || !heads.is_sorted_by(|a, b| a < b))
        {
            return Err(Error::config("heads", "rising numbers", format!("{heads:?}")));
        }
        if !self.tau.is_finite() || self.tau <= 0.0 {
            return Err(Error::config("tau", "a positive number", self.tau));
        }
        if !self.lambda.is_finite() {
            return Err(Error::config("lambda", "a number", self.lambda));
        }
        match self.scale {
            Some(scale) if !scale.is_finite() => Err(Error::config("scale", "a number", scale)),
            _ => Ok(()),
        }
    }

    /// Factor of `q.k` for heads of `dim` elements.
    pub fn scale_for(&self, dim: usize) -> f64 {
        self.scale.unwrap_or_else(|| 1.0 / (dim.max(1) as f64).sqrt())
    }

    /// The query heads, of `heads`, whose attention is a score.
    ///
    /// # Errors
    /// [`Error::Config`] for one that there is not.
    pub fn heads_of(&self, heads: usize) -> Result<Vec<usize>> {
        let chosen = self.heads.clone().unwrap_or_else(|| (0..heads).collect());
        match chosen.iter().find(|&&head| head >= heads) {
            Some(head) => Err(Error::config("heads", format!("below {heads}"), head)),
            None => Ok(chosen),
        }
    }
}
