//! What a model is made of, from `config.json` or from GGUF metadata.

mod check;
mod fields;
mod gguf;
mod huggingface;
mod rope;
mod tensors;
mod write;

use attn_wgpu::DType;

pub use tensors::{EMBEDDING, FINAL_NORM, HEAD};

use crate::RopeConfig;

/// The families of models, which differ in the rules of their layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// Llama 2 and 3, SmolLM, and others of `model_type` "llama".
    Llama,
    /// Qwen 2 and 2.5: biases on queries, keys and values.
    Qwen2,
    /// Qwen 3: norms of each head of queries and keys.
    Qwen3,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Gemma 2: four norms a layer, soft-caps, alternating windows.
    Gemma2,
    /// Gemma 3, its text half: as Gemma 2, with norms of heads in place of soft-caps.
    Gemma3,
}

impl Family {
    /// Gemma 2 and 3 share most rules.
    pub fn is_gemma(self) -> bool {
        matches!(self, Family::Gemma2 | Family::Gemma3)
    }

    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Mistral => "mistral",
            Family::Gemma2 => "gemma2",
            Family::Gemma3 => "gemma3_text",
        }
    }
}

/// Function between the two halves of the gated MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// GELU in its approximation by tanh.
    GeluTanh,
}

/// Which linear maps add a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// Output of attention.
    pub output: bool,
    /// Gate, up and down.
    pub mlp: bool,
}

/// What one layer does differently from others of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerConfig {
    /// Keys that a query sees, itself included: key `j` iff `0 <= i - j < window`. None: all
    /// earlier ones.
    pub window: Option<usize>,
    /// Rotation of queries and keys.
    pub rope: RopeConfig,
}

/// Everything that the arithmetic of a model depends on besides its weights.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ModelConfig {
    /// The family.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden: usize,
    /// The layers, first to last.
    pub layers: Vec<LayerConfig>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub heads_kv: usize,
    /// Dim of a head; even.
    pub head_dim: usize,
    /// Width between the halves of the MLP.
    pub mlp: usize,
    /// Number of tokens.
    pub vocabulary: usize,
    /// Longest sequence the model was made for.
    pub context: usize,
    /// Added to the mean square in norms.
    pub eps: f64,
    /// The MLP's activation.
    pub activation: Activation,
    /// Which linear maps have biases.
    pub biases: Biases,
    /// Whether each head of queries and keys is normed before its rotation.
    pub qk_norm: bool,
    /// Whether norms multiply by `1 + w` instead of `w`.
    pub norm_offset: bool,
    /// Whether outputs of attention and of the MLP are normed before they are added.
    pub post_norms: bool,
    /// Factor of `q.k`.
    pub scale: f64,
    /// Soft-cap of attention's logits, `c tanh(s / c)`, before the mask.
    pub attention_soft_cap: Option<f64>,
    /// Soft-cap of the model's logits.
    pub final_soft_cap: Option<f64>,
    /// Factor of the embeddings: 1, but `sqrt(hidden)` for Gemma.
    pub embedding_scale: f64,
    /// Whether the embedding is the output head as well.
    pub tied: bool,
    /// Token in front of every text, where there is one.
    pub bos: Option<u32>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
    /// Token that fills batches, where there is one.
    pub pad: Option<u32>,
    /// Type that the weights were saved in, where the file says so and it is a floating-point type.
    pub dtype: Option<DType>,
}
