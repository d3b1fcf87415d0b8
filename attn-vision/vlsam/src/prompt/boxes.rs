//! Boxes in pixels, and suppression of those that show the same.

use std::cmp::Ordering;

use attn_core::{Error, Result};

/// A box in pixels: columns `x0..x1` and rows `y0..y1`, from the upper left corner of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PixelBox {
    /// The first column.
    pub x0: u32,
    /// The first row.
    pub y0: u32,
    /// The column after the last one.
    pub x1: u32,
    /// The row after the last one.
    pub y1: u32,
}

impl PixelBox {
    /// The box of columns `x0..x1` and rows `y0..y1`.
    pub fn new(x0: u32, y0: u32, x1: u32, y1: u32) -> Self {
        PixelBox { x0, y0, x1, y1 }
    }

    /// Columns.
    pub fn width(&self) -> u32 {
        self.x1.saturating_sub(self.x0)
    }

    /// Rows.
    pub fn height(&self) -> u32 {
        self.y1.saturating_sub(self.y0)
    }

    /// Pixels; 0 for a box whose end is not after its start.
    pub fn area(&self) -> u64 {
        u64::from(self.width()) * u64::from(self.height())
    }

    /// The pixels in both, over the pixels in either; 0 for two empty boxes.
    pub fn iou(&self, other: &PixelBox) -> f64 {
        let both = PixelBox {
            x0: self.x0.max(other.x0),
            y0: self.y0.max(other.y0),
            x1: self.x1.min(other.x1),
            y1: self.y1.min(other.y1),
        };
        let both = both.area() as f64;
        let either = self.area() as f64 + other.area() as f64 - both;
        if either > 0.0 { both / either } else { 0.0 }
    }

    /// The same box, moved right by `x` and down by `y` pixels.
    pub fn moved(&self, x: u32, y: u32) -> PixelBox {
        PixelBox {
            x0: self.x0.saturating_add(x),
            y0: self.y0.saturating_add(y),
            x1: self.x1.saturating_add(x),
            y1: self.y1.saturating_add(y),
        }
    }
}

/// Non-maximum suppression (section 2.7): indices of the boxes that stay, the highest score first. A
/// box goes where its intersection over union with one that stays is above `bound`; with `labels`, only
/// boxes with the same number suppress each other. Equal scores count in the order of their indices,
/// and a score that is not a number is below all others.
///
/// # Errors
/// [`Error::Shape`] where lengths differ, [`Error::Config`] for a `bound` outside of 0 to 1.
pub fn nms(
    boxes: &[PixelBox],
    scores: &[f64],
    labels: Option<&[usize]>,
    bound: f64,
) -> Result<Vec<usize>> {
    if !(0.0..=1.0).contains(&bound) {
        return Err(Error::config("nms", "0 to 1", bound));
    }
    let lengths = [("scores", Some(scores.len())), ("labels", labels.map(<[usize]>::len))];
    for (arg, length) in lengths {
        if length.is_some_and(|length| length != boxes.len()) {
            return Err(Error::shape(arg, format!("[{}]", boxes.len()), &[length.unwrap_or(0)]));
        }
    }
    let label = |index: usize| labels.and_then(|labels| labels.get(index));
    let mut order: Vec<(usize, &PixelBox)> = boxes.iter().enumerate().collect();
    let score = |index: usize| scores.get(index).copied().unwrap_or(f64::NAN);
    order.sort_by(|&(a, _), &(b, _)| falling(score(a), score(b)));
    let mut kept: Vec<(usize, &PixelBox)> = Vec::new();
    for (index, candidate) in order {
        let same = |other: usize| labels.is_none() || label(other) == label(index);
        if !kept.iter().any(|&(other, kept)| same(other) && candidate.iou(kept) > bound) {
            kept.push((index, candidate));
        }
    }
    Ok(kept.into_iter().map(|(index, _)| index).collect())
}

/// From the highest to the lowest, then what is not a number.
pub(crate) fn falling(a: f64, b: f64) -> Ordering {
    b.partial_cmp(&a).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// Which found box shows each true one, with their intersection over union: the boxes of `found`, best
/// first, each take the true box that they overlap most of those that are still free, where that is at
/// least `bound`.
pub fn match_boxes(
    found: &[PixelBox],
    truth: &[PixelBox],
    bound: f64,
) -> Vec<Option<(usize, f64)>> {
    let mut matched: Vec<Option<(usize, f64)>> = vec![None; truth.len()];
    for (index, found) in found.iter().enumerate() {
        let mut best: Option<(&mut Option<(usize, f64)>, f64)> = None;
        for (place, truth) in matched.iter_mut().zip(truth) {
            let iou = found.iou(truth);
            let better = best.as_ref().is_none_or(|(_, highest)| iou > *highest);
            if place.is_none() && iou >= bound && better {
                best = Some((place, iou));
            }
        }
        if let Some((place, iou)) = best {
            *place = Some((index, iou));
        }
    }
    matched
}
