//! A model's weights on a device.

use std::ops::Range;

use attn_core::Mask;
use attn_core::dense::Config;
use attn_wgpu::attention::Attention;
use attn_wgpu::packed::{BlockType, Packed};
use attn_wgpu::rope::{Layout, Rope, RopeTable};
use attn_wgpu::{DType, Gpu, Tensor, ops};

use crate::form::{Form, Run, Stack, StackPart};
use crate::linear::{Linear, Matrix, Part};
use crate::weights::Values;
use crate::{Error, FINAL_NORM, LayerConfig, ModelConfig, Options, Result, RopeConfig, Weights};

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
    pub(crate) embedding: Matrix,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) kinds: Vec<LayerKind>,
    pub(crate) norm: Tensor,
    /// `[vocabulary, hidden]`, where it is not the embedding.
    own_head: Option<Matrix>,
}

impl Device {
    /// The output head, `[vocabulary, hidden]`.
    pub(crate) fn head(&self) -> &Matrix {
        self.own_head.as_ref().unwrap_or(&self.embedding)
    }
}

/// Reads tensors and puts them on the device, one after the other.
pub(crate) struct Loader<'a> {
    pub(crate) gpu: &'a Gpu,
    pub(crate) config: &'a ModelConfig,
    pub(crate) weights: &'a Weights,
    pub(crate) options: Options,
    /// Told the bytes on the device, of all bytes.
    pub(crate) progress: &'a mut dyn FnMut(u64, u64),
    pub(crate) done: u64,
    pub(crate) total: u64,
}

/// Positions are below this: a table of all of them takes half a gigabyte at 128 elements a head.
const MAX_POSITIONS: usize = 1 << 20;
/// Bytes of a large matrix that are read and uploaded at a time.
const PIECE: usize = 8 << 20;

