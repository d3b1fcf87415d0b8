//! How a layer is built on a memory.

use attn_core::{Error, Result};

use crate::Config;

/// What there is beside the memory.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Combination {
    /// Nothing: the memory is the layer (LMM).
    Alone,
    /// Memory as context (MAC): attention within segments, which also sees what the memory of the segments
    /// before answers. A token sees the answers to itself and to earlier tokens, and is answered by the
    /// memory right behind it: causal.
    Context {
        /// Tokens of a segment, C.
        segment: usize,
    },
    /// **Leaks later tokens of the same segment into earlier outputs**: not for autoregressive models. Memory
    /// as context to the letter of the paper: a token sees the answers to all tokens of its segment, and is
    /// answered by the memory behind the segment. For encoders, and for comparison.
    LiteralContext {
        /// Tokens of a segment, C.
        segment: usize,
    },
    /// Memory as gate (MAG): attention in a window, of which the memory is a gate.
    Gate {
        /// Keys that a token sees, itself and those right before it; persistent tokens come on top.
        window: usize,
    },
    /// Memory as layer (MAL): attention in a window, over what the memory answers.
    Layer {
        /// Keys that a token sees, itself and those right before it.
        window: usize,
    },
}

/// The parameters of a layer.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct LayerConfig {
    /// The memory; attention has as many heads.
    pub memory: Config,
    /// What there is beside it.
    pub combination: Combination,
    /// Bound of steps: `theta = theta_max sigmoid(..)`. Not in the paper; see [`Config`] for what is stable.
    pub theta_max: f64,
    /// Added to the squared norm of queries and keys.
    pub l2_epsilon: f64,
    /// Added to the mean square in norms.
    pub rms_epsilon: f64,
}

impl LayerConfig {
    /// With steps up to `1 / (coefficient chunk)`, at most 1.
    pub fn new(memory: Config, combination: Combination) -> Self {
        let theta_max = (1.0 / (memory.coefficient * memory.chunk as f64)).min(1.0);
        LayerConfig { memory, combination, theta_max, l2_epsilon: 1e-6, rms_epsilon: 1e-6 }
    }

    /// The same with another bound of steps.
    pub fn with_theta_max(self, theta_max: f64) -> Self {
        LayerConfig { theta_max, ..self }
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// [`Error::Config`] as [`Config::validate`], for a segment or window of 0, a negative bound of steps
    /// and an epsilon that is not positive.
    pub fn validate(&self) -> Result<()> {
        self.memory.validate()?;
        match self.combination {
            Combination::Context { segment: 0 } | Combination::LiteralContext { segment: 0 } => {
                return Err(Error::config("segment", "at least 1", 0));
            }
            Combination::Gate { window: 0 } | Combination::Layer { window: 0 } => {
                return Err(Error::config("window", "at least 1", 0));
            }
            _ => {}
        }
        if !(self.theta_max.is_finite() && self.theta_max >= 0.0) {
            return Err(Error::config("theta_max", "a number of at least 0", self.theta_max));
        }
        for (arg, epsilon) in [("l2_epsilon", self.l2_epsilon), ("rms_epsilon", self.rms_epsilon)] {
            if !(epsilon.is_finite() && epsilon > 0.0) {
                return Err(Error::config(arg, "a positive number", epsilon));
            }
        }
        Ok(())
    }
}
