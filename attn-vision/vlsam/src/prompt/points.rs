//! The points that prompt a segmenter.

use attn_core::{Error, Result};

use super::region::{Components, strong};
use crate::AttentionMap;

/// A point in pixels, from the upper left corner of the image's first pixel.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Point {
    /// Downwards.
    pub y: f64,
    /// To the right.
    pub x: f64,
    /// Whether the point is on the object (label 1) or beside it (label 0).
    pub positive: bool,
}

/// A patch of the object and one beside it (section 2.5), as (row, column) of the grid.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PatchPair {
    /// The strongest patch of the largest region of strong patches.
    pub positive: (usize, usize),
    /// The weakest patch outside of that region; none where the region is all there is.
    pub negative: Option<(usize, usize)>,
    /// The patches of the region, in raster order.
    pub region: Vec<bool>,
}

impl PatchPair {
    /// The pair that `map` gives among the patches that are `valid`, in raster order; none where no
    /// valid patch reaches `threshold`. Of equal patches the first in raster order counts, of equally
    /// large regions the one whose first patch comes first.
    ///
    /// # Errors
    /// [`Error::Shape`] where `valid` has another length than the map.
    pub fn pick(map: &AttentionMap, valid: &[bool], threshold: f64) -> Result<Option<PatchPair>> {
        let values = map.values();
        if valid.len() != values.len() {
            return Err(Error::shape("valid", format!("[{}]", values.len()), &[valid.len()]));
        }
        let mut set = strong(map, threshold);
        for (set, valid) in set.iter_mut().zip(valid) {
            *set &= valid;
        }
        let components = Components::new(map.grid(), &set)?;
        let Some(largest) = components.largest() else {
            return Ok(None);
        };
        let region: Vec<bool> = components.labels.iter().map(|&label| label == largest).collect();
        let columns = map.grid().1;
        let mut positive: Option<(usize, f32)> = None;
        let mut negative: Option<(usize, f32)> = None;
        for (patch, &value) in values.iter().enumerate() {
            if region[patch] {
                if positive.is_none_or(|(_, best)| value > best) {
                    positive = Some((patch, value));
                }
            } else if valid[patch] && negative.is_none_or(|(_, best)| value < best) {
                negative = Some((patch, value));
            }
        }
        let place = |(patch, _): (usize, f32)| (patch / columns, patch % columns);
        let negative = negative.map(place);
        Ok(positive.map(|positive| PatchPair { positive: place(positive), negative, region }))
    }

    /// The pair as points in an image of `(height, width)` pixels that the `grid` divides evenly: the
    /// centres of the patches, the positive one first.
    pub fn points(&self, grid: (usize, usize), size: (u32, u32)) -> Vec<Point> {
        let point = |patch, positive| {
            let (y, x) = patch_centre(grid, size, patch);
            Point { y, x, positive }
        };
        let positive = point(self.positive, true);
        std::iter::once(positive).chain(self.negative.map(|patch| point(patch, false))).collect()
    }
}

/// The centre `(y, x)` of a patch of a `grid` of `(rows, columns)` in an image of `(height, width)`
/// pixels, in pixels.
pub fn patch_centre(grid: (usize, usize), size: (u32, u32), patch: (usize, usize)) -> (f64, f64) {
    let along = |patch: usize, patches: usize, pixels: u32| {
        (patch as f64 + 0.5) * f64::from(pixels) / patches.max(1) as f64
    };
    (along(patch.0, grid.0, size.0), along(patch.1, grid.1, size.1))
}

/// The row (or column) of patches, of `patches`, in which the middle of a row (or column) of `pixels`
/// lies.
pub fn patch_of(pixel: u32, pixels: u32, patches: usize) -> usize {
    let patch = (f64::from(pixel) + 0.5) * patches as f64 / f64::from(pixels.max(1));
    (patch as usize).min(patches.saturating_sub(1))
}