impl Loader<'_> {
    pub(crate) fn load(&mut self) -> Result<Device> {
        let config = self.config;
        let kinds = self.kinds()?;
        let embedding = self.matrix(&Stack::embedding(config))?;
        let layers = (0..config.layers.len())
            .map(|layer| self.layer(layer, &kinds))
            .collect::<Result<_>>()?;
        let norm = self.vector(FINAL_NORM, config.hidden)?;
        let head = Stack::head(config);
        let own_head = head.map(|stack| self.matrix(&stack)).transpose()?;
        // What passed through other buffers on its way is not to stay with the last batch of commands.
        self.gpu.flush()?;
        Ok(Device { embedding, layers, kinds, norm, own_head })
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
        let ModelConfig { hidden, head_dim, .. } = *config;
        let name = |rest: &str| format!("model.layers.{number}.{rest}.weight");
        let own = &config.layers[number];
        let mlp_norm = if config.post_norms { "pre_feedforward" } else { "post_attention" };
        let [qkv, output, gate_up, down] = Stack::of_layer(config, number);
        Ok(LayerWeights {
            attention_norm: self.vector(&name("input_layernorm"), hidden)?,
            qkv: self.linear(&qkv)?,
            qk_norms: match config.qk_norm {
                true => Some([
                    self.vector(&name("self_attn.q_norm"), head_dim)?,
                    self.vector(&name("self_attn.k_norm"), head_dim)?,
                ]),
                false => None,
            },
            output: self.linear(&output)?,
            post_attention_norm: match config.post_norms {
                true => Some(self.vector(&name("post_attention_layernorm"), hidden)?),
                false => None,
            },
            mlp_norm: self.vector(&name(&format!("{mlp_norm}_layernorm")), hidden)?,
            gate_up: self.linear(&gate_up)?,
            down: self.linear(&down)?,
            post_mlp_norm: match config.post_norms {
                true => Some(self.vector(&name("post_feedforward_layernorm"), hidden)?),
                false => None,
            },
            kind: kinds.iter().position(|kind| kind.config == *own).unwrap_or(0),
        })
    }

    /// Several maps of the same inputs as one.
    fn linear(&mut self, stack: &Stack) -> Result<Linear> {
        let weight = self.matrix(stack)?;
        let mut all = Vec::new();
        for part in &stack.parts {
            if let Some(bias) = &part.bias {
                all.extend(self.numbers(bias, part.rows)?);
            }
        }
        let bias = if all.is_empty() { None } else { Some(self.upload(&all)?) };
        Ok(Linear { weight, bias })
    }

    /// Matrices of the same width, one below the other.
    fn matrix(&mut self, stack: &Stack) -> Result<Matrix> {
        let runs = stack.runs(self.weights, self.options);
        let parts = runs.iter().map(|run| self.run(run, stack.width));
        Ok(Matrix(parts.collect::<Result<_>>()?))
    }

    /// Matrices of one form, in one buffer.
    fn run(&mut self, run: &Run<'_>, width: usize) -> Result<Part> {
        let end = self.done + run.bytes(width);
        let part = match run.form {
            Form::Packed(kind) => Part::Packed(self.packed(kind, run, width)?),
            Form::Dense(dtype) => Part::Dense(self.dense(dtype, run, width)?),
            Form::Vector => {
                let (expected, got) = ("a matrix", "a vector");
                return Err(Error::format(self.weights.name(), "weights", expected, got));
            }
        };
        // Buffers may be a little longer than what was copied into them.
        self.count(end.saturating_sub(self.done));
        Ok(part)
    }

    fn dense(&mut self, dtype: DType, run: &Run<'_>, width: usize) -> Result<Tensor> {
        let whole = Tensor::resident(self.gpu, &[run.rows(), width], dtype)?;
        let bytes = width * dtype.bytes();
        self.pieces(run.parts, width, bytes, |loader, name, shape, rows, place| {
            let data = loader.weights.rows(name, shape, rows, dtype)?;
            let (gpu, shape) = (loader.gpu, data.shape.as_slice());
            let piece = match &data.values {
                Values::F32(values) => Tensor::from_slice(gpu, values, shape)?,
                Values::F16(values) => Tensor::from_slice(gpu, values, shape)?,
                Values::BF16(values) => Tensor::from_slice(gpu, values, shape)?,
            };
            Ok(ops::copy(&piece, &whole.narrow(0, place, shape[0])?)?)
        })?;
        Ok(whole)
    }

    fn packed(&mut self, kind: BlockType, run: &Run<'_>, width: usize) -> Result<Packed> {
        let whole = Packed::uninit(self.gpu, kind, run.rows(), width)?;
        let (values, bytes) = kind.block();
        self.pieces(
            run.parts,
            width,
            width / values * bytes,
            |loader, name, shape, rows, place| {
                let blocks = loader.weights.packed_rows(name, shape, rows)?;
                Ok(whole.write_rows(place, &blocks)?)
            },
        )?;
        Ok(whole)
    }

    /// Copies rows of some matrices, a few MB of them at a time: by name, shape, numbers of rows, and the
    /// row of the whole that the first of them becomes.
    fn pieces(
        &mut self,
        parts: &[StackPart],
        width: usize,
        row_bytes: usize,
        mut copy: impl FnMut(&Self, &str, &[usize], Range<usize>, usize) -> Result<()>,
    ) -> Result<()> {
        // Packed rows lie in groups of four.
        let at_once = (PIECE / row_bytes.max(1)).next_multiple_of(4).max(4);
        let mut start = 0;
        for StackPart { weight, rows: count, .. } in parts {
            for first in (0..*count).step_by(at_once) {
                let rows = first..(first + at_once).min(*count);
                let copied = rows.len() * row_bytes;
                copy(self, weight, &[*count, width], rows, start + first)?;
                // The piece goes back to the pool with this submission, and the next one may take its place.
                self.gpu.flush()?;
                self.count(copied as u64);
            }
            start += count;
        }
        Ok(())
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Tensor> {
        let values = self.numbers(name, len)?;
        self.upload(&values)
    }

    fn upload(&mut self, values: &[f32]) -> Result<Tensor> {
        let vector = Tensor::resident(self.gpu, &[values.len()], DType::F32)?;
        ops::copy(&Tensor::from_slice(self.gpu, values, vector.shape())?, &vector)?;
        self.count(Tensor::resident_bytes(values.len(), DType::F32));
        Ok(vector)
    }

    /// Norms and biases: few numbers, always in f32.
    fn numbers(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        match self.weights.tensor(name, &[len], DType::F32)?.values {
            Values::F32(values) => Ok(values),
            _ => Err(Error::format(self.weights.name(), name, "f32", "another type")),
        }
    }

    fn count(&mut self, bytes: u64) {
        self.done += bytes;
        (self.progress)(self.done, self.total);
    }
}
