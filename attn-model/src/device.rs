//! A model's weights on a device.

use std::ops::Range;

use attn_core::Mask;
use attn_core::dense::Config;
use attn_wgpu::attention::Attention;
use attn_wgpu::rope::{Layout, Rope, RopeTable};
use attn_wgpu::{DType, Gpu, Tensor};

use crate::weights::Values;
use crate::{
    EMBEDDING, Error, FINAL_NORM, HEAD, LayerConfig, ModelConfig, Result, RopeConfig, Weights,
};

/// Weights of one layer.
#[derive(Debug)]
pub(crate) struct LayerWeights {
    pub(crate) attention_norm: Tensor,
    /// Queries, then keys, then values, `[(heads + 2 heads_kv) head_dim, hidden]`.
    pub(crate) qkv: Linear,
    /// Of each head of queries and of keys, `[head_dim]`.
    pub(crate) qk_norms: Option<[Tensor; 2]>,
    pub(crate) output: Linear,
    pub(crate) post_attention_norm: Option<Tensor>,
    pub(crate) mlp_norm: Tensor,
    /// Gate, then up, `[2 mlp, hidden]`.
    pub(crate) gate_up: Linear,
    pub(crate) down: Linear,
    pub(crate) post_mlp_norm: Option<Tensor>,
    /// Number of the layer's kind.
    pub(crate) kind: usize,
}

/// A linear map, `y = x W^T + b`.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `[inputs, outputs]`, stored the other way round.
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
}

/// What layers of one kind share.
#[derive(Debug)]
pub(crate) struct LayerKind {
    config: LayerConfig,
    pub(crate) rope: RopeTable,
    pub(crate) attention: Attention,
}

/// Everything on the device.
#[derive(Debug)]
pub(crate) struct Device {
    /// `[vocabulary, hidden]`.
    pub(crate) embedding: Tensor,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) kinds: Vec<LayerKind>,
    pub(crate) norm: Tensor,
    /// `[hidden, vocabulary]`, stored the other way round.
    pub(crate) head: Tensor,
}

/// Reads tensors and puts them on the device, one after the other.
pub(crate) struct Loader<'a> {
    pub(crate) gpu: &'a Gpu,
    pub(crate) config: &'a ModelConfig,
    pub(crate) weights: &'a Weights,
    /// Type of matrices.
    pub(crate) dtype: DType,
    /// Told the bytes on the device, of all bytes.
    pub(crate) progress: &'a mut dyn FnMut(u64, u64),
    pub(crate) done: u64,
    pub(crate) total: u64,
}

/// Positions are below this: a table of all of them takes half a gigabyte at 128 elements a head.
const MAX_POSITIONS: usize = 1 << 20;
/// Elements of a large matrix that are read and uploaded at a time.
const PIECE: usize = 16 << 20;

