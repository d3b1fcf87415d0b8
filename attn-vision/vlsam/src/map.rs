//! One object's map on the host.

use attn_core::{Error, Result};

/// Attention of an object's name to the patches of an image, scaled so that the weakest patch is 0 and
/// the strongest 1: section 2.4 of the method, and what prompts are picked from.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionMap {
    grid: (usize, usize),
    values: Vec<f32>,
    raw: Vec<f32>,
}

impl AttentionMap {
    /// The map of `raw` attention, one number a patch in raster order, on a grid of `(rows, columns)`
    /// patches. A constant map becomes all zeros.
    ///
    /// # Errors
    /// [`Error::Config`] for a grid without patches, [`Error::Shape`] for another number of patches,
    /// [`Error::Data`] for what is not finite.
    pub fn from_raw(grid: (usize, usize), raw: Vec<f32>) -> Result<AttentionMap> {
        let values = min_max(grid, &raw)?;
        Ok(AttentionMap { grid, values, raw })
    }

    /// The map with these values from 0 to 1, as [`AttentionMap::values`] gives them.
    ///
    /// # Errors
    /// As [`AttentionMap::from_raw`], and [`Error::Data`] for a value outside of 0 to 1.
    pub fn from_values(grid: (usize, usize), values: Vec<f32>) -> Result<AttentionMap> {
        check(grid, &values)?;
        if let Some(value) = values.iter().find(|value| !(0.0..=1.0).contains(*value)) {
            return Err(Error::data("values", "numbers from 0 to 1", value));
        }
        Ok(AttentionMap { grid, raw: values.clone(), values })
    }

    pub(crate) fn from_parts(
        grid: (usize, usize),
        values: Vec<f32>,
        raw: Vec<f32>,
    ) -> Result<AttentionMap> {
        let map = AttentionMap::from_values(grid, values)?;
        check(grid, &raw)?;
        Ok(AttentionMap { raw, ..map })
    }

    /// Rows and columns of patches.
    pub fn grid(&self) -> (usize, usize) {
        self.grid
    }

    /// One value from 0 to 1 a patch, in raster order.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The same before scaling: attention mass, at least 0.
    pub fn raw(&self) -> &[f32] {
        &self.raw
    }

    /// The value of the patch in row `y` and column `x`; none outside of the grid.
    pub fn at(&self, y: usize, x: usize) -> Option<f32> {
        let (rows, columns) = self.grid;
        if y >= rows || x >= columns {
            return None;
        }
        self.values.get(y * columns + x).copied()
    }

    /// Row and column of the strongest patch, the first in raster order where several are equal.
    pub fn peak(&self) -> (usize, usize) {
        let mut best = 0;
        for (place, value) in self.values.iter().enumerate() {
            if *value > self.values[best] {
                best = place;
            }
        }
        (best / self.grid.1, best % self.grid.1)
    }
}

fn check(grid: (usize, usize), values: &[f32]) -> Result<()> {
    let patches = grid.0.checked_mul(grid.1).unwrap_or(0);
    if patches == 0 {
        return Err(Error::config("grid", "at least one patch", format!("{grid:?}")));
    }
    if values.len() != patches {
        let expected = format!("{patches} patches");
        return Err(Error::shape("map", expected, &[values.len()]));
    }
    match values.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(Error::data("map", "finite numbers", value)),
        None => Ok(()),
    }
}

/// `(a - min) / (max - min)`; all 0 where that is 0 / 0.
fn min_max(grid: (usize, usize), raw: &[f32]) -> Result<Vec<f32>> {
    check(grid, raw)?;
    let (low, high) = raw.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), value| {
        (low.min(*value), high.max(*value))
    });
    // In halves, as the difference of two finite numbers need not be one.
    let range = 0.5 * high - 0.5 * low;
    let scaled = |value: &f32| match range > 0.0 {
        true => ((0.5 * value - 0.5 * low) / range).clamp(0.0, 1.0),
        false => 0.0,
    };
    Ok(raw.iter().map(scaled).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weakest_patch_is_0_and_the_strongest_1() {
        let map = AttentionMap::from_raw((2, 3), vec![3.0, 1.0, 2.0, 5.0, 5.0, 1.0]).unwrap();
        assert_eq!(map.values(), [0.5, 0.0, 0.25, 1.0, 1.0, 0.0]);
        assert_eq!((map.grid(), map.peak()), ((2, 3), (1, 0)));
        assert_eq!((map.at(0, 2), map.at(2, 0), map.at(0, 3)), (Some(0.25), None, None));
        assert_eq!(map.raw()[3], 5.0);
    }

    #[test]
    fn a_constant_map_is_zero() {
        for value in [0.0, 7.0, 1e-40] {
            let map = AttentionMap::from_raw((1, 4), vec![value; 4]).unwrap();
            assert_eq!(map.values(), [0.0; 4]);
        }
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let map = AttentionMap::from_raw((1, 3), vec![f32::MAX, -f32::MAX, 0.0]).unwrap();
        assert_eq!(map.values(), [1.0, 0.0, 0.5]);
    }

    #[test]
    fn what_is_no_map_is_refused() {
        let fails = |grid, raw: &[f32], part: &str| {
            let error = AttentionMap::from_raw(grid, raw.to_vec()).unwrap_err().to_string();
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        };
        fails((0, 4), &[], "grid");
        fails((usize::MAX, 2), &[], "grid");
        fails((2, 2), &[1.0; 3], "4 patches");
        fails((1, 2), &[1.0, f32::NAN], "finite");
        fails((1, 2), &[f32::INFINITY, 1.0], "finite");
        let error = AttentionMap::from_values((1, 2), vec![0.0, 1.5]).unwrap_err().to_string();
        assert!(error.contains("from 0 to 1"), "{error}");
    }
}
