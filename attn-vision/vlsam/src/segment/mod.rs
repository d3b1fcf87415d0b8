//! What segments by prompts, and what names objects.
//!
//! [`RandomWalker`] needs nothing but the image. With the feature `sam`, [`Sam`] runs Segment Anything
//! and MobileSAM from weights that the user has. [`Recogniser`] is where a vision-language model goes;
//! [`Scripted`] stands in for one.

mod graph;
mod mask;
mod recogniser;
#[cfg(feature = "sam")]
mod sam;
mod walker;

use ::image::RgbImage;
use attn_core::{Error, Result};

use crate::prompt::Point;

pub use graph::{Lattice, Walks};
pub use mask::PixelMask;
pub use recogniser::{Recognised, Recogniser, Scene, Scripted, gaussian_map};
#[cfg(feature = "sam")]
pub use sam::{Sam, SamConfig, SamModel};
pub use walker::{RandomWalker, WalkerConfig};

/// What to segment: points, and a mask from before.
#[derive(Debug, Clone, Copy)]
pub struct Prompt<'a> {
    /// Points on the object and beside it.
    pub points: &'a [Point],
    /// What the same segmenter gave before, to be made better.
    pub mask: Option<&'a Segment>,
}

/// A mask that a segmenter found.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Segment {
    /// Pixels of the object, of the size of the image.
    pub mask: PixelMask,
    /// How good the segmenter takes the mask to be, higher for better.
    pub score: f64,
    /// The mask as the segmenter wants it back in [`Prompt::mask`].
    pub memory: Option<Memory>,
}

impl Segment {
    /// A mask with its score.
    pub fn new(mask: PixelMask, score: f64) -> Segment {
        Segment { mask, score, memory: None }
    }

    /// The same with what the segmenter wants back.
    pub fn with_memory(self, memory: Memory) -> Segment {
        Segment { memory: Some(memory), ..self }
    }
}

/// Numbers on a coarse lattice behind a mask: logits of Segment Anything, probabilities of the random
/// walker.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Memory {
    /// Rows and columns.
    pub size: (usize, usize),
    /// One number a place, in raster order.
    pub values: Vec<f32>,
}

impl Memory {
    /// `values` on a lattice of `(rows, columns)`.
    pub fn new(size: (usize, usize), values: Vec<f32>) -> Memory {
        Memory { size, values }
    }
}

/// A model that segments what points are on: Segment Anything, or what works like it.
pub trait Segmenter {
    /// Takes the image to which all later prompts belong, with what is computed once an image.
    ///
    /// # Errors
    /// Where the image has no pixels, or the segmenter fails.
    fn set_image(&mut self, image: &RgbImage) -> Result<()>;

    /// Rows and columns of pixels of the image; none before there is one.
    fn size(&self) -> Option<(u32, u32)>;

    /// Masks of the size of the image, with scores; possibly none. Points may lie outside of the image:
    /// they count as its nearest pixel.
    ///
    /// # Errors
    /// Without an image, without points, for points that are not numbers, and where the segmenter fails.
    fn segment(&mut self, prompt: &Prompt<'_>) -> Result<Vec<Segment>>;

    /// The same for several prompts, the masks of each in its place. Models that do better than one
    /// prompt after the other do it here.
    ///
    /// # Errors
    /// As [`Segmenter::segment`], for any of the prompts.
    fn segment_all(&mut self, prompts: &[Prompt<'_>]) -> Result<Vec<Vec<Segment>>> {
        prompts.iter().map(|prompt| self.segment(prompt)).collect()
    }
}

/// Refuses prompts without points and points that are nowhere.
fn check_points(points: &[Point]) -> Result<()> {
    if points.is_empty() {
        return Err(Error::data("points", "at least one point", "none"));
    }
    match points.iter().find(|point| !(point.y.is_finite() && point.x.is_finite())) {
        Some(point) => Err(Error::data("points", "finite numbers", format!("{point:?}"))),
        None => Ok(()),
    }
}
