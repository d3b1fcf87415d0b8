//! Associative recall: six pairs of a key and a value, then the six keys once more in another order, at which
//! the model names their values. Keys are six of twelve, values any of twelve. Behind a memory beside
//! attention there are fillers between pairs and questions, so that its window covers no pair.

use attn_burn::attn_titans::{Combination, Config, LayerConfig};
use attn_burn::nn::{Titans, TitansConfig};
use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::plain;
use crate::train::{Failure, Random, Task};

const BATCH: usize = 32;
const WIDTH: usize = 32;
const HEADS: usize = 2;
const HIDDEN: usize = 64;
/// Different keys, and as many values.
const WORDS: usize = 12;
const PAIRS: usize = 6;
const FILLERS: usize = 12;
const FILLER: usize = 2 * WORDS;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The memory alone, with a residual.
    Alone,
    /// As gate of attention, with a residual, then a residual network of every token by itself.
    Gate,
}

#[derive(Module, Debug)]
pub struct Model {
    words: Embedding,
    layer: Titans,
    network: Option<[Linear; 2]>,
    values: Linear,
    fillers: usize,
}

impl Model {
    pub fn new(kind: Kind, theta_max: f64, device: &Device) -> Result<Model, Failure> {
        let memory = Config::linear(HEADS, WIDTH / HEADS).with_chunk(1);
        let (combination, persistent, fillers) = match kind {
            Kind::Alone => (Combination::Alone, 0, 0),
            Kind::Gate => (Combination::Gate { window: 4 }, 2, FILLERS),
        };
        let config = LayerConfig::new(memory, combination).with_theta_max(theta_max);
        let extents = TitansConfig::new(WIDTH).with_kernel(2).with_persistent(persistent);
        let map = |from, to| LinearConfig::new(from, to).init(device);
        let model = Model {
            words: EmbeddingConfig::new(FILLER + 1, WIDTH).init(device),
            layer: extents.init(config, device)?,
            network: (kind == Kind::Gate).then(|| [map(WIDTH, HIDDEN), map(HIDDEN, WIDTH)]),
            values: map(WIDTH, WORDS),
            fillers,
        };
        // Burn draws weights when they are first looked at: for kernels and definition in one order.
        model.visit(&mut Look);
        Ok(model)
    }

    /// Logits of values at the questions, `[batch * pairs, words]`, and the right ones.
    fn answers(
        &self,
        random: &mut Random,
        batch: usize,
        by_definition: bool,
    ) -> Result<(Tensor<2>, Tensor<1, Int>), Failure> {
        let device = self.words.weight.device();
        let (mut words, mut right) = (Vec::new(), Vec::new());
        for _ in 0..batch {
            let keys = chosen(random);
            let values: Vec<_> = keys.iter().map(|_| random.below(WORDS)).collect();
            words.extend(keys.iter().zip(&values).flat_map(|(key, value)| [*key, WORDS + value]));
            words.extend(std::iter::repeat_n(FILLER, self.fillers));
            for place in shuffled(random, PAIRS) {
                words.push(keys[place]);
                right.push(values[place] as i32);
            }
        }
        let tokens = 3 * PAIRS + self.fillers;
        let words: Vec<i32> = words.into_iter().map(|word| word as i32).collect();
        let words = Tensor::from_data(TensorData::new(words, [batch, tokens]), &device);
        let x = self.words.forward(words);
        let mixed = match by_definition {
            true => plain::layer(&self.layer, x.clone()),
            false => self.layer.forward(x.clone())?,
        };
        let mut x = (x + mixed).narrow(1, tokens - PAIRS, PAIRS);
        if let Some([up, down]) = &self.network {
            x = x.clone() + down.forward(silu(up.forward(x)));
        }
        let logits = self.values.forward(x).reshape([batch * PAIRS, WORDS]);
        Ok((logits, Tensor::from_data(TensorData::new(right, [batch * PAIRS]), &device)))
    }

    /// Share of right answers in 256 new sequences.
    pub fn accuracy(&self) -> Result<f64, Failure> {
        let (logits, right) = self.answers(&mut Random::new(1000), 256, false)?;
        let named = logits.argmax(1).reshape([-1]);
        let share = named.equal(right).float().mean();
        crate::train::number(share)
    }
}

struct Look;

impl ModuleVisitor for Look {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        param.val();
    }
}

/// Different keys.
fn chosen(random: &mut Random) -> Vec<usize> {
    let mut keys = shuffled(random, WORDS);
    keys.truncate(PAIRS);
    keys
}

fn shuffled(random: &mut Random, count: usize) -> Vec<usize> {
    let mut all: Vec<_> = (0..count).collect();
    for last in (1..count).rev() {
        all.swap(last, random.below(last + 1));
    }
    all
}

impl Task for Model {
    const RATE: f64 = 1e-2;
    const CLIP: Option<f32> = None;

    fn loss(&self, random: &mut Random, by_definition: bool) -> Result<Tensor<1>, Failure> {
        let (logits, right) = self.answers(random, BATCH, by_definition)?;
        Ok(CrossEntropyLossConfig::new().init(&logits.device()).forward(logits, right))
    }
}
