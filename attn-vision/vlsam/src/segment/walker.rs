//! A segmenter that needs no model: random walks on the pixels of the image.

use ::image::imageops::{self, FilterType};
use ::image::{GrayImage, Rgb, RgbImage};
use attn_core::{Error, Result};
use imageproc::contrast::otsu_level;
use imageproc::filter::gaussian_blur_f32;

use super::graph::Lattice;
use super::{Memory, PixelMask, Prompt, Segment, Segmenter, check_points};
use crate::prompt::{Components, Point};

mod colours;
mod config;
mod levels;

use colours::Colours;
pub use config::WalkerConfig;
use levels::Cut;

/// Segments by random walks between neighbouring pixels, which seldom cross an edge.
///
/// Walks start at every pixel and end on a point of the prompt. Those that take long are pulled away
/// and count as ending beside the object. The probability to end on the object is cut at three levels:
/// one half, Otsu's, and the one whose outline is the sharpest. What hangs together with a positive
/// point is a mask; its score is the mean sharpness of its outline, from 0 to 1.
///
/// With a mask, pixels are pulled to the side whose colour they have: that inside of the mask, or that
/// close around it.
#[derive(Debug, Clone, Default)]
pub struct RandomWalker {
    config: WalkerConfig,
    scene: Option<Scene>,
}

/// An image as walks see it.
#[derive(Debug, Clone)]
struct Scene {
    size: (u32, u32),
    colours: Vec<[f32; 3]>,
    lattice: Lattice,
}

impl Scene {
    fn places(&self) -> (usize, usize) {
        self.lattice.size()
    }

    /// The place in which a point lies, or the nearest one.
    fn place(&self, point: &Point) -> (usize, usize) {
        let (rows, columns) = self.places();
        let along = |at: f64, pixels: u32, places: usize| {
            let place = (at * places as f64 / f64::from(pixels.max(1))).floor();
            place.clamp(0.0, places.saturating_sub(1) as f64) as usize
        };
        (along(point.y, self.size.0, rows), along(point.x, self.size.1, columns))
    }
}

impl RandomWalker {
    /// A walker with this configuration, and no image yet.
    ///
    /// # Errors
    /// [`Error::Config`] as [`WalkerConfig::validate`].
    pub fn new(config: WalkerConfig) -> Result<RandomWalker> {
        config.validate()?;
        Ok(RandomWalker { config, scene: None })
    }

    /// The walks' lattice; none before there is an image.
    pub fn lattice(&self) -> Option<&Lattice> {
        self.scene.as_ref().map(|scene| &scene.lattice)
    }
}

impl Segmenter for RandomWalker {
    fn set_image(&mut self, image: &RgbImage) -> Result<()> {
        let (width, height) = image.dimensions();
        if width == 0 || height == 0 {
            return Err(Error::data("image", "pixels", format!("{height} x {width}")));
        }
        let scale = (f64::from(self.config.max_side) / f64::from(width.max(height))).min(1.0);
        let fit = |pixels: u32| ((f64::from(pixels) * scale).round() as u32).max(1);
        let mut small = match scale < 1.0 {
            true => imageops::resize(image, fit(width), fit(height), FilterType::Triangle),
            false => image.clone(),
        };
        if self.config.blur > 0.0 {
            small = gaussian_blur_f32(&small, self.config.blur as f32);
        }
        let colours: Vec<[f32; 3]> =
            small.pixels().map(|Rgb(pixel)| pixel.map(f32::from)).collect();
        let places = (small.height() as usize, small.width() as usize);
        let lattice = conductances(places, &colours, self.config.beta)?;
        self.scene = Some(Scene { size: (height, width), colours, lattice });
        Ok(())
    }

    fn size(&self) -> Option<(u32, u32)> {
        self.scene.as_ref().map(|scene| scene.size)
    }

    fn segment(&mut self, prompt: &Prompt<'_>) -> Result<Vec<Segment>> {
        let scene = self.scene.as_ref();
        let scene = scene.ok_or_else(|| Error::data("segmenter", "an image", "none"))?;
        check_points(prompt.points)?;
        if !prompt.points.iter().any(|point| point.positive) {
            return Err(Error::data("points", "a positive point", "none"));
        }
        let fixed = self.seeds(scene, prompt.points);
        let places = scene.places();
        let before = prompt.mask.map(|segment| small_mask(&segment.mask, places));
        // Without a mask, walks that take long count as ending beside the object.
        let leak = vec![(self.config.leak, 0.0); fixed.len()];
        let colours = before.and_then(|mask| Colours::of_mask(&scene.colours, places, &mask));
        let pull = colours.map_or(leak, |colours| {
            let likeness = |colour| (self.config.pull, colours.likeness(colour));
            scene.colours.iter().map(likeness).collect()
        });
        let memory = prompt.mask.and_then(|segment| segment.memory.as_ref());
        let start: Option<Vec<f64>> = memory
            .filter(|memory| memory.values.len() == fixed.len())
            .map(|memory| memory.values.iter().map(|&value| value.into()).collect());
        let (tolerance, most) = (self.config.tolerance, self.config.max_iter);
        let walks = scene.lattice.walks(&fixed, &pull, start.as_deref(), tolerance, most)?;
        self.cut(scene, prompt.points, &walks.values)
    }
}

