//! What makes a probability of features.

use burn::module::{Initializer, Module, Param};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, PRelu, PReluConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor};

/// What is added to probabilities before their logarithm is taken.
const LEAST: f64 = 1e-8;
/// Slope of negative numbers, before anything is learned.
const SLOPE: f64 = 0.1;

/// Features normalised over the batch, then linear maps with a PReLU of one slope behind each but the last.
#[derive(Module, Debug)]
pub struct DareHead {
    /// Of features.
    pub norm: BatchNorm,
    /// The last is to two logits, of which the first is that of a click.
    pub layers: Vec<Linear>,
    /// One behind each layer but the last.
    pub slopes: Vec<PRelu>,
}

impl DareHead {
    /// Of `width` features and hidden layers of these widths. Weights of a map are normally distributed
    /// with variance `1 / in`.
    pub(super) fn new(width: usize, hidden: &[usize], device: &Device) -> Self {
        let ends = hidden.iter().copied().chain([2]);
        let starts = [width].into_iter().chain(hidden.iter().copied());
        let map = |(from, to): (usize, usize)| {
            let std = (from.max(1) as f64).recip().sqrt();
            let initializer = Initializer::Normal { mean: 0.0, std };
            let mut map = LinearConfig::new(from, to).with_initializer(initializer).init(device);
            map.bias = Some(Initializer::Zeros.init([to], device));
            map
        };
        DareHead {
            norm: BatchNormConfig::new(width).init(device),
            layers: starts.zip(ends).map(map).collect(),
            slopes: hidden
                .iter()
                .map(|_| PReluConfig::new().with_alpha(SLOPE).init(device))
                .collect(),
        }
    }

    /// Probabilities `[batch, 2]` of features `[batch, width]`, that of a click first, each with 1e-8 added.
    pub fn forward(&self, features: Tensor<2>) -> Tensor<2> {
        let mut x = self.norm.forward(features);
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x);
            if let Some(slope) = self.slopes.get(i) {
                x = slope.forward(x);
            }
        }
        softmax(x, 1) + LEAST
    }

    /// Sum of squares of everything but biases.
    pub fn squares(&self) -> Tensor<1> {
        let square = |x: Tensor<1>| x.square().sum();
        let flat = |x: &Param<Tensor<2>>| square(x.val().flatten(0, 1));
        let maps = self.layers.iter().map(|layer| flat(&layer.weight));
        let slopes = self.slopes.iter().map(|slope| square(slope.alpha.val()));
        maps.chain(slopes).fold(square(self.norm.gamma.val()), |sum, x| sum + x)
    }
}
