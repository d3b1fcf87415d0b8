//! Images: loading, pictures of results, and results as JSON.

mod coco;
mod font;
mod overlay;

use std::path::Path;

use ::image::{DynamicImage, ImageReader, RgbImage};
use attn_core::{Error, Result};

pub use ::image as image_crate;
pub use coco::{CocoImage, coco, coco_results, rle, rle_decode, rle_text};
pub use overlay::{heat_map, overlay, picture};

/// The most bytes that a decoded image may have.
const LARGEST: u64 = 1 << 30;

/// Reads a PNG or JPEG file; what it is, its first bytes say.
///
/// # Errors
/// [`Error::File`] where it cannot be read, is of another format, is damaged, or has more than a
/// gigabyte of pixels.
pub fn load(path: impl AsRef<Path>) -> Result<RgbImage> {
    let path = path.as_ref();
    let bad = |reason: String| Error::file(path, reason);
    let reader = ImageReader::open(path).map_err(|error| bad(error.to_string()))?;
    let mut reader = reader.with_guessed_format().map_err(|error| bad(error.to_string()))?;
    let mut limits = ::image::Limits::default();
    limits.max_alloc = Some(LARGEST);
    reader.limits(limits);
    let image: DynamicImage = reader.decode().map_err(|error| bad(error.to_string()))?;
    Ok(image.into_rgb8())
}

/// Writes a PNG file.
///
/// # Errors
/// [`Error::File`] where it cannot be written.
pub fn save_png(image: &RgbImage, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    image
        .save_with_format(path, ::image::ImageFormat::Png)
        .map_err(|error| Error::file(path, error))
}
