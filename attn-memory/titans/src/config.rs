//! What the paper leaves to choose.

use attn_core::{Error, Result};

/// The activation between the two layers of a memory. The paper does not name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Activation {
    /// `z sigmoid(z)`.
    #[default]
    Silu,
    /// `z Phi(z)` with the distribution function of the normal distribution.
    Gelu,
}

/// The parameters of a memory.
///
/// Steps are stable while `coefficient * theta * |k|^2 / (1 - eta) < 2` token by token, and with similar keys
/// about `chunk` times below that: gradients of a chunk add up on weights that do not move. So keys should
/// have norm 1 and steps be about `1 / (coefficient * chunk)`.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct Config {
    /// Heads, each with a memory of its own.
    pub heads: usize,
    /// Elements of a query and a key.
    pub dim_qk: usize,
    /// Elements of a value.
    pub dim_v: usize,
    /// Elements between the two layers of a memory of depth 2; `None` is depth 1, a matrix.
    pub hidden: Option<usize>,
    /// Between the layers of depth 2.
    pub activation: Activation,
    /// Factor of the gradient of `|M(k) - v|^2 / 2`, c: 2 in the paper's equation 12, 1 in its equation 17,
    /// `2 / dim_v` where the loss is a mean. Only its product with the step matters.
    pub coefficient: f64,
    /// Tokens of a chunk, b, whose gradients are all taken at the weights before the chunk. 1 is the exact
    /// online rule.
    pub chunk: usize,
    /// Norm that the gradient of a token by the weights of one layer approaches but does not exceed: a
    /// gradient u becomes `u g tanh(|u| / g) / |u|`. Not in the paper.
    pub max_grad_norm: Option<f64>,
}

impl Default for Config {
    /// One head of 64 elements and depth 2 with 256 between the layers.
    fn default() -> Self {
        Config {
            heads: 1,
            dim_qk: 64,
            dim_v: 64,
            hidden: Some(256),
            activation: Activation::Silu,
            coefficient: 2.0,
            chunk: 64,
            max_grad_norm: None,
        }
    }
}

impl Config {
    /// Memories of depth 1 for `heads` heads with keys and values of `dim` elements.
    pub fn linear(heads: usize, dim: usize) -> Self {
        Config { heads, dim_qk: dim, dim_v: dim, hidden: None, ..Config::default() }
    }

    /// Memories of depth 2 with `hidden` elements between the layers.
    pub fn deep(heads: usize, dim: usize, hidden: usize) -> Self {
        Config { hidden: Some(hidden), ..Config::linear(heads, dim) }
    }

    /// The same with values of `dim_v` elements.
    pub fn with_dim_v(self, dim_v: usize) -> Self {
        Config { dim_v, ..self }
    }

    /// The same with another activation.
    pub fn with_activation(self, activation: Activation) -> Self {
        Config { activation, ..self }
    }

    /// The same with another factor of the gradient.
    pub fn with_coefficient(self, coefficient: f64) -> Self {
        Config { coefficient, ..self }
    }

    /// The same with chunks of another size.
    pub fn with_chunk(self, chunk: usize) -> Self {
        Config { chunk, ..self }
    }

    /// The same with a bound of the norms of gradients.
    pub fn with_max_grad_norm(self, max_grad_norm: f64) -> Self {
        Config { max_grad_norm: Some(max_grad_norm), ..self }
    }

    /// Layers of a memory.
    pub fn depth(&self) -> usize {
        self.layers().len()
    }

    /// Rows and columns of the weights of every layer: `[dim_qk, dim_v]`, or `[dim_qk, hidden]` and
    /// `[hidden, dim_v]`.
    pub fn layers(&self) -> Vec<[usize; 2]> {
        match self.hidden {
            None => vec![[self.dim_qk, self.dim_v]],
            Some(hidden) => vec![[self.dim_qk, hidden], [hidden, self.dim_v]],
        }
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// [`Error::Config`] for no head, elements or chunks of 0, a coefficient that is not finite or is
    /// negative, and a bound of norms that is not a positive number.
    pub fn validate(&self) -> Result<()> {
        let hidden = self.hidden.unwrap_or(1);
        for (arg, count) in [
            ("heads", self.heads),
            ("dim_qk", self.dim_qk),
            ("dim_v", self.dim_v),
            ("hidden", hidden),
            ("chunk", self.chunk),
        ] {
            if count == 0 {
                return Err(Error::config(arg, "at least 1", count));
            }
        }
        if !(self.coefficient.is_finite() && self.coefficient >= 0.0) {
            return Err(Error::config("coefficient", "a number of at least 0", self.coefficient));
        }
        match self.max_grad_norm {
            Some(norm) if !(norm.is_finite() && norm > 0.0) => {
                Err(Error::config("max_grad_norm", "a positive number", norm))
            }
            _ => Ok(()),
        }
    }
}
