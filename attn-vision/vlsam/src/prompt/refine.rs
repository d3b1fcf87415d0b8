//! Iterative refinement (section 2.6): pairs of points until the map has no strong patch left.

use attn_core::{Error, Result};

use super::boxes::{PixelBox, falling};
use super::config::{PromptConfig, Refine};
use super::points::{PatchPair, Point};
use crate::AttentionMap;
use crate::segment::{PixelMask, Prompt, Segment, Segmenter};

/// A mask, and the points that gave it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Found {
    /// The pixels; at least one.
    pub mask: PixelMask,
    /// The smallest box with all pixels of the mask.
    pub bounds: PixelBox,
    /// The segmenter's score.
    pub score: f64,
    /// The points, the positive one first.
    pub points: Vec<Point>,
    /// The same as patches.
    pub pair: PatchPair,
}

/// All masks of one map, in the order in which they were found, before any is suppressed. The
/// segmenter holds the image.
///
/// A pair whose mask is empty gives nothing. Every pair takes at least its own positive patch out of
/// the map, so that the loop ends even where masks cover no patch.
///
/// # Errors
/// [`Error::Config`] as [`PromptConfig::validate`], [`Error::Data`] where the segmenter has no image,
/// [`Error::Shape`] where it gives masks of another size than its image, and its own errors.
pub fn refine(
    map: &AttentionMap,
    segmenter: &mut dyn Segmenter,
    config: &PromptConfig,
) -> Result<Vec<Found>> {
    config.validate()?;
    let size = segmenter.size().ok_or_else(|| Error::data("segmenter", "an image", "none"))?;
    let (grid, columns) = (map.grid(), map.grid().1);
    let mut valid = vec![true; map.values().len()];
    let mut all = Vec::new();
    for _ in 0..config.max_iter {
        let Some(pair) = PatchPair::pick(map, &valid, config.threshold)? else {
            break;
        };
        let points = pair.points(grid, size);
        let best = cascade(segmenter, &points, config.cascade)?;
        let positive = pair.positive.0 * columns + pair.positive.1;
        let mut covered = vec![false; valid.len()];
        if let Some(Segment { mask, score, .. }) = best {
            if mask.size() != size {
                let (height, width) = mask.size();
                let expected = format!("{} x {} pixels", size.0, size.1);
                return Err(Error::shape("mask", expected, &[height as usize, width as usize]));
            }
            covered = mask.coverage(grid).iter().map(|&share| share >= config.cover).collect();
            if let Some(bounds) = mask.bounds() {
                all.push(Found { mask, bounds, score, points, pair });
            }
        }
        for (valid, covered) in valid.iter_mut().zip(covered) {
            *valid &= covered == (config.refine == Refine::Keep);
        }
        if let Some(valid) = valid.get_mut(positive) {
            *valid = false;
        }
    }
    Ok(all)
}

/// The best mask of the points, then of the points with that mask, and so on.
fn cascade(
    segmenter: &mut dyn Segmenter,
    points: &[Point],
    rounds: usize,
) -> Result<Option<Segment>> {
    let mut best = highest(segmenter.segment(&Prompt { points, mask: None })?);
    for _ in 0..rounds {
        let Some(before) = &best else {
            break;
        };
        match highest(segmenter.segment(&Prompt { points, mask: Some(before) })?) {
            Some(after) => best = Some(after),
            None => break,
        }
    }
    Ok(best)
}

/// The mask with the highest score, the first of several.
fn highest(segments: Vec<Segment>) -> Option<Segment> {
    segments.into_iter().min_by(|a, b| falling(a.score, b.score))
}
