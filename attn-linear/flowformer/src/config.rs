//! What the paper and its code leave to choose.

use attn_core::{Error, Result};

/// The parameters of the attention.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct Config {
    /// Whether a token sees only itself and earlier ones; there are then as many queries as keys. Default: no.
    pub causal: bool,
    /// Bound of the conserved flow of a source before the competition, on both sides. Default: none, as in
    /// the paper's equations and the authors' code for time series. Their code has 1 in the core file and for
    /// images, 5 for language, 10 for reinforcement learning.
    ///
    /// The mean of these flows is the number of queries per key. A bound of 1 therefore makes about half of
    /// all sources equal in self-attention, and takes their gradient.
    pub clamp: Option<f64>,
    /// Added to every element of both vectors of an inner product of flows. Default: 1e-6.
    pub epsilon: f64,
}

impl Default for Config {
    fn default() -> Self {
        Config { causal: false, clamp: None, epsilon: 1e-6 }
    }
}

impl Config {
    /// Every query sees every key, without a clamp.
    pub fn new() -> Self {
        Config::default()
    }

    /// A token sees itself and earlier ones, without a clamp.
    pub fn causal() -> Self {
        Config { causal: true, ..Config::default() }
    }

    /// The same with a bound of the conserved flows of sources.
    pub fn with_clamp(self, clamp: f64) -> Self {
        Config { clamp: Some(clamp), ..self }
    }

    /// The same with another number added in inner products.
    pub fn with_epsilon(self, epsilon: f64) -> Self {
        Config { epsilon, ..self }
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// [`Error::Config`] for a clamp or an epsilon that is not finite and above 0.
    pub fn validate(&self) -> Result<()> {
        let clamp = self.clamp.map(|clamp| ("clamp", clamp));
        for (arg, number) in clamp.into_iter().chain([("epsilon", self.epsilon)]) {
            if !(number.is_finite() && number > 0.0) {
                return Err(Error::config(arg, "a finite number above 0", number));
            }
        }
        Ok(())
    }

    pub(crate) fn clamped(&self, flow: f64) -> f64 {
        self.clamp.map_or(flow, |clamp| flow.clamp(-clamp, clamp))
    }

    /// Derivative of [`Config::clamped`].
    pub(crate) fn clamp_slope(&self, flow: f64) -> f64 {
        if self.clamp.is_none_or(|clamp| flow.abs() <= clamp) { 1.0 } else { 0.0 }
    }
}
