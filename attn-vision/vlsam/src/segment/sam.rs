//! Segment Anything and MobileSAM, by the models of `candle-transformers`.

use std::path::Path;

use ::image::RgbImage;
use ::image::imageops::{self, FilterType};
use attn_core::{Error, Result};
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::segment_anything::image_encoder::ImageEncoderViT;
use candle_transformers::models::segment_anything::mask_decoder::MaskDecoder;
use candle_transformers::models::segment_anything::prompt_encoder::PromptEncoder;
use candle_transformers::models::segment_anything::tiny_vit::{TinyViT, tiny_vit_5m};

use super::{Memory, PixelMask, Prompt, Segment, Segmenter, check_points};
use crate::prompt::Point;

/// Channels of the image's and the prompts' embeddings.
const CHANNELS: usize = 256;
/// Pixels along a side of a patch.
const PATCH: usize = 16;
/// The means and standard deviations of pixels on which the published weights were trained.
const MEAN: [f32; 3] = [123.675, 116.28, 103.53];
const DEVIATION: [f32; 3] = [58.395, 57.12, 57.375];
/// What stands for a mask that did not come from this segmenter.
const SURE: f32 = 8.0;
/// The most prompts that are decoded together.
const BATCH: usize = 16;

/// Which encoder the weights are for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum SamModel {
    /// MobileSAM: TinyViT with 5 million parameters.
    #[default]
    Mobile,
    /// Segment Anything, ViT-B.
    Base,
    /// Segment Anything, ViT-L.
    Large,
    /// Segment Anything, ViT-H.
    Huge,
    /// A ViT of another size.
    Vit {
        /// Pixels along a side of the square that images are fitted into: a multiple of 16.
        side: usize,
        /// Width of the encoder.
        dim: usize,
        /// Blocks.
        depth: usize,
        /// Heads of attention; they divide the width.
        heads: usize,
        /// Blocks that attend to the whole image instead of windows.
        global: Vec<usize>,
    },
}

/// What a [`Sam`] is made of, and how it answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SamConfig {
    /// The encoder.
    pub model: SamModel,
    /// Whether points alone give three masks, for a whole, a part and a smaller part. Points with a mask
    /// always give one.
    pub multimask: bool,
}

impl Default for SamConfig {
    /// MobileSAM with three masks.
    fn default() -> Self {
        SamConfig { model: SamModel::Mobile, multimask: true }
    }
}

impl SamConfig {
    /// The defaults with this encoder.
    pub fn new(model: SamModel) -> Self {
        SamConfig { model, ..SamConfig::default() }
    }

    /// The same with three masks or one for points alone.
    pub fn with_multimask(self, multimask: bool) -> Self {
        SamConfig { multimask, ..self }
    }

    /// Checks the size of the encoder.
    ///
    /// # Errors
    /// [`Error::Config`] for a side that is no multiple of 16 from 16 to 4096, and for a width or heads
    /// that are 0 or do not go together.
    pub fn validate(&self) -> Result<()> {
        let SamModel::Vit { side, dim, heads, .. } = &self.model else {
            return Ok(());
        };
        if !(PATCH..=4096).contains(side) || side % PATCH != 0 {
            return Err(Error::config("side", "a multiple of 16 from 16 to 4096", side));
        }
        if *dim == 0 {
            return Err(Error::config("dim", "at least 1", dim));
        }
        if *heads == 0 || dim % heads != 0 {
            return Err(Error::config("heads", format!("a divisor of the width {dim}"), heads));
        }
        Ok(())
    }

    /// Pixels along a side of the square that images are fitted into.
    fn side(&self) -> usize {
        match self.model {
            SamModel::Vit { side, .. } => side,
            _ => 1024,
        }
    }
}

#[derive(Debug)]
enum Encoder {
    Vit(Box<ImageEncoderViT>),
    Tiny(Box<TinyViT>),
}

/// An image as the decoder reads it.
#[derive(Debug)]
struct Encoded {
    size: (u32, u32),
    /// Pixels of the square a pixel of the image.
    scale: f64,
    embedding: Tensor,
}

/// Segment Anything or MobileSAM. The encoder runs once an image, the small decoder once a prompt.
///
/// The image keeps its aspect: its longer side becomes the side of a square, the rest of which stays
/// empty. Scores are the model's estimates of intersection over union.
#[derive(Debug)]
pub struct Sam {
    config: SamConfig,
    device: Device,
    encoder: Encoder,
    prompts: PromptEncoder,
    decoder: MaskDecoder,
    image: Option<Encoded>,
}

impl Sam {
    /// The model with the weights of a safetensors file, on the CPU. Names are those of the published
    /// checkpoints (`image_encoder.*`, `prompt_encoder.*`, `mask_decoder.*`).
    ///
    /// # Errors
    /// [`Error::Config`] as [`SamConfig::validate`]; [`Error::File`] where the file cannot be read, is
    /// no safetensors file, or lacks a weight or has one of another shape, which the message names.
    pub fn load(path: impl AsRef<Path>, config: SamConfig) -> Result<Sam> {
        let path = path.as_ref();
        config.validate()?;
        let bad = |error: candle_core::Error| Error::file(path, plain(&error));
        let weights = candle_core::safetensors::load(path, &Device::Cpu).map_err(bad)?;
        let weights = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
        Sam::build(weights, config).map_err(bad)
    }

