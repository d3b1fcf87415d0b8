//! What the paper leaves to choose.

use attn_core::{Error, Result};
use ndarray::Array2;

/// How fast each head forgets: a weight falls by `exp(-s_h)` with every token.
#[derive(Debug, Clone, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Slopes {
    /// Those of the authors' code and of the released weights: the geometric slopes of ALiBi times
    /// `1 - l/(L-1) + 1e-5` for layer `l` of `L`, counted from 0, and times 1 where `L` is 1. The
    /// last layer hardly decays.
    #[default]
    Released,
    /// The paper's equation, `(8 h/H) (1 - l/L)` with heads and layers counted from 0: linear in
    /// the head and far stronger. No released weights use it.
    Paper,
    /// One for each head, whatever the layer. Not negative; 0 is plain linear attention.
    Given(Vec<f64>),
}

/// The parameters of a layer.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
#[non_exhaustive]
pub struct Config {
    /// Query heads, H.
    pub heads: usize,
    /// Number of the layer, from 0.
    pub layer: usize,
    /// Layers of the model, L.
    pub layers: usize,
    /// Which decay the heads have.
    pub slopes: Slopes,
    /// Tokens of a block of the form in blocks, Bk. Results do not depend on it, up to rounding.
    pub block: usize,
    /// Added to the mean square in SimpleRMSNorm.
    pub epsilon: f64,
}

impl Default for Config {
    /// The first of the 24 layers of 8 heads of the model with 385 million parameters.
    fn default() -> Self {
        Config {
            heads: 8,
            layer: 0,
            layers: 24,
            slopes: Slopes::Released,
            block: 64,
            epsilon: 1e-6,
        }
    }
}

impl Config {
    /// The only layer of a model, with `heads` heads.
    pub fn new(heads: usize) -> Self {
        Config { heads, layer: 0, layers: 1, ..Config::default() }
    }

    /// The same for layer `layer`, counted from 0, of `layers`.
    pub fn with_layer(self, layer: usize, layers: usize) -> Self {
        Config { layer, layers, ..self }
    }

    /// The same with other slopes.
    pub fn with_slopes(self, slopes: Slopes) -> Self {
        Config { slopes, ..self }
    }

    /// The same with blocks of another size.
    pub fn with_block(self, block: usize) -> Self {
        Config { block, ..self }
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// [`Error::Config`] for no head, a layer that the model does not have, blocks of 0 tokens, an
    /// `epsilon` that is not a positive number, and given slopes that are not one for each head,
    /// finite and not negative.
    pub fn validate(&self) -> Result<()> {
        for (arg, count) in [("heads", self.heads), ("layers", self.layers), ("block", self.block)]
        {
            if count == 0 {
                return Err(Error::config(arg, "at least 1", count));
            }
        }
        if self.layer >= self.layers {
            return Err(Error::config("layer", format!("below {}", self.layers), self.layer));
        }
        if !(self.epsilon.is_finite() && self.epsilon > 0.0) {
            return Err(Error::config("epsilon", "a positive number", self.epsilon));
        }
        if let Slopes::Given(slopes) = &self.slopes {
            if slopes.len() != self.heads {
                let got = format!("{} numbers", slopes.len());
                return Err(Error::config(
                    "slopes",
                    format!("one for each of {} heads", self.heads),
                    got,
                ));
            }
            if let Some(slope) = slopes.iter().find(|slope| !(slope.is_finite() && **slope >= 0.0))
            {
                return Err(Error::config("slopes", "numbers of at least 0", slope));
            }
        }
        Ok(())
    }

    /// The slopes `s_h` of all heads; the decay of a step is `exp(-s_h)`.
    ///
    /// # Errors
    /// As [`Config::validate`].
    pub fn head_slopes(&self) -> Result<Vec<f64>> {
        self.validate()?;
        let (layer, layers) = (self.layer as f64, self.layers as f64);
        Ok(match &self.slopes {
            Slopes::Given(slopes) => slopes.clone(),
            Slopes::Released => {
                let factor = match self.layers {
                    1 => 1.0,
                    _ => 1.0 - layer / (layers - 1.0) + 1e-5,
                };
                geometric(self.heads).map(|slope| slope * factor).collect()
            }
            Slopes::Paper => {
                let slope = |head| 8.0 * head as f64 / self.heads as f64 * (1.0 - layer / layers);
                (0..self.heads).map(slope).collect()
            }
        })
    }

    /// Powers of the decays, `exp(-s_h n)` for `n` below `count`, `[heads, count]`.
    ///
    /// Each is one exponential of an exact product: a product of `n` rounded decays would be off by
    /// up to `n` roundings.
    ///
    /// # Errors
    /// As [`Config::validate`].
    pub fn decays(&self, count: usize) -> Result<Array2<f64>> {
        let slopes = self.head_slopes()?;
        let power = |(head, n): (usize, usize)| (-slopes[head] * n as f64).exp();
        Ok(Array2::from_shape_fn((self.heads, count), power))
    }
}

/// The slopes of ALiBi, in f64: for a power of two, `2^(-8 (h+1)/H)`; otherwise those of the largest
/// power of two below, followed by every second one of twice that power.
fn geometric(heads: usize) -> impl Iterator<Item = f64> {
    let whole = heads.checked_ilog2().map_or(1, |log| 1_usize << log);
    let slope = |numerator: usize, of: f64| (-8.0 * numerator as f64 / of).exp2();
    let first = (1..=whole).map(move |h| slope(h, whole as f64));
    let between = (0..heads - whole).map(move |h| slope(2 * h + 1, 2.0 * whole as f64));
    first.chain(between)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_slopes_are_geometric_and_fade_with_depth() -> Result<()> {
        let four = Config::new(4).head_slopes()?;
        assert_eq!(four, [0.25, 0.0625, 0.015625, 0.00390625]);
        // No power of two: those of 2, then every second of 4.
        assert_eq!(Config::new(3).head_slopes()?, [0.0625, 0.00390625, 0.25]);
        let first = Config::new(4).with_layer(0, 5).head_slopes()?;
        let last = Config::new(4).with_layer(4, 5).head_slopes()?;
        for (head, slope) in four.into_iter().enumerate() {
            assert!((first[head] - slope * 1.00001).abs() < 1e-15);
            assert!((last[head] - slope * 1e-5).abs() < 1e-15);
        }
        Ok(())
    }

    #[test]
    fn the_papers_slopes_are_linear() -> Result<()> {
        let config = Config::new(4).with_slopes(Slopes::Paper).with_layer(1, 2);
        assert_eq!(config.head_slopes()?, [0.0, 1.0, 2.0, 3.0]);
        Ok(())
    }

    #[test]
    fn decays_are_powers() -> Result<()> {
        let config = Config::new(2).with_slopes(Slopes::Given(vec![0.0, 2.0]));
        let table = config.decays(3)?;
        assert_eq!(table, ndarray::arr2(&[[1.0, 1.0, 1.0], [1.0, (-2_f64).exp(), (-4_f64).exp()]]));
        Ok(())
    }
}
