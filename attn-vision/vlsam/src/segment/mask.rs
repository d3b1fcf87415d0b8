//! Masks in pixels.

use std::fmt;

use attn_core::{Error, Result};

use crate::prompt::{PixelBox, patch_of};

/// A set of pixels of an image.
#[derive(Clone, PartialEq, Eq)]
pub struct PixelMask {
    size: (u32, u32),
    bits: Vec<bool>,
}

impl fmt::Debug for PixelMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PixelMask({} of {} x {} pixels)", self.area(), self.size.0, self.size.1)
    }
}

impl PixelMask {
    /// The empty set, for an image of `(height, width)` pixels.
    pub fn empty(size: (u32, u32)) -> PixelMask {
        PixelMask { size, bits: vec![false; size.0 as usize * size.1 as usize] }
    }

    /// The pixels that are `set`, in raster order, of an image of `(height, width)` pixels.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of pixels.
    pub fn new(size: (u32, u32), set: Vec<bool>) -> Result<PixelMask> {
        if u64::from(size.0) * u64::from(size.1) != set.len() as u64 {
            return Err(Error::shape(
                "set",
                format!("{} x {} pixels", size.0, size.1),
                &[set.len()],
            ));
        }
        Ok(PixelMask { size, bits: set })
    }

    /// The pixels `(y, x)` for which `inside` holds.
    pub fn from_fn(size: (u32, u32), mut inside: impl FnMut(u32, u32) -> bool) -> PixelMask {
        let (height, width) = size;
        let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (y, x)));
        PixelMask { size, bits: pixels.map(|(y, x)| inside(y, x)).collect() }
    }

    /// Rows and columns of pixels of the image.
    pub fn size(&self) -> (u32, u32) {
        self.size
    }

    /// Whether each pixel is in the set, in raster order.
    pub fn bits(&self) -> &[bool] {
        &self.bits
    }

    /// Whether the pixel in row `y` and column `x` is in the set; none outside of the image is.
    pub fn at(&self, y: u32, x: u32) -> bool {
        y < self.size.0
            && x < self.size.1
            && self.bits[y as usize * self.size.1 as usize + x as usize]
    }

    /// Pixels in the set.
    pub fn area(&self) -> u64 {
        self.bits.iter().filter(|&&bit| bit).count() as u64
    }

    /// The smallest box with all pixels of the set; none for the empty set.
    pub fn bounds(&self) -> Option<PixelBox> {
        let mut bounds: Option<PixelBox> = None;
        for (y, x) in self.pixels() {
            let pixel = PixelBox::new(x, y, x + 1, y + 1);
            bounds = Some(bounds.map_or(pixel, |old| {
                PixelBox::new(old.x0.min(x), old.y0.min(y), old.x1.max(x + 1), old.y1.max(y + 1))
            }));
        }
        bounds
    }

    /// The pixels of the set as (row, column), in raster order.
    pub fn pixels(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let width = self.size.1 as usize;
        let set = self.bits.iter().enumerate().filter(|&(_, &bit)| bit);
        set.map(move |(place, _)| ((place / width) as u32, (place % width) as u32))
    }

    /// The pixels in both sets over the pixels in either; 0 for two empty sets and for images of
    /// different sizes.
    pub fn iou(&self, other: &PixelMask) -> f64 {
        if self.size != other.size {
            return 0.0;
        }
        let pairs = || self.bits.iter().zip(&other.bits);
        let both = pairs().filter(|&(&a, &b)| a && b).count();
        let either = pairs().filter(|&(&a, &b)| a || b).count();
        if either > 0 { both as f64 / either as f64 } else { 0.0 }
    }

    /// The share of each patch's pixels that are in the set, in raster order, where a `grid` of `(rows,
    /// columns)` divides the image evenly. A pixel belongs to the patch in which its middle lies; a
    /// patch without pixels has the share 0.
    pub fn coverage(&self, grid: (usize, usize)) -> Vec<f64> {
        let (height, width) = self.size;
        let patches = grid.0.saturating_mul(grid.1);
        let mut inside = vec![0_u32; patches];
        let mut pixels = vec![0_u32; patches];
        if patches == 0 {
            return Vec::new();
        }
        let columns: Vec<usize> = (0..width).map(|x| patch_of(x, width, grid.1)).collect();
        for y in 0..height {
            let first = patch_of(y, height, grid.0) * grid.1;
            for (x, column) in (0..width).zip(&columns) {
                pixels[first + column] += 1;
                inside[first + column] += u32::from(self.at(y, x));
            }
        }
        let share = |(inside, pixels): (u32, u32)| match pixels {
            0 => 0.0,
            _ => f64::from(inside) / f64::from(pixels),
        };
        inside.into_iter().zip(pixels).map(share).collect()
    }

    /// The same pixels in an image of `full` `(height, width)` pixels in which this one has its upper
    /// left corner at row `y` and column `x`. What does not fit is cut off.
    pub fn pasted(&self, full: (u32, u32), y: u32, x: u32) -> PixelMask {
        let mut pasted = PixelMask::empty(full);
        for (row, column) in self.pixels() {
            let (row, column) = (row.saturating_add(y), column.saturating_add(x));
            if row < full.0 && column < full.1 {
                pasted.bits[row as usize * full.1 as usize + column as usize] = true;
            }
        }
        pasted
    }
}