    /// The model with weights from elsewhere, on their device. They have 32 bits.
    ///
    /// # Errors
    /// [`Error::Config`] as [`SamConfig::validate`], [`Error::Data`] where a weight is missing or has
    /// another shape.
    pub fn new(weights: VarBuilder<'_>, config: SamConfig) -> Result<Sam> {
        config.validate()?;
        Sam::build(weights, config)
            .map_err(|e| Error::data("weights", "those of the model", plain(&e)))
    }

    fn build(weights: VarBuilder<'_>, config: SamConfig) -> candle_core::Result<Sam> {
        let side = config.side();
        let vit = |dim: usize, depth: usize, heads: usize, global: &[usize]| {
            let weights = weights.pp("image_encoder");
            let (bias, relative, absolute, window) = (true, true, true, 14);
            ImageEncoderViT::new(
                side, PATCH, 3, dim, depth, heads, CHANNELS, bias, relative, absolute, window,
                global, weights,
            )
            .map(|encoder| Encoder::Vit(Box::new(encoder)))
        };
        let encoder = match &config.model {
            SamModel::Mobile => Encoder::Tiny(Box::new(tiny_vit_5m(weights.pp("image_encoder"))?)),
            SamModel::Base => vit(768, 12, 12, &[2, 5, 8, 11])?,
            SamModel::Large => vit(1024, 24, 16, &[5, 11, 17, 23])?,
            SamModel::Huge => vit(1280, 32, 16, &[7, 15, 23, 31])?,
            SamModel::Vit { dim, depth, heads, global, .. } => vit(*dim, *depth, *heads, global)?,
        };
        let grid = side / PATCH;
        let prompts = weights.pp("prompt_encoder");
        let prompts = PromptEncoder::new(CHANNELS, (grid, grid), (side, side), 16, prompts)?;
        let decoder = MaskDecoder::new(CHANNELS, 3, 3, 256, weights.pp("mask_decoder"))?;
        let device = weights.device().clone();
        Ok(Sam { config, device, encoder, prompts, decoder, image: None })
    }

    /// The embedding of the image: 256 channels for each patch of 16 x 16 pixels of the square.
    pub fn embedding(&self) -> Option<&Tensor> {
        self.image.as_ref().map(|image| &image.embedding)
    }

    fn encode(&self, image: &RgbImage) -> candle_core::Result<Encoded> {
        let side = self.config.side();
        let size = (image.height(), image.width());
        let scale = side as f64 / f64::from(size.0.max(size.1));
        let fit = |pixels: u32| ((f64::from(pixels) * scale).round() as u32).clamp(1, side as u32);
        let (height, width) = (fit(size.0), fit(size.1));
        let fitted = imageops::resize(image, width, height, FilterType::Triangle);
        // Planes of colours; what is not covered by the image is 0 after scaling.
        let mut square = vec![0.0; 3 * side * side];
        for (x, y, pixel) in fitted.enumerate_pixels() {
            let place = y as usize * side + x as usize;
            for (channel, &value) in pixel.0.iter().enumerate() {
                square[channel * side * side + place] =
                    (f32::from(value) - MEAN[channel]) / DEVIATION[channel];
            }
        }
        let square = Tensor::from_vec(square, (1, 3, side, side), &self.device)?;
        let embedding = match &self.encoder {
            Encoder::Vit(encoder) => encoder.forward(&square)?,
            Encoder::Tiny(encoder) => encoder.forward(&square)?,
        };
        Ok(Encoded { size, scale, embedding })
    }

