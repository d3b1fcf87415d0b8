//! A byte model of two layers on the first chapters of Moby-Dick, with lightning attention, the same without
//! decay, or causal Flow-Attention.

use attn_burn::attn_lightning::{Config, Slopes};
use attn_burn::nn::{
    FlowAttention, FlowAttentionConfig, GatedLinearAttentionConfig, GatedLinearUnit,
    GatedLinearUnitConfig, TransNormerLayer, TransNormerLayerConfig, simple_rms_norm,
};
use burn::module::{Initializer, Module};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{Embedding, EmbeddingConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::plain;
use crate::train::{Failure, Random, Task, number};

/// Chapters 1 to 13, in the public domain.
const TEXT: &[u8] = include_bytes!("../data/moby-dick.txt");
const CONTEXT: usize = 128;
const BATCH: usize = 8;
const WIDTH: usize = 64;
const HEADS: usize = 4;
const LAYERS: usize = 2;
const HIDDEN: usize = 128;
const EPSILON: f64 = 1e-6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Lightning,
    /// All slopes 0.
    NoDecay,
    Flow,
}

#[derive(Module, Debug)]
struct FlowLayer {
    attention: FlowAttention,
    unit: GatedLinearUnit,
}

#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
enum Layer {
    Lightning(TransNormerLayer),
    Flow(FlowLayer),
}

/// Embeddings, layers, and the embeddings again for the logits of the next byte.
#[derive(Module, Debug)]
pub struct Model {
    bytes: Embedding,
    layers: Vec<Layer>,
    /// Of each layer, for the plain form.
    #[module(skip)]
    slopes: Vec<Vec<f64>>,
}

impl Model {
    pub fn new(kind: Kind, device: &Device) -> Result<Model, Failure> {
        // Logits of unit variance at first.
        let initializer = Initializer::Normal { mean: 0.0, std: 1.0 / (WIDTH as f64).sqrt() };
        let bytes = EmbeddingConfig::new(256, WIDTH).with_initializer(initializer).init(device);
        let (mut layers, mut slopes) = (Vec::new(), Vec::new());
        for layer in 0..LAYERS {
            let mut config = Config::new(HEADS).with_layer(layer, LAYERS);
            if kind == Kind::NoDecay {
                config = config.with_slopes(Slopes::Given(vec![0.0; HEADS]));
            }
            slopes.push(config.head_slopes()?);
            layers.push(match kind {
                Kind::Flow => Layer::Flow(FlowLayer {
                    attention: FlowAttentionConfig::new(WIDTH, HEADS)
                        .with_bias(false)
                        .init(device)?,
                    unit: GatedLinearUnitConfig::new(WIDTH, HIDDEN).init(device),
                }),
                _ => {
                    let attention = GatedLinearAttentionConfig::new(WIDTH, HEADS);
                    let attention = attention.with_lrpe(layer == 0);
                    let layer = TransNormerLayerConfig::new(attention, HIDDEN);
                    Layer::Lightning(layer.init_with(config, device)?)
                }
            });
        }
        Ok(Model { bytes, layers, slopes })
    }

    /// Logits `[batch * tokens, 256]`, by kernels or by their definition.
    fn forward(&self, bytes: Tensor<2, Int>, by_definition: bool) -> Result<Tensor<2>, Failure> {
        let [batch, tokens] = bytes.dims();
        let mut x = self.bytes.forward(bytes) * (WIDTH as f64).sqrt();
        let norm = |x: &Tensor<3>| simple_rms_norm(x.clone(), EPSILON);
        for (layer, slopes) in self.layers.iter().zip(&self.slopes) {
            let (mixed, unit) = match layer {
                Layer::Lightning(layer) if by_definition => {
                    (plain::gated(&layer.attention, norm(&x), slopes), &layer.unit)
                }
                Layer::Lightning(layer) => (layer.attention.forward(norm(&x))?, &layer.unit),
                Layer::Flow(layer) if by_definition => {
                    (plain::flowing(&layer.attention, norm(&x), HEADS), &layer.unit)
                }
                Layer::Flow(layer) => (layer.attention.forward(norm(&x))?, &layer.unit),
            };
            x = x + mixed;
            x = x.clone() + unit.forward(norm(&x));
        }
        let x = norm(&x).reshape([batch * tokens, WIDTH]);
        Ok(x.matmul(self.bytes.weight.val().transpose()))
    }

    fn loss_of(&self, pieces: &[&[u8]], by_definition: bool) -> Result<Tensor<1>, Failure> {
        let device = self.bytes.weight.device();
        let part = |from: usize| {
            let bytes = pieces.iter().flat_map(|piece| &piece[from..from + CONTEXT]);
            let numbers: Vec<i32> = bytes.map(|&byte| i32::from(byte)).collect();
            let data = TensorData::new(numbers, [pieces.len(), CONTEXT]);
            Tensor::<2, Int>::from_data(data, &device)
        };
        let logits = self.forward(part(0), by_definition)?;
        let next = part(1).reshape([pieces.len() * CONTEXT]);
        Ok(CrossEntropyLossConfig::new().init(&device).forward(logits, next))
    }

    /// Nats a byte on the last tenth of the text.
    pub fn held_back(&self) -> Result<f64, Failure> {
        let text = &TEXT[learned()..];
        let pieces: Vec<_> = text.windows(CONTEXT + 1).step_by(CONTEXT).collect();
        let mut sum = 0.0;
        for batch in pieces.chunks(BATCH) {
            sum += number(self.loss_of(batch, false)?)? * batch.len() as f64;
        }
        Ok(sum / pieces.len() as f64)
    }
}

/// Bytes to learn from.
fn learned() -> usize {
    TEXT.len() / 10 * 9
}

impl Task for Model {
    fn loss(&self, random: &mut Random, by_definition: bool) -> Result<Tensor<1>, Failure> {
        let mut piece = || {
            let at = random.below(learned() - CONTEXT);
            &TEXT[at..=at + CONTEXT]
        };
        let pieces: Vec<_> = (0..BATCH).map(|_| piece()).collect();
        self.loss_of(&pieces, by_definition)
    }
}
