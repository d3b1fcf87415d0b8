//! In which form the weights lie on a device, and how many bytes that takes.

use attn_wgpu::packed::{BlockType, device_bytes};
use attn_wgpu::{DType, Tensor};

use crate::{EMBEDDING, HEAD, ModelConfig, Options, Source, Weights};

/// The weights that lie on a device in one form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct WeightForm {
    /// Type of the elements or blocks: `f16`, `Q4_1`.
    pub name: &'static str,
    /// Whether these are blocks as the file has them, which kernels unpack as they read.
    pub is_packed: bool,
    /// Number of tensors of the file.
    pub tensors: usize,
    /// Elements of all of them.
    pub elements: u64,
    /// Bytes of their buffers on the device.
    pub bytes: u64,
}

/// Forms of the weights of `source` on a device: blocks, then matrices that are not packed, then vectors.
/// Nothing is loaded for that.
pub fn weight_forms(source: &Source, options: Options) -> Vec<WeightForm> {
    let Source { config, weights, .. } = source;
    let mut forms = Forms(Vec::new());
    for stack in stacks(config) {
        for run in stack.runs(weights, options) {
            let elements = (run.rows() * stack.width) as u64;
            forms.add(run.form, run.parts.len(), elements, run.bytes(stack.width));
        }
        let biases: Vec<_> = stack.parts.iter().filter(|part| part.bias.is_some()).collect();
        if !biases.is_empty() {
            let rows: usize = biases.iter().map(|part| part.rows).sum();
            forms.vector(biases.len(), rows);
        }
    }
    for (name, shape) in config.tensors() {
        if let [len] = *shape
            && !name.ends_with(".bias")
        {
            forms.vector(1, len);
        }
    }
    let mut forms = forms.0;
    // Stable: forms of a kind stay in the order in which the model has them.
    forms.sort_by_key(|(form, _)| match form {
        Form::Packed(_) => 0,
        Form::Dense(_) => 1,
        Form::Vector => 2,
    });
    forms.into_iter().map(|(_, form)| form).collect()
}

/// Bytes of the weights of `source` on a device. Nothing is loaded for that.
pub fn weight_bytes(source: &Source, options: Options) -> u64 {
    weight_forms(source, options).iter().map(|form| form.bytes).sum()
}

/// What a tensor becomes on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Packed(BlockType),
    Dense(DType),
    /// Norms and biases: few numbers, always in f32.
    Vector,
}

struct Forms(Vec<(Form, WeightForm)>);

impl Forms {
    fn add(&mut self, form: Form, tensors: usize, elements: u64, bytes: u64) {
        let found = self.0.iter_mut().find(|(known, _)| *known == form);
        if let Some((_, known)) = found {
            known.tensors += tensors;
            known.elements += elements;
            known.bytes += bytes;
            return;
        }
        let (name, is_packed) = match form {
            Form::Packed(kind) => (kind.name(), true),
            Form::Dense(dtype) => (dtype.name(), false),
            Form::Vector => (DType::F32.name(), false),
        };
        self.0.push((form, WeightForm { name, is_packed, tensors, elements, bytes }));
    }

    fn vector(&mut self, tensors: usize, len: usize) {
        let bytes = Tensor::resident_bytes(len, DType::F32);
        self.add(Form::Vector, tensors, len as u64, bytes);
    }
}

/// One matrix of a stack.
#[derive(Debug)]
pub(crate) struct StackPart {
    pub(crate) weight: String,
    pub(crate) bias: Option<String>,
    pub(crate) rows: usize,
}

/// Matrices of the same width, one below the other: several maps of the same inputs as one.
#[derive(Debug)]
pub(crate) struct Stack {
    pub(crate) parts: Vec<StackPart>,
    pub(crate) width: usize,
}

/// Neighbours in a stack that take the same form, and so lie in one buffer.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) form: Form,
    pub(crate) parts: &'a [StackPart],
}

impl Run<'_> {
    pub(crate) fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows).sum()
    }

    /// On the device.
    pub(crate) fn bytes(&self, width: usize) -> u64 {
        match self.form {
            Form::Packed(kind) => device_bytes(kind, self.rows(), width),
            Form::Dense(dtype) => Tensor::resident_bytes(self.rows() * width, dtype),
            Form::Vector => 0,
        }
    }
}

impl Stack {
    fn one(weight: &str, rows: usize, width: usize) -> Stack {
        let part = StackPart { weight: weight.into(), bias: None, rows };
        Stack { parts: vec![part], width }
    }

    /// Token embeddings, `[vocabulary, hidden]`.
    pub(crate) fn embedding(config: &ModelConfig) -> Stack {
        Stack::one(EMBEDDING, config.vocabulary, config.hidden)
    }

    /// The output head, `[vocabulary, hidden]`, where it is not the embedding.
    pub(crate) fn head(config: &ModelConfig) -> Option<Stack> {
        (!config.tied).then(|| Stack::one(HEAD, config.vocabulary, config.hidden))
    }

    /// Of a layer: queries, keys and values; output; gate and up; down.
    pub(crate) fn of_layer(config: &ModelConfig, layer: usize) -> [Stack; 4] {
        let ModelConfig { hidden, mlp, biases, heads, heads_kv, head_dim, .. } = *config;
        let (all, all_kv) = (heads * head_dim, heads_kv * head_dim);
        let stack = |parts: &[(&str, usize)], width: usize, biased: bool| {
            let part = |&(name, rows): &(&str, usize)| {
                let name = format!("model.layers.{layer}.{name}");
                let bias = biased.then(|| format!("{name}.bias"));
                StackPart { weight: format!("{name}.weight"), bias, rows }
            };
            Stack { parts: parts.iter().map(part).collect(), width }
        };
        let [q, k, v] = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
        [
            stack(&[(q, all), (k, all_kv), (v, all_kv)], hidden, biases.qkv),
            stack(&[("self_attn.o_proj", hidden)], all, biases.output),
            stack(&[("mlp.gate_proj", mlp), ("mlp.up_proj", mlp)], hidden, biases.mlp),
            stack(&[("mlp.down_proj", hidden)], mlp, biases.mlp),
        ]
    }

    pub(crate) fn runs(&self, weights: &Weights, options: Options) -> Vec<Run<'_>> {
        let form = |part: &StackPart| {
            let blocks = weights.block_type(&part.weight).filter(|_| options.packed);
            blocks.map_or(Form::Dense(options.weights), Form::Packed)
        };
        let runs = self.parts.chunk_by(|a, b| form(a) == form(b));
        runs.filter_map(|parts| Some(Run { form: form(parts.first()?), parts })).collect()
    }
}

/// All of a model, in the order in which they are loaded.
fn stacks(config: &ModelConfig) -> Vec<Stack> {
    let mut all = vec![Stack::embedding(config)];
    all.extend((0..config.layers.len()).flat_map(|layer| Stack::of_layer(config, layer)));
    all.extend(Stack::head(config));
    all
}
