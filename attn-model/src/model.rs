//! A model on a device, ready to run.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use attn_wgpu::matmul::{Epilogue, matmul_with};
use attn_wgpu::norm::{RmsNorm, rms_norm};
use attn_wgpu::rope::RopeTable;
use attn_wgpu::{DType, Gpu, Tensor, ops};

use crate::device::{Device, LayerWeights, Loader};
use crate::layer::{Projection, project};
use crate::policy::AttentionPolicy;
use crate::{ModelConfig, Result, Session, Source};

/// How a model lies on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Type of the weight matrices: f32, f16 or bf16. Norms and biases are f32.
    pub weights: DType,
    /// Type of cached keys and values, and of what attention reads and gives. Everything between is
    /// f32.
    pub cache: DType,
}

impl Default for Options {
    /// Weights in f16, of which quantised and f16 files lose nothing that matters, keys and values in
    /// f32.
    fn default() -> Self {
        Options { weights: DType::F16, cache: DType::F32 }
    }
}

impl Options {
    /// All in f32: what golden data is compared with.
    pub fn exact() -> Self {
        Options { weights: DType::F32, cache: DType::F32 }
    }

    /// The same with weight matrices of another type.
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
        let total = weight_bytes(config, options);
        let mut loader = Loader {
            gpu,
            config,
            weights: &source.weights,
            dtype: options.weights,
            progress,
            done: 0,
            total,
        };
        let device = loader.load()?;
        let (gpu, config) = (gpu.clone(), config.clone());
        Ok(Model { inner: Arc::new(Inner { gpu, config, options, device }) })
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

    /// Bytes that the weights take on the device.
    pub fn bytes(&self) -> u64 {
        weight_bytes(self.config(), self.options())
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
        let logits = matmul_with(&normed, &device.head, &Epilogue::new().with_dtype(DType::F32))?;
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

/// Bytes of the weights on a device.
pub fn weight_bytes(config: &ModelConfig, options: Options) -> u64 {
    let bytes = |(_, shape): (String, Vec<usize>)| {
        let elements: u64 = shape.iter().map(|&extent| extent as u64).product();
        let size = if shape.len() > 1 { options.weights.bytes() } else { 4 };
        elements * size as u64
    };
    config.tensors().into_iter().map(bytes).sum()
}
