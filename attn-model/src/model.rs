//! A model on a device, ready to run.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use attn_wgpu::matmul::Epilogue;
use attn_wgpu::norm::{RmsNorm, rms_norm};
use attn_wgpu::rope::RopeTable;
use attn_wgpu::{DType, Gpu, Tensor, ops};

use crate::device::{Device, LayerWeights, Loader};
use crate::layer::{Projection, project};
use crate::policy::AttentionPolicy;
use crate::{ModelConfig, Result, Session, Source, WeightForm, weight_forms};

/// How a model lies on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Whether matrices that a file has in blocks which kernels read (Q4_0, Q4_1, Q8_0, Q4_K, Q6_K) stay in
    /// these blocks. They then take a quarter to a half of the memory of f16, lose nothing, and are
    /// unpacked in registers whenever they are used. Of files without such blocks nothing changes.
    pub packed: bool,
    /// Type of the other weight matrices: f32, f16 or bf16. Norms and biases are f32.
    pub weights: DType,
    /// Type of cached keys and values, and of what attention reads and gives. Everything between is
    /// f32.
    pub cache: DType,
}

impl Default for Options {
    /// Weights in f16, of which quantised and f16 files lose nothing that matters, keys and values in
    /// f32. Nothing is packed: see [`Options::packed`].
    fn default() -> Self {
        Options { packed: false, weights: DType::F16, cache: DType::F32 }
    }
}

impl Options {
    /// All in f32: what golden data is compared with.
    pub fn exact() -> Self {
        Options { packed: false, weights: DType::F32, cache: DType::F32 }
    }

    /// Quantised weights as the file has them, wherever kernels read their blocks; the rest as by default.
    pub fn packed() -> Self {
        Options::default().with_packed(true)
    }

    /// The same with quantised weights kept packed, or not.
    pub fn with_packed(self, packed: bool) -> Self {
        Options { packed, ..self }
    }

    /// The same with another type of the weight matrices that are not packed.
    pub fn with_weights(self, weights: DType) -> Self {
        Options { weights, ..self }
    }

    /// The same with cached keys and values of another type.
    pub fn with_cache(self, cache: DType) -> Self {
        Options { cache, ..self }
    }
}

/// A language model on a device. Cloning gives another handle to it.
#[derive(Debug, Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    gpu: Gpu,
    config: ModelConfig,
    options: Options,
    forms: Vec<WeightForm>,
    device: Device,
}

impl Model {
    /// Loads a Hugging Face folder or a GGUF file.
    ///
    /// # Errors
    /// Those of [`Source::open`] and [`Model::from_source`].
    pub fn load(gpu: &Gpu, path: &Path, options: Options) -> Result<Model> {
        Model::from_source(gpu, &Source::open(path)?, options, &mut |_, _| ())
    }

    /// Puts the weights of `source` on the device. `progress` is told the bytes that are there, and how
    /// many there will be.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] for types that are no floats, [`attn_wgpu::Error::OutOfMemory`],
    /// and what is wrong with the files: see [`crate::Weights::rows`].
    pub fn from_source(
        gpu: &Gpu,
        source: &Source,
        options: Options,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Model> {
        for (name, dtype) in [("weights", options.weights), ("cache", options.cache)] {
            if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
                let got = dtype.name();
                return Err(attn_core::Error::config(name, "f32, f16 or bf16", got).into());
            }
        }
        let config = &source.config;
        source.weights.check(config)?;
        let forms = weight_forms(source, options);
        let total = forms.iter().map(|form| form.bytes).sum();
        let mut loader =
            Loader { gpu, config, weights: &source.weights, options, progress, done: 0, total };
        let device = loader.load()?;
        let (gpu, config) = (gpu.clone(), config.clone());
        Ok(Model { inner: Arc::new(Inner { gpu, config, options, forms, device }) })
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.inner.gpu
    }

    /// What the model is made of.
    pub fn config(&self) -> &ModelConfig {
        &self.inner.config
    }

    /// How it lies on the device.
    pub fn options(&self) -> Options {
        self.inner.options
    }

    /// Forms of the weights on the device, and what lies in each.
    pub fn weight_forms(&self) -> &[WeightForm] {
        &self.inner.forms
    }

    /// Bytes that the weights take on the device.
    pub fn bytes(&self) -> u64 {
        self.weight_forms().iter().map(|form| form.bytes).sum()
    }

    /// An empty sequence with room for `capacity` tokens.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn session(&self, capacity: usize) -> Result<Session> {
        Session::new(self, capacity)
    }

    /// An empty sequence with room for `capacity` tokens and attention by `policy`.
    ///
    /// # Errors
    /// As [`Session::with_policy`].
    pub fn session_with(&self, capacity: usize, policy: impl AttentionPolicy) -> Result<Session> {
        Session::with_policy(self, capacity, Box::new(policy))
    }

    /// Queries, keys and values that a layer, the first of which is 0, makes of the residual stream in
    /// front of it, `hidden` `[tokens, hidden]`, as [`Session::run_to`] gives it; or of some of its rows.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] for a layer that the model lacks; those of the device.
    pub fn project(&self, layer: usize, hidden: &Tensor) -> Result<Projection> {
        project(self.config(), self.weights_of(layer)?, hidden)
    }

    /// What the projections of a layer, the first of which is 0, read: its norm of the residual stream in front
    /// of it, `hidden` `[tokens, hidden]`, or of some of its rows. With it a caller projects by weights of his own.
    ///
    /// # Errors
    /// As [`Model::project`].
    pub fn normed(&self, layer: usize, hidden: &Tensor) -> Result<Tensor> {
        let norm = &self.weights_of(layer)?.attention_norm;
        Ok(rms_norm(hidden, norm, &rms(self.config()))?)
    }

    /// The rotation of a layer's queries and keys.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] for a layer that the model lacks.
    pub fn rope(&self, layer: usize) -> Result<&RopeTable> {
        Ok(&self.device().kinds[self.weights_of(layer)?.kind].rope)
    }

    fn weights_of(&self, layer: usize) -> Result<&LayerWeights> {
        self.device().layers.get(layer).ok_or_else(|| {
            let expected = format!("below {}", self.config().layers.len());
            attn_core::Error::config("layer", expected, layer).into()
        })
    }

    pub(crate) fn device(&self) -> &Device {
        &self.inner.device
    }

    /// Logits of rows of the residual stream behind the last layer.
    pub(crate) fn logits(&self, hidden: &Tensor, rows: Range<usize>) -> Result<Tensor> {
        let Inner { config, device, .. } = &*self.inner;
        let hidden = hidden.narrow(0, rows.start, rows.len())?;
        let normed = rms_norm(&hidden, &device.norm, &rms(config))?;
        let logits = device.head().product(&normed, &Epilogue::new().with_dtype(DType::F32))?;
        match config.final_soft_cap {
            Some(cap) => Ok(ops::soft_cap(&logits, cap as f32)?),
            None => Ok(logits),
        }
    }
}

/// The norm of a model's residual stream.
pub(crate) fn rms(config: &ModelConfig) -> RmsNorm {
    let offset = if config.norm_offset { 1.0 } else { 0.0 };
    RmsNorm::new(config.eps as f32).with_weight_offset(offset)
}

/// Bytes of the keys and values of `tokens` tokens on a device.
pub fn cache_bytes(config: &ModelConfig, options: Options, tokens: usize) -> u64 {
    let dim = config.head_dim.next_multiple_of(4);
    let elements = 2 * config.layers.len() as u64 * (config.heads_kv * dim) as u64;
    elements * tokens as u64 * options.cache.bytes() as u64
}