impl Loader<'_> {
    pub(crate) fn load(&mut self) -> Result<Device> {
        let config = self.config;
        let kinds = self.kinds()?;
        let (vocabulary, hidden) = (config.vocabulary, config.hidden);
        let embedding = self.matrix(&[(EMBEDDING, vocabulary)], hidden)?;
        let layers = (0..config.layers.len())
            .map(|layer| self.layer(layer, &kinds))
            .collect::<Result<_>>()?;
        let norm = self.vector(FINAL_NORM, hidden)?;
        let head = match config.tied {
            true => embedding.clone(),
            false => self.matrix(&[(HEAD, vocabulary)], hidden)?,
        };
        Ok(Device { embedding, layers, kinds, norm, head: transposed(&head)? })
    }

    /// One of each set of rules, in the order of their first layers.
    fn kinds(&self) -> Result<Vec<LayerKind>> {
        let mut kinds: Vec<LayerKind> = Vec::new();
        for layer in &self.config.layers {
            if kinds.iter().any(|kind| kind.config == *layer) {
                continue;
            }
            let mask = match layer.window {
                Some(window) => Mask::Window { left: window - 1, right: 0 },
                None => Mask::Causal,
            };
            let mut config = Config::new().with_mask(mask).with_scale(self.config.scale);
            if let Some(cap) = self.config.attention_soft_cap {
                config = config.with_soft_cap(cap);
            }
            kinds.push(LayerKind {
                config: layer.clone(),
                rope: self.rope(&layer.rope)?,
                attention: Attention::new(self.gpu, config)?,
            });
        }
        Ok(kinds)
    }

    fn rope(&self, rope: &RopeConfig) -> Result<RopeTable> {
        let rope = Rope {
            frequencies: rope.frequencies(self.config.head_dim),
            attention_factor: rope.attention_factor(),
            layout: Layout::Half,
        };
        Ok(RopeTable::new(self.gpu, rope, MAX_POSITIONS)?)
    }

    fn layer(&mut self, number: usize, kinds: &[LayerKind]) -> Result<LayerWeights> {
        let config = self.config;
        let ModelConfig { hidden, mlp, biases, heads, heads_kv, head_dim, .. } = *config;
        let (all, all_kv) = (heads * head_dim, heads_kv * head_dim);
        let name = |rest: &str| format!("model.layers.{number}.{rest}");
        let attention = |rest: &str| name(&format!("self_attn.{rest}"));
        let own = &config.layers[number];
        let post = if config.post_norms { "pre_feedforward" } else { "post_attention" };
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(attention);
        let (gate, up) = (name("mlp.gate_proj"), name("mlp.up_proj"));
        Ok(LayerWeights {
            attention_norm: self.vector(&name("input_layernorm.weight"), hidden)?,
            qkv: self.linear(&[(&q, all), (&k, all_kv), (&v, all_kv)], hidden, biases.qkv)?,
            qk_norms: match config.qk_norm {
                true => Some([
                    self.vector(&attention("q_norm.weight"), head_dim)?,
                    self.vector(&attention("k_norm.weight"), head_dim)?,
                ]),
                false => None,
            },
            output: self.linear(&[(&attention("o_proj"), hidden)], all, biases.output)?,
            post_attention_norm: match config.post_norms {
                true => Some(self.vector(&name("post_attention_layernorm.weight"), hidden)?),
                false => None,
            },
            mlp_norm: self.vector(&name(&format!("{post}_layernorm.weight")), hidden)?,
            gate_up: self.linear(&[(&gate, mlp), (&up, mlp)], hidden, biases.mlp)?,
            down: self.linear(&[(&name("mlp.down_proj"), hidden)], mlp, biases.mlp)?,
            post_mlp_norm: match config.post_norms {
                true => Some(self.vector(&name("post_feedforward_layernorm.weight"), hidden)?),
                false => None,
            },
            kind: kinds.iter().position(|kind| kind.config == *own).unwrap_or(0),
        })
    }

    /// Several maps of the same inputs as one, by name and number of outputs.
    fn linear(&mut self, parts: &[(&str, usize)], inputs: usize, bias: bool) -> Result<Linear> {
        let named: Vec<_> =
            parts.iter().map(|(name, rows)| (format!("{name}.weight"), *rows)).collect();
        let named: Vec<_> = named.iter().map(|(name, rows)| (name.as_str(), *rows)).collect();
        let weight = transposed(&self.matrix(&named, inputs)?)?;
        if !bias {
            return Ok(Linear { weight, bias: None });
        }
        let mut all = Vec::new();
        for (name, rows) in parts {
            all.extend(self.numbers(&format!("{name}.bias"), *rows)?);
        }
        let bias = Tensor::from_slice(self.gpu, &all, &[all.len()])?;
        Ok(Linear { weight, bias: Some(bias) })
    }

    /// Matrices of the same width, one below the other.
    fn matrix(&mut self, parts: &[(&str, usize)], width: usize) -> Result<Tensor> {
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        let whole = Tensor::uninit(self.gpu, &[rows, width], self.dtype)?;
        let at_once = (PIECE / width.max(1)).max(1);
        let mut start = 0;
        for &(name, count) in parts {
            for first in (0..count).step_by(at_once) {
                let piece = first..(first + at_once).min(count);
                self.piece(name, &[count, width], piece, &whole, start + first)?;
            }
            start += count;
        }
        Ok(whole)
    }

    /// Rows of a tensor to their place in `whole`.
    fn piece(
        &mut self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
        whole: &Tensor,
        place: usize,
    ) -> Result<()> {
        let data = self.weights.rows(name, shape, rows, self.dtype)?;
        let (gpu, shape) = (self.gpu, data.shape.as_slice());
        let piece = match &data.values {
            Values::F32(values) => Tensor::from_slice(gpu, values, shape)?,
            Values::F16(values) => Tensor::from_slice(gpu, values, shape)?,
            Values::BF16(values) => Tensor::from_slice(gpu, values, shape)?,
        };
        attn_wgpu::ops::copy(&piece, &whole.narrow(0, place, shape[0])?)?;
        // The piece goes back to the pool with this submission, and the next one may take its place.
        gpu.flush()?;
        self.count(piece.len() * self.dtype.bytes());
        Ok(())
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Tensor> {
        let values = self.numbers(name, len)?;
        Ok(Tensor::from_slice(self.gpu, &values, &[len])?)
    }

    /// Norms and biases: few numbers, always in f32.
    fn numbers(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let data = self.weights.tensor(name, &[len], DType::F32)?;
        self.count(len * 4);
        match data.values {
            Values::F32(values) => Ok(values),
            _ => Err(Error::format(self.weights.name(), name, "f32", "another type")),
        }
    }

    fn count(&mut self, bytes: usize) {
        self.done += bytes as u64;
        (self.progress)(self.done, self.total);
    }
}

/// `[inputs, outputs]` of a weight that is stored `[outputs, inputs]`.
fn transposed(weight: &Tensor) -> Result<Tensor> {
    Ok(weight.permute(&[1, 0])?)
}
