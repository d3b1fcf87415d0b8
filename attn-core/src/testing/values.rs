use super::random::{normal, uniform};
use crate::{Error, Result};

/// Distributions of test data, all finite in f32, with products of 256 elements that are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Values {
    /// Normal, mean 0, variance 1.
    Normal,
    /// Normal times a log-normal factor: a few elements are tens to hundreds of times the median.
    HeavyTailed,
    /// 0.5 everywhere: all logits of a row are equal.
    Constant,
    /// 16 times normal: with the default scale, logits of -500 to 500 and more.
    Huge,
    /// 2^-40 times normal: all logits are almost 0.
    Tiny,
}

impl Values {
    /// All distributions.
    pub const ALL: [Values; 5] =
        [Values::Normal, Values::HeavyTailed, Values::Constant, Values::Huge, Values::Tiny];

    /// Element `index`, a pure function of its arguments.
    pub fn at(self, seed: u64, stream: u64, index: u64) -> f32 {
        let normal = || normal(seed, stream, index);
        let value = match self {
            Values::Normal => normal(),
            Values::HeavyTailed => {
                // The logarithm is symmetric and triangular, with standard deviation 1.2.
                let other =
                    uniform(seed, !stream, 2 * index) + uniform(seed, !stream, 2 * index + 1);
                normal() * (3.0 * (other - 1.0)).exp()
            }
            Values::Constant => 0.5,
            Values::Huge => 16.0 * normal(),
            Values::Tiny => (-40_f64).exp2() * normal(),
        };
        value as f32
    }
}

/// The first `len` elements of a stream.
pub fn fill(seed: u64, stream: u64, values: Values, len: usize) -> Vec<f32> {
    (0..len as u64).map(|index| values.at(seed, stream, index)).collect()
}

/// Overwrites the elements `indices` with `value`: NaN or an infinity where nobody may look.
///
/// # Errors
/// [`Error::Data`] for an index outside of the data; indices before it are planted.
pub fn plant(data: &mut [f32], indices: impl IntoIterator<Item = usize>, value: f32) -> Result<()> {
    let len = data.len();
    for index in indices {
        match data.get_mut(index) {
            Some(element) => *element = value,
            None => {
                return Err(Error::data("indices", format!("indices below {len}"), index));
            }
        }
    }
    Ok(())
}
