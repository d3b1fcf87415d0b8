use crate::{Error, Lengths, Mask, Modifier, ModifierArgs, ModifierKind, Result};

/// What is computed; the same type configures the reference and the GPU kernels.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Config {
    /// Which keys a query may see. Default: all.
    pub mask: Mask,
    /// Factor of the products q . k. Default (`None`): `1 / sqrt(dim_qk)`.
    pub scale: Option<f64>,
    /// Bound that logits approach: `x` becomes `soft_cap * tanh(x / soft_cap)`. Default: none.
    pub soft_cap: Option<f64>,
    /// Function of the logit and its place, after the soft-cap. Default: none.
    pub modifier: Option<Modifier>,
}

impl Config {
    /// Full attention with the default scale.
    pub fn new() -> Self {
        Config::default()
    }

    /// The same with another mask.
    pub fn with_mask(mut self, mask: Mask) -> Self {
        self.mask = mask;
        self
    }

    /// The same with another factor of the products q . k.
    pub fn with_scale(mut self, scale: f64) -> Self {
        self.scale = Some(scale);
        self
    }

    /// The same with a bound that logits approach.
    pub fn with_soft_cap(mut self, soft_cap: f64) -> Self {
        self.soft_cap = Some(soft_cap);
        self
    }

    /// The same with a modifier of the logits.
    pub fn with_modifier(mut self, modifier: Modifier) -> Self {
        self.modifier = Some(modifier);
        self
    }

    /// The factor in force for keys of `dim_qk` elements.
    pub fn scale_for(&self, dim_qk: usize) -> f64 {
        self.scale.unwrap_or_else(|| 1.0 / (dim_qk.max(1) as f64).sqrt())
    }

    /// Checks what does not depend on a call's shapes.
    ///
    /// # Errors
    /// [`Error::Config`] where the scale is not finite, the soft-cap is not finite and positive, or
    /// the modifier is not valid ([`Modifier::validate`]).
    pub fn validate(&self) -> Result<()> {
        if let Some(scale) = self.scale.filter(|scale| !scale.is_finite()) {
            return Err(Error::config("scale", "a finite number", scale));
        }
        if let Some(cap) = self.soft_cap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
            return Err(Error::config("soft_cap", "a finite number above 0", cap));
        }
        self.modifier.as_ref().map_or(Ok(()), Modifier::validate)
    }

    /// [`Config::validate`] and [`Mask::validate`] for a call of these lengths on the host.
    pub(crate) fn check(&self, lengths: Lengths) -> Result<()> {
        self.validate()?;
        match &self.modifier {
            Some(modifier) if modifier.host().is_none() => Err(Error::config(
                "modifier",
                "a function on the host (Modifier::with_host)",
                format!("{} without one", modifier.name()),
            )),
            _ => self.mask.validate(lengths),
        }
    }

    /// Checks that the modifier can be differentiated on the host.
    pub(crate) fn check_derivative(&self) -> Result<()> {
        let lacks_it =
            |m: &&Modifier| m.kind() == ModifierKind::Score && m.host_derivative().is_none();
        match self.modifier.as_ref().filter(lacks_it) {
            Some(modifier) => Err(Error::config(
                "modifier",
                "a derivative (Modifier::with_host_derivative)",
                format!("{} without one", modifier.name()),
            )),
            None => Ok(()),
        }
    }

    /// The logit after the modifier, or `None` where it counts as masked.
    pub(crate) fn modify(&self, score: f64, at: &ModifierArgs) -> Option<f64> {
        let Some((modifier, host)) = self.modifier.as_ref().and_then(|m| Some((m, m.host()?)))
        else {
            return Some(score);
        };
        let result = host(score, at);
        match modifier.kind() {
            ModifierKind::Score => Some(result).filter(|logit| !masked(*logit)),
            ModifierKind::Mask => Some(score).filter(|_| result != 0.0),
        }
    }

    /// Derivative of [`Config::modify`] by the score.
    pub(crate) fn modify_slope(&self, score: f64, at: &ModifierArgs) -> f64 {
        match &self.modifier {
            Some(modifier) if modifier.kind() == ModifierKind::Score => {
                modifier.host_derivative().map_or(1.0, |derivative| derivative(score, at))
            }
            _ => 1.0,
        }
    }
}

/// Whether a modified logit takes its key out of the softmax.
fn masked(logit: f64) -> bool {
    logit <= -1e30
}
