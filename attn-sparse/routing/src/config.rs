//! What the paper leaves to choose.

use attn_core::{Error, Result};

/// How centroids follow the tokens that are nearest to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum UpdateRule {
    /// Moving averages of sums and counts, as the authors' code: centroids are means.
    #[default]
    Ema,
    /// The paper's equation to the letter, which adds sums without dividing by their number. Centroids
    /// with many tokens grow, and most others die; for comparison only.
    Paper,
}

/// The parameters of a layer.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct Config {
    /// Centroids of a head, C.
    pub clusters: usize,
    /// Tokens that a centroid takes, w; at most all there are. `clusters * window` is about the length.
    pub window: usize,
    /// Whether a token sees only itself and earlier ones. The choice of tokens is not causal: see the
    /// crate's first page.
    pub causal: bool,
    /// Whether keys are the queries.
    pub shared_qk: bool,
    /// Factor of the products of normalised queries and keys. 1 in the paper: logits then reach the
    /// head's dimension.
    pub scale: f64,
    /// Added to the number of centroids of a token where their outputs are averaged: 0 is the mean, the
    /// authors' code has 0.01.
    pub epsilon: f64,
    /// Share that centroids keep in an update, lambda.
    pub decay: f64,
    /// Factor of the commitment loss, beta.
    pub commitment: f64,
    /// How centroids are updated.
    pub rule: UpdateRule,
}

impl Default for Config {
    /// 16 centroids of 512 tokens for texts of 8,192, causal with shared queries and keys.
    fn default() -> Self {
        Config {
            clusters: 16,
            window: 512,
            causal: true,
            shared_qk: true,
            scale: 1.0,
            epsilon: 0.0,
            decay: 0.999,
            commitment: 1e-4,
            rule: UpdateRule::Ema,
        }
    }
}

impl Config {
    /// The paper's parameters with `clusters` centroids of `window` tokens.
    pub fn new(clusters: usize, window: usize) -> Self {
        Config { clusters, window, ..Config::default() }
    }

    /// The same in both directions, with keys of their own.
    pub fn bidirectional(self) -> Self {
        Config { causal: false, shared_qk: false, ..self }
    }

    /// The same with keys that are the queries, or with their own.
    pub fn with_shared_qk(self, shared_qk: bool) -> Self {
        Config { shared_qk, ..self }
    }

    /// The same with another factor of products.
    pub fn with_scale(self, scale: f64) -> Self {
        Config { scale, ..self }
    }

    /// The same with another share that centroids keep.
    pub fn with_decay(self, decay: f64) -> Self {
        Config { decay, ..self }
    }

    /// The same with another update rule.
    pub fn with_rule(self, rule: UpdateRule) -> Self {
        Config { rule, ..self }
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// [`Error::Config`] for no centroid, a window of 0, a `decay` outside `0..=1`, and numbers that are
    /// not finite or, where they must not be, negative.
    pub fn validate(&self) -> Result<()> {
        for (arg, count) in [("clusters", self.clusters), ("window", self.window)] {
            if count == 0 {
                return Err(Error::config(arg, "at least 1", count));
            }
        }
        if !self.scale.is_finite() {
            return Err(Error::config("scale", "a number", self.scale));
        }
        for (arg, number) in [("epsilon", self.epsilon), ("commitment", self.commitment)] {
            if !(number.is_finite() && number >= 0.0) {
                return Err(Error::config(arg, "a number of at least 0", number));
            }
        }
        if !(0.0..=1.0).contains(&self.decay) {
            return Err(Error::config("decay", "0 to 1", self.decay));
        }
        Ok(())
    }
}
