//! What names the objects of an image and says where it looked.

use ::image::RgbImage;
use attn_core::{Error, Result};

use crate::AttentionMap;
use crate::prompt::{PixelBox, QUESTIONS, View};

/// What a recogniser is shown.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// The pixels: the whole image, or a part.
    pub image: &'a RgbImage,
    /// Which part.
    pub view: View,
}

/// An object that was named, and the attention of its name to the patches of what was shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Recognised {
    /// The name.
    pub name: String,
    /// The map, over the scene that was shown.
    pub map: AttentionMap,
}

/// A vision-language model: it names what is in an image, and its attention says where.
pub trait Recogniser {
    /// At most `count` questions to be asked about the image. The paper lets the model write them; by
    /// default they are the first of [`QUESTIONS`].
    ///
    /// # Errors
    /// Those of the model.
    fn questions(&mut self, _image: &RgbImage, count: usize) -> Result<Vec<String>> {
        Ok(QUESTIONS.iter().take(count).map(|&question| question.to_owned()).collect())
    }

    /// The objects that the answer to `question` names, each with its map. A name may come several
    /// times, for several objects.
    ///
    /// # Errors
    /// Those of the model.
    fn recognise(&mut self, scene: &Scene<'_>, question: &str) -> Result<Vec<Recognised>>;
}

/// A recogniser that is told what there is: for tests and examples without a model.
///
/// Every object gives one map as [`gaussian_map`] makes it, the n-th with the noise of seed plus n. In
/// a part of the image it sees the objects of which at least half are inside.
#[derive(Debug, Clone, PartialEq)]
pub struct Scripted {
    objects: Vec<(String, PixelBox)>,
    grid: (usize, usize),
    noise: f64,
    seed: u64,
}

impl Scripted {
    /// Names and boxes of the objects, in pixels of the whole image. The grid is 35 x 35 with noise 0.05
    /// and seed 1.
    pub fn new<S: Into<String>>(objects: impl IntoIterator<Item = (S, PixelBox)>) -> Scripted {
        let objects = objects.into_iter().map(|(name, bounds)| (name.into(), bounds)).collect();
        Scripted { objects, grid: (35, 35), noise: 0.05, seed: 1 }
    }

    /// The same with maps on another grid of `(rows, columns)`.
    pub fn with_grid(self, grid: (usize, usize)) -> Scripted {
        Scripted { grid, ..self }
    }

    /// The same with noise of another standard deviation, from another seed.
    pub fn with_noise(self, noise: f64, seed: u64) -> Scripted {
        Scripted { noise, seed, ..self }
    }
}

impl Recogniser for Scripted {
    fn recognise(&mut self, scene: &Scene<'_>, _question: &str) -> Result<Vec<Recognised>> {
        let part = scene.view.part;
        let mut all = Vec::new();
        for ((name, bounds), seed) in self.objects.iter().zip(self.seed..) {
            let inside = PixelBox::new(
                bounds.x0.max(part.x0).saturating_sub(part.x0),
                bounds.y0.max(part.y0).saturating_sub(part.y0),
                bounds.x1.min(part.x1).saturating_sub(part.x0),
                bounds.y1.min(part.y1).saturating_sub(part.y0),
            );
            if inside.area() > 0 && 2 * inside.area() >= bounds.area() {
                let map = gaussian_map(self.grid, scene.view.size(), &inside, self.noise, seed)?;
                all.push(Recognised { name: name.clone(), map });
            }
        }
        Ok(all)
    }
}

/// Synthetic attention to a box in an image of `(height, width)` pixels: a Gaussian around its middle,
/// of height 1, whose standard deviations are a quarter of the box's sides, plus normal noise of
/// standard deviation `noise` on every patch; negative attention becomes 0.
///
/// # Errors
/// [`Error::Config`] for a grid without patches, and noise that is negative or not finite,
/// [`Error::Data`] for a box or an image without pixels.
pub fn gaussian_map(
    grid: (usize, usize),
    size: (u32, u32),
    bounds: &PixelBox,
    noise: f64,
    seed: u64,
) -> Result<AttentionMap> {
    if bounds.area() == 0 || size.0 == 0 || size.1 == 0 {
        return Err(Error::data("bounds", "a box with pixels in an image", format!("{bounds:?}")));
    }
    if !(noise.is_finite() && noise >= 0.0) {
        return Err(Error::config("noise", "a number of at least 0", noise));
    }
    let mut random = fastrand::Rng::with_seed(seed);
    // Position of a patch's middle, in standard deviations from the middle of the box.
    let along = |patch: usize, patches: usize, pixels: u32, from: u32, to: u32| {
        let middle = (patch as f64 + 0.5) * f64::from(pixels) / patches.max(1) as f64;
        let sigma = 0.25 * (f64::from(to) - f64::from(from));
        (middle - 0.5 * (f64::from(from) + f64::from(to))) / sigma
    };
    let mut raw = Vec::new();
    for row in 0..grid.0 {
        let y = along(row, grid.0, size.0, bounds.y0, bounds.y1);
        for column in 0..grid.1 {
            let x = along(column, grid.1, size.1, bounds.x0, bounds.x1);
            let value = (-0.5 * (x * x + y * y)).exp() + noise * normal(&mut random);
            raw.push(value.max(0.0) as f32);
        }
    }
    AttentionMap::from_raw(grid, raw)
}

/// A normal number by the method of Box and Muller.
fn normal(random: &mut fastrand::Rng) -> f64 {
    let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * random.f64()).cos()
}
