//! What the paper leaves to choose.

use attn_core::{Error, Result};

/// The parameters of the attention.
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct Config {
    /// Factor of the products q . k. Default (`None`): `1 / sqrt(dim_qk)`, as Transformers have it; the
    /// paper writes 1.
    pub scale: Option<f64>,
}

impl Config {
    /// The default scale.
    pub fn new() -> Self {
        Config::default()
    }

    /// The same with another factor of the products q . k.
    pub fn with_scale(mut self, scale: f64) -> Self {
        self.scale = Some(scale);
        self
    }

    /// The factor in force for keys of `dim_qk` elements.
    pub fn scale_for(&self, dim_qk: usize) -> f64 {
        self.scale.unwrap_or_else(|| 1.0 / (dim_qk.max(1) as f64).sqrt())
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// [`Error::Config`] for a scale that is not finite.
    pub fn validate(&self) -> Result<()> {
        match self.scale {
            Some(scale) if !scale.is_finite() => {
                Err(Error::config("scale", "a finite number", scale))
            }
            _ => Ok(()),
        }
    }
}
