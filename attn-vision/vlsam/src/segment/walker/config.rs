//! How the random walker sees an image.

use attn_core::{Error, Result};

/// Parameters of the random walker. The paper has none: these were chosen on the photos of the tests.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct WalkerConfig {
    /// The longer side of the lattice on which walks go; larger images are made smaller.
    pub max_side: u32,
    /// Standard deviation, in places of the lattice, of the blur that takes texture away; 0 for none.
    pub blur: f64,
    /// How fast conductance falls with the distance d of colours: `exp(-beta d^2 / mean d^2)`.
    pub beta: f64,
    /// Strength of the pull away from the object where there is no mask yet.
    pub leak: f64,
    /// With a mask: strength of the pull towards the side, object or not, whose colour a place has.
    pub pull: f64,
    /// Radius of the discs around points in which walks end, in places.
    pub radius: f64,
    /// The relative residual at which the conjugate gradients end.
    pub tolerance: f64,
    /// The most iterations of the conjugate gradients.
    pub max_iter: usize,
}

impl Default for WalkerConfig {
    /// A lattice of at most 192 x 192 places.
    fn default() -> Self {
        WalkerConfig {
            max_side: 192,
            blur: 1.0,
            beta: 1.0,
            leak: 1e-3,
            pull: 1e-2,
            radius: 1.5,
            tolerance: 1e-3,
            max_iter: 400,
        }
    }
}

impl WalkerConfig {
    /// The same on a lattice with another longer side.
    pub fn with_max_side(self, max_side: u32) -> Self {
        WalkerConfig { max_side, ..self }
    }

    /// The same with another blur.
    pub fn with_blur(self, blur: f64) -> Self {
        WalkerConfig { blur, ..self }
    }

    /// The same with another fall of conductance.
    pub fn with_beta(self, beta: f64) -> Self {
        WalkerConfig { beta, ..self }
    }

    /// The same with another pull away from the object without a mask, and of colours with one.
    pub fn with_pull(self, leak: f64, pull: f64) -> Self {
        WalkerConfig { leak, pull, ..self }
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// [`Error::Config`] for a side that is not 1 to 4096, a blur or radius that is not 0 to 64, a
    /// `beta` that is not 0 to 1000, a `leak`, `pull` or `tolerance` that is not above 0 and at most 1,
    /// and no iteration.
    pub fn validate(&self) -> Result<()> {
        if !(1..=4096).contains(&self.max_side) {
            return Err(Error::config("max_side", "1 to 4096", self.max_side));
        }
        for (arg, number, most) in
            [("blur", self.blur, 64.0), ("radius", self.radius, 64.0), ("beta", self.beta, 1000.0)]
        {
            if !(0.0..=most).contains(&number) {
                return Err(Error::config(arg, format!("0 to {most}"), number));
            }
        }
        let shares = [("leak", self.leak), ("pull", self.pull), ("tolerance", self.tolerance)];
        for (arg, number) in shares {
            if !(number > 0.0 && number <= 1.0) {
                return Err(Error::config(arg, "above 0 and at most 1", number));
            }
        }
        if self.max_iter == 0 {
            return Err(Error::config("max_iter", "at least 1", 0));
        }
        Ok(())
    }
}
