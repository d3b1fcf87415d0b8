//! The whole method: names and maps from a recogniser, points from maps, masks from points, and one
//! mask an object.

use ::image::{RgbImage, imageops};
use attn_core::{Error, Result};

use crate::AttentionMap;
use crate::prompt::{PixelBox, Point, PromptConfig, View, nms, refine, views};
use crate::segment::{PixelMask, Recognised, Recogniser, Scene, Segmenter};

/// An object that was found.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Detection {
    /// What the recogniser calls it.
    pub name: String,
    /// Its pixels in the image.
    pub mask: PixelMask,
    /// The smallest box with all of them.
    pub bounds: PixelBox,
    /// The segmenter's score.
    pub score: f64,
    /// The points in the image that gave the mask, the positive one first.
    pub points: Vec<Point>,
    /// The number of the map in [`Detections::maps`].
    pub map: usize,
}

/// A map that was used, and the part of the image that it covers.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SeenMap {
    /// The name whose attention it is.
    pub name: String,
    /// The attention.
    pub map: AttentionMap,
    /// The part of the image.
    pub view: View,
}

/// All that was found in an image.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Detections {
    /// The objects, the highest score first.
    pub objects: Vec<Detection>,
    /// The maps, in the order in which they came.
    pub maps: Vec<SeenMap>,
    /// Masks before those of the same object were suppressed.
    pub candidates: usize,
}

/// Runs the method with one recogniser and one segmenter.
#[derive(Debug, Clone)]
pub struct Detector<R, S> {
    recogniser: R,
    segmenter: S,
    config: PromptConfig,
}

impl<R: Recogniser, S: Segmenter> Detector<R, S> {
    /// A detector of these parts.
    ///
    /// # Errors
    /// [`Error::Config`] as [`PromptConfig::validate`].
    pub fn new(recogniser: R, segmenter: S, config: PromptConfig) -> Result<Detector<R, S>> {
        config.validate()?;
        Ok(Detector { recogniser, segmenter, config })
    }

    /// What names objects.
    pub fn recogniser(&mut self) -> &mut R {
        &mut self.recogniser
    }

    /// What segments.
    pub fn segmenter(&mut self) -> &mut S {
        &mut self.segmenter
    }

    /// Finds the objects of an image.
    ///
    /// # Errors
    /// [`Error::Data`] for an image without pixels, and the errors of the recogniser and the segmenter.
    pub fn detect(&mut self, image: &RgbImage) -> Result<Detections> {
        let size = (image.height(), image.width());
        if size.0 == 0 || size.1 == 0 {
            return Err(Error::data("image", "pixels", format!("{} x {}", size.0, size.1)));
        }
        let questions = match self.config.questions {
            1 => crate::prompt::QUESTIONS.iter().take(1).map(|&q| q.to_owned()).collect(),
            count => self.recogniser.questions(image, count)?,
        };
        let mut all = Vec::new();
        let mut maps = Vec::new();
        for view in views(size, self.config.multi_scale) {
            let PixelBox { x0, y0, .. } = view.part;
            let part = imageops::crop_imm(image, x0, y0, view.part.width(), view.part.height());
            let part = part.to_image();
            let named = self.ask(&Scene { image: &part, view }, &questions)?;
            if named.is_empty() {
                continue;
            }
            self.segmenter.set_image(&part)?;
            for Recognised { name, map } in named {
                for found in refine(&map, &mut self.segmenter, &self.config)? {
                    let moved = |point: &Point| Point {
                        y: point.y + f64::from(y0),
                        x: point.x + f64::from(x0),
                        ..*point
                    };
                    all.push(Detection {
                        name: name.clone(),
                        mask: found.mask.pasted(size, y0, x0),
                        bounds: view.to_full(&found.bounds),
                        score: found.score,
                        points: found.points.iter().map(moved).collect(),
                        map: maps.len(),
                    });
                }
                maps.push(SeenMap { name, map, view });
            }
        }
        let candidates = all.len();
        Ok(Detections { objects: self.merge(all)?, maps, candidates })
    }

    /// The union of the answers to all questions: of a name that an earlier answer had, only that
    /// answer's objects count.
    fn ask(&mut self, scene: &Scene<'_>, questions: &[String]) -> Result<Vec<Recognised>> {
        let mut all: Vec<Recognised> = Vec::new();
        for question in questions {
            let before = all.len();
            for object in self.recogniser.recognise(scene, question)? {
                let same = |old: &Recognised| {
                    crate::prompt::normal_name(&old.name)
                        == crate::prompt::normal_name(&object.name)
                };
                if !all.iter().take(before).any(same) {
                    all.push(object);
                }
            }
        }
        Ok(all)
    }

    fn merge(&self, all: Vec<Detection>) -> Result<Vec<Detection>> {
        let boxes: Vec<PixelBox> = all.iter().map(|found| found.bounds).collect();
        let scores: Vec<f64> = all.iter().map(|found| found.score).collect();
        let mut names: Vec<String> = Vec::new();
        let mut labels = Vec::new();
        for found in &all {
            let name = crate::prompt::normal_name(&found.name);
            let known = names.iter().position(|known| *known == name);
            labels.push(known.unwrap_or(names.len()));
            if known.is_none() {
                names.push(name);
            }
        }
        let labels = self.config.per_label.then_some(labels.as_slice());
        let kept = nms(&boxes, &scores, labels, self.config.nms)?;
        let mut all: Vec<Option<Detection>> = all.into_iter().map(Some).collect();
        Ok(kept.into_iter().filter_map(|index| all.get_mut(index)?.take()).collect())
    }
}