    /// Decodes prompts that have the same number of points, and all or none of which have a mask.
    fn decode(
        &self,
        image: &Encoded,
        prompts: &[&Prompt<'_>],
    ) -> candle_core::Result<Vec<Vec<Segment>>> {
        let coarse = self.config.side() / 4;
        let count = prompts.len();
        let points = prompts.first().map_or(0, |prompt| prompt.points.len());
        let mut places = Vec::new();
        let mut labels = Vec::new();
        for point in prompts.iter().flat_map(|prompt| prompt.points) {
            let point = inside(point, image.size);
            // The model adds half a pixel, as it takes the middle of the first pixel for 0.
            places.extend([point.x, point.y].map(|at| (at * image.scale - 0.5) as f32));
            labels.push(if point.positive { 1.0_f32 } else { 0.0 });
        }
        let places = Tensor::from_vec(places, (count, points, 2), &self.device)?;
        let labels = Tensor::from_vec(labels, (count, points), &self.device)?;
        let masks: Vec<&Segment> = prompts.iter().filter_map(|prompt| prompt.mask).collect();
        let before = match masks.len() {
            0 => None,
            _ => {
                let values: Vec<f32> =
                    masks.iter().flat_map(|mask| logits(mask, coarse, image)).collect();
                Some(Tensor::from_vec(values, (count, 1, coarse, coarse), &self.device)?)
            }
        };
        let (sparse, dense) =
            self.prompts.forward(Some((&places, &labels)), None, before.as_ref())?;
        let positions = self.prompts.get_dense_pe()?;
        let several = self.config.multimask && before.is_none();
        let (masks, scores) =
            self.decoder.forward(&image.embedding, &positions, &sparse, &dense, several)?;
        let masks = masks.flatten_from(2)?.to_vec3::<f32>()?;
        let scores = scores.to_vec2::<f32>()?;
        let segment = |(values, score): (Vec<f32>, f32)| {
            let inside = |y: u32, x: u32| {
                let along = |at: u32| (f64::from(at) + 0.5) * image.scale / 4.0 - 0.5;
                bilinear(&values, coarse, along(y), along(x)) > 0.0
            };
            let mask = PixelMask::from_fn(image.size, inside);
            Segment::new(mask, score.into()).with_memory(Memory::new((coarse, coarse), values))
        };
        let prompt = |(masks, scores): (Vec<Vec<f32>>, Vec<f32>)| {
            masks.into_iter().zip(scores).map(segment).collect()
        };
        Ok(masks.into_iter().zip(scores).map(prompt).collect())
    }
}

impl Segmenter for Sam {
    fn set_image(&mut self, image: &RgbImage) -> Result<()> {
        if image.width() == 0 || image.height() == 0 {
            let got = format!("{} x {}", image.height(), image.width());
            return Err(Error::data("image", "pixels", got));
        }
        self.image = Some(self.encode(image).map_err(|error| failed(&error))?);
        Ok(())
    }

    fn size(&self) -> Option<(u32, u32)> {
        self.image.as_ref().map(|image| image.size)
    }

    fn segment(&mut self, prompt: &Prompt<'_>) -> Result<Vec<Segment>> {
        let mut all = self.segment_all(std::slice::from_ref(prompt))?;
        Ok(all.pop().unwrap_or_default())
    }

    /// Prompts of one kind, with the same number of points and all with or all without a mask, go
    /// through the decoder together, 16 at a time.
    fn segment_all(&mut self, prompts: &[Prompt<'_>]) -> Result<Vec<Vec<Segment>>> {
        let image = self.image.as_ref();
        let image = image.ok_or_else(|| Error::data("segmenter", "an image", "none"))?;
        for prompt in prompts {
            check_points(prompt.points)?;
        }
        let kind = |prompt: &Prompt<'_>| (prompt.points.len(), prompt.mask.is_some());
        let mut order: Vec<usize> = (0..prompts.len()).collect();
        order.sort_by_key(|&index| prompts.get(index).map(kind));
        let mut all = vec![Vec::new(); prompts.len()];
        let same = |&a: &usize, &b: &usize| prompts.get(a).map(kind) == prompts.get(b).map(kind);
        for indices in order.chunk_by(same).flat_map(|group| group.chunks(BATCH)) {
            let batch: Vec<&Prompt<'_>> =
                indices.iter().filter_map(|&index| prompts.get(index)).collect();
            let decoded = self.decode(image, &batch).map_err(|error| failed(&error))?;
            for (&index, segments) in indices.iter().zip(decoded) {
                if let Some(place) = all.get_mut(index) {
                    *place = segments;
                }
            }
        }
        Ok(all)
    }
}

/// The nearest point in the image.
fn inside(point: &Point, size: (u32, u32)) -> Point {
    let (y, x) = (point.y.clamp(0.0, size.0.into()), point.x.clamp(0.0, size.1.into()));
    Point { y, x, ..*point }
}

/// A mask on the coarse lattice, as the model wants it: the logits that it gave, or sure ones.
fn logits(segment: &Segment, coarse: usize, image: &Encoded) -> Vec<f32> {
    if let Some(memory) = &segment.memory
        && memory.size == (coarse, coarse)
        && memory.values.len() == coarse * coarse
    {
        return memory.values.clone();
    }
    let pixel = |at: usize| ((at as f64 + 0.5) * 4.0 / image.scale) as u32;
    let places = (0..coarse).flat_map(|y| (0..coarse).map(move |x| (y, x)));
    let sure = |(y, x)| if segment.mask.at(pixel(y), pixel(x)) { SURE } else { -SURE };
    places.map(sure).collect()
}

/// The value between four places of a square lattice; outside, that of the nearest place.
fn bilinear(values: &[f32], side: usize, y: f64, x: f64) -> f32 {
    let last = side.saturating_sub(1);
    let (y, x) = (y.clamp(0.0, last as f64), x.clamp(0.0, last as f64));
    let (row, column) = (y as usize, x as usize);
    let (down, along) = ((y - row as f64) as f32, (x - column as f64) as f32);
    let at = |row: usize, column: usize| {
        values.get(row.min(last) * side + column.min(last)).copied().unwrap_or(0.0)
    };
    let line = |row: usize| at(row, column) * (1.0 - along) + at(row, column + 1) * along;
    line(row) * (1.0 - down) + line(row + 1) * down
}

fn failed(error: &candle_core::Error) -> Error {
    Error::data("segmenter", "a model that runs", plain(error))
}

/// The message without the stack that candle appends.
fn plain(error: &candle_core::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}