impl RandomWalker {
    /// Discs around the points; where they overlap, the nearest point counts, of equally near ones the
    /// first.
    fn seeds(&self, scene: &Scene, points: &[Point]) -> Vec<Option<f64>> {
        let (rows, columns) = scene.places();
        let mut nearest = vec![(f64::INFINITY, None); rows * columns];
        let reach = self.config.radius.ceil() as usize;
        for point in points {
            let (y, x) = scene.place(point);
            for row in y.saturating_sub(reach)..rows.min(y + reach + 1) {
                for column in x.saturating_sub(reach)..columns.min(x + reach + 1) {
                    let distance = (row.abs_diff(y) as f64).hypot(column.abs_diff(x) as f64);
                    let place = &mut nearest[row * columns + column];
                    if distance <= self.config.radius && distance < place.0 {
                        *place = (distance, Some(if point.positive { 1.0 } else { 0.0 }));
                    }
                }
            }
        }
        nearest.into_iter().map(|(_, value)| value).collect()
    }

    /// Masks from the probabilities, the best first.
    fn cut(&self, scene: &Scene, points: &[Point], values: &[f64]) -> Result<Vec<Segment>> {
        let (rows, columns) = scene.places();
        let positive: Vec<usize> = points
            .iter()
            .filter(|point| point.positive)
            .map(|point| scene.place(point))
            .map(|(y, x)| y * columns + x)
            .collect();
        let cut = Cut::new(&scene.lattice, values, &positive);
        let mut levels = vec![0.5];
        let grey: Vec<u8> =
            values.iter().map(|value| (value.clamp(0.0, 1.0) * 255.0).round() as u8).collect();
        if let Some(grey) = GrayImage::from_raw(columns as u32, rows as u32, grey) {
            levels.push((f64::from(otsu_level(&grey)) + 0.5) / 255.0);
        }
        levels.extend(cut.sharpest());
        let probabilities: Vec<f32> = values.iter().map(|&value| value as f32).collect();
        let mut segments = Vec::new();
        for level in levels {
            let Some(score) = cut.score(level) else {
                continue;
            };
            let mask = full_mask(scene, values, level, points)?;
            let memory = Memory::new((rows, columns), probabilities.clone());
            segments.push(Segment::new(mask, score).with_memory(memory));
        }
        segments.sort_by(|a, b| crate::prompt::falling(a.score, b.score));
        Ok(segments)
    }
}

/// `exp(-beta d^2 / mean d^2)`, where d is the distance of the colours of neighbours.
fn conductances(places: (usize, usize), colours: &[[f32; 3]], beta: f64) -> Result<Lattice> {
    let (rows, columns) = (places.0, places.1.max(1));
    let distance = |a: usize, b: usize| match (colours.get(a), colours.get(b)) {
        (Some(a), Some(b)) => a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum(),
        _ => 0.0,
    };
    let to_right = |place: usize| match place % columns + 1 < columns {
        true => distance(place, place + 1),
        false => 0.0,
    };
    let right: Vec<f64> = (0..colours.len()).map(to_right).collect();
    let down: Vec<f64> = (0..colours.len()).map(|at| distance(at, at + columns)).collect();
    let edges = (rows * columns.saturating_sub(1) + columns * rows.saturating_sub(1)).max(1);
    let mean = right.iter().chain(&down).sum::<f64>() / edges as f64;
    let conductance = |square: &f64| match mean > 0.0 {
        true => (-beta * square / mean).exp().max(1e-6),
        false => 1.0,
    };
    let [right, down] = [right, down].map(|d| d.iter().map(conductance).collect::<Vec<f64>>());
    Lattice::new(places, right, down)
}

/// A mask on the lattice: the pixels at the middles of places.
fn small_mask(mask: &PixelMask, places: (usize, usize)) -> Vec<bool> {
    let (height, width) = mask.size();
    let pixel = |place: usize, places: usize, pixels: u32| {
        ((place as f64 + 0.5) * f64::from(pixels) / places as f64) as u32
    };
    let all = (0..places.0).flat_map(|y| (0..places.1).map(move |x| (y, x)));
    all.map(|(y, x)| mask.at(pixel(y, places.0, height), pixel(x, places.1, width))).collect()
}

/// The pixels of the image whose probability, between places, reaches `level`, as far as they hang
/// together with a positive point.
fn full_mask(scene: &Scene, values: &[f64], level: f64, points: &[Point]) -> Result<PixelMask> {
    let (height, width) = scene.size;
    let (rows, columns) = scene.places();
    let between = |at: u32, pixels: u32, places: usize| {
        let at = (f64::from(at) + 0.5) * places as f64 / f64::from(pixels) - 0.5;
        let at = at.clamp(0.0, places.saturating_sub(1) as f64);
        let low = at as usize;
        (low, (low + 1).min(places.saturating_sub(1)), at - low as f64)
    };
    let across: Vec<_> = (0..width).map(|x| between(x, width, columns)).collect();
    let mut set = Vec::new();
    for y in 0..height {
        let (above, below, down) = between(y, height, rows);
        for &(left, right, along) in &across {
            let line = |row: usize| {
                let (a, b) = (values[row * columns + left], values[row * columns + right]);
                a + along * (b - a)
            };
            let value = line(above) + down * (line(below) - line(above));
            set.push(value >= level);
        }
    }
    // Those of imageproc 0.27 panic on images of one row or column.
    let regions = Components::new((height as usize, width as usize), &set)?;
    let label = |point: &Point| {
        let along = |at: f64, pixels: u32| (at.max(0.0) as u32).min(pixels.saturating_sub(1));
        let (y, x) = (along(point.y, height) as usize, along(point.x, width) as usize);
        regions.labels.get(y * width as usize + x).copied().unwrap_or(0)
    };
    let positive = points.iter().filter(|point| point.positive);
    let wanted: Vec<u32> = positive.map(label).filter(|&label| label != 0).collect();
    let bits = regions.labels.iter().map(|label| wanted.contains(label)).collect();
    PixelMask::new(scene.size, bits)
}
