//! The model: two layers of attention and a perceptron.

use attn_burn::nn::{Attention, AttentionConfig, RoutingAttention, RoutingAttentionConfig};
use burn::module::Module;
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig};
use burn::nn::{
    Embedding, EmbeddingConfig, Gelu, LayerNorm, LayerNormConfig, Linear, LinearConfig,
};
use burn::tensor::{Bool, Device, Int, Tensor};

use crate::Failure;
use crate::data::CONTEXT;

const WIDTH: usize = 64;
const HEADS: usize = 4;
const LAYERS: usize = 2;
/// Centroids of a head, of `CONTEXT / CLUSTERS` bytes each.
const CLUSTERS: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Dense,
    Routing,
    Burn,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Dense, Kind::Routing, Kind::Burn];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Dense => "dense",
            Kind::Routing => "routing",
            Kind::Burn => "burn",
        }
    }
}

#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)]
enum Mixer {
    Dense(Attention),
    Routing(RoutingAttention),
    Burn(MultiHeadAttention),
}

#[derive(Module, Debug)]
struct Layer {
    norm: LayerNorm,
    mixer: Mixer,
    norm_mlp: LayerNorm,
    up: Linear,
    down: Linear,
}

/// Embeddings, layers, and the logits of the next byte.
#[derive(Module, Debug)]
pub struct Model {
    bytes: Embedding,
    places: Embedding,
    layers: Vec<Layer>,
    norm: LayerNorm,
    last: Linear,
}

impl Model {
    pub fn new(kind: Kind, device: &Device) -> Result<Model, Failure> {
        let norm = || LayerNormConfig::new(WIDTH).init(device);
        let layer = |_| -> Result<Layer, Failure> {
            let mixer = match kind {
                Kind::Dense => Mixer::Dense(AttentionConfig::new(WIDTH, HEADS).init(device)?),
                Kind::Routing => {
                    let config =
                        RoutingAttentionConfig::new(WIDTH, HEADS, CLUSTERS, CONTEXT / CLUSTERS);
                    Mixer::Routing(config.with_scale(0.25).with_decay(0.99).init(device)?)
                }
                Kind::Burn => {
                    let config = MultiHeadAttentionConfig::new(WIDTH, HEADS).with_dropout(0.0);
                    Mixer::Burn(config.init(device))
                }
            };
            Ok(Layer {
                norm: norm(),
                mixer,
                norm_mlp: norm(),
                up: LinearConfig::new(WIDTH, 4 * WIDTH).init(device),
                down: LinearConfig::new(4 * WIDTH, WIDTH).init(device),
            })
        };
        Ok(Model {
            bytes: EmbeddingConfig::new(256, WIDTH).init(device),
            places: EmbeddingConfig::new(CONTEXT, WIDTH).init(device),
            layers: (0..LAYERS).map(layer).collect::<Result<_, _>>()?,
            norm: norm(),
            last: LinearConfig::new(WIDTH, 256).init(device),
        })
    }

    /// Logits `[batch, CONTEXT, 256]`, and the commitment losses of all layers.
    pub fn forward(
        &self,
        bytes: Tensor<2, Int>,
    ) -> Result<(Tensor<3>, Option<Tensor<1>>), Failure> {
        let device = bytes.device();
        let places = Tensor::arange(0..CONTEXT as i64, &device).unsqueeze::<2>();
        let mut x = self.bytes.forward(bytes) + self.places.forward(places);
        let mut commitment: Option<Tensor<1>> = None;
        for layer in &self.layers {
            let (mixed, loss) = layer.mixer.forward(layer.norm.forward(x.clone()))?;
            commitment = match (commitment, loss) {
                (Some(sum), Some(loss)) => Some(sum + loss),
                (sum, loss) => sum.or(loss),
            };
            x = x + mixed;
            let hidden = layer.up.forward(layer.norm_mlp.forward(x.clone()));
            x = x + layer.down.forward(Gelu::new().forward(hidden));
        }
        Ok((self.last.forward(self.norm.forward(x)), commitment))
    }
}

impl Mixer {
    fn forward(&self, x: Tensor<3>) -> Result<(Tensor<3>, Option<Tensor<1>>), Failure> {
        Ok(match self {
            Mixer::Dense(attention) => (attention.forward(x)?, None),
            Mixer::Routing(attention) => {
                let routed = attention.forward(x, None)?;
                (routed.out, routed.commitment)
            }
            Mixer::Burn(attention) => {
                let [batch, tokens, _] = x.dims();
                let later = Tensor::<2, Bool>::tril_mask([tokens, tokens], 0, &x.device());
                let later = later.unsqueeze::<3>().expand([batch, tokens, tokens]);
                (attention.forward(MhaInput::self_attn(x).mask_attn(later)).context, None)
            }
        })
    }
}
