//! A toy for Aaren: tokens are pairs of a key and a value, and the answer at each token is the value of the
//! largest key so far.

use attn_burn::nn::{Aaren, AarenConfig};
use burn::module::Module;
use burn::nn::{Gelu, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData};

use crate::plain;
use crate::train::{Failure, Random, Task, number};

const BATCH: usize = 32;
const TOKENS: usize = 32;
const WIDTH: usize = 32;
const HEADS: usize = 4;
const LAYERS: usize = 2;
const HIDDEN: usize = 64;

#[derive(Module, Debug)]
struct Layer {
    norm: LayerNorm,
    attention: Aaren,
    norm_mlp: LayerNorm,
    up: Linear,
    down: Linear,
}

#[derive(Module, Debug)]
pub struct Model {
    first: Linear,
    layers: Vec<Layer>,
    norm: LayerNorm,
    last: Linear,
}

impl Model {
    pub fn new(device: &Device) -> Result<Model, Failure> {
        let norm = || LayerNormConfig::new(WIDTH).init(device);
        let layer = |_| -> Result<Layer, Failure> {
            Ok(Layer {
                norm: norm(),
                attention: AarenConfig::new(WIDTH, HEADS).init(device)?,
                norm_mlp: norm(),
                up: LinearConfig::new(WIDTH, HIDDEN).init(device),
                down: LinearConfig::new(HIDDEN, WIDTH).init(device),
            })
        };
        Ok(Model {
            first: LinearConfig::new(2, WIDTH).init(device),
            layers: (0..LAYERS).map(layer).collect::<Result<_, _>>()?,
            norm: norm(),
            last: LinearConfig::new(WIDTH, 1).init(device),
        })
    }

    /// `[batch, tokens, 1]` of `[batch, tokens, 2]`.
    fn forward(&self, x: Tensor<3>, by_definition: bool) -> Result<Tensor<3>, Failure> {
        let mut x = self.first.forward(x);
        for layer in &self.layers {
            let tokens = layer.norm.forward(x.clone());
            let mixed = match by_definition {
                true => plain::recurrent(&layer.attention, tokens, HEADS),
                false => layer.attention.forward(tokens)?,
            };
            x = x + mixed;
            let hidden = layer.up.forward(layer.norm_mlp.forward(x.clone()));
            x = x + layer.down.forward(Gelu::new().forward(hidden));
        }
        Ok(self.last.forward(self.norm.forward(x)))
    }

    /// Mean squared error of `batch` sequences.
    fn error(
        &self,
        random: &mut Random,
        [batch, tokens]: [usize; 2],
        by_definition: bool,
    ) -> Result<Tensor<1>, Failure> {
        let device = self.last.weight.device();
        let (mut pairs, mut answers) = (Vec::new(), Vec::new());
        for _ in 0..batch {
            let mut largest = (f32::NEG_INFINITY, 0.0);
            for _ in 0..tokens {
                let pair = [random.uniform(), random.uniform()].map(|x| 2.0 * x - 1.0);
                if pair[0] > largest.0 {
                    largest = (pair[0], pair[1]);
                }
                pairs.extend(pair);
                answers.push(largest.1);
            }
        }
        let pairs = Tensor::from_data(TensorData::new(pairs, [batch, tokens, 2]), &device);
        let answers = Tensor::<3>::from_data(TensorData::new(answers, [batch, tokens, 1]), &device);
        Ok((self.forward(pairs, by_definition)? - answers).square().mean())
    }

    /// Mean squared error on 256 new sequences of `tokens`.
    pub fn test(&self, tokens: usize) -> Result<f64, Failure> {
        number(self.error(&mut Random::new(1000), [256, tokens], false)?)
    }
}

impl Task for Model {
    fn loss(&self, random: &mut Random, by_definition: bool) -> Result<Tensor<1>, Failure> {
        self.error(random, [BATCH, TOKENS], by_definition)
    }
}
