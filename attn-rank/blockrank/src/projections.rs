//! Projections of queries and keys that were tuned for scores (feature `model`).

use std::path::Path;

use attn_core::{ArrayFile, Error, Result};
use attn_model::Model;
use attn_wgpu::matmul::{Epilogue, matmul_with};
use attn_wgpu::{DType, Gpu, Tensor};
use ndarray::{Array2, ArrayView2, arr1};

/// What files of projections say they are.
const KIND: &str = "attn-blockrank projections";

/// Projections in place of a model's own at the layer whose attention is the score. The model is otherwise as
/// it was: nothing below that layer depends on them.
#[derive(Debug, Clone, PartialEq)]
pub struct Projections {
    /// The layer, the first of which is 0.
    pub layer: usize,
    /// Of queries, `[heads * head_dim, hidden]`, as models store it.
    pub w_q: Array2<f32>,
    /// Of keys, `[heads_kv * head_dim, hidden]`.
    pub w_k: Array2<f32>,
}

impl Projections {
    /// Writes a safetensors file.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let [w_q, w_k] = [&self.w_q, &self.w_k].map(|w| w.mapv(f64::from));
        let layer = arr1(&[self.layer as f64]);
        let file = ArrayFile::new(KIND).with("layer", layer.view());
        file.with("w_q", w_q.view()).with("w_k", w_k.view()).write(path)
    }

    /// Reads a file that [`Projections::save`] wrote.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be read, or is another file.
    pub fn load(path: impl AsRef<Path>) -> Result<Projections> {
        let path = path.as_ref();
        let file = ArrayFile::read(path, KIND)?;
        let layer: ndarray::Array1<f64> = file.get("layer")?;
        let layer = match layer.as_slice() {
            Some(&[layer]) if layer >= 0.0 && layer.fract() == 0.0 && layer < 1e6 => layer as usize,
            _ => return Err(Error::file(path, format!("`layer` is {layer}, expected one number"))),
        };
        let narrow = |w: Array2<f64>| w.mapv(|x| x as f32);
        Ok(Projections { layer, w_q: narrow(file.get("w_q")?), w_k: narrow(file.get("w_k")?) })
    }

    /// Whether they fit a model.
    ///
    /// # Errors
    /// [`Error::Config`] for a layer that the model lacks, [`Error::Shape`] for another shape, and
    /// [`Error::Config`] for models whose queries and keys have a bias or a norm, which these have not.
    pub fn check(&self, model: &Model) -> Result<()> {
        let config = model.config();
        if self.layer >= config.layers.len() {
            let expected = format!("below {}", config.layers.len());
            return Err(Error::config("layer", expected, self.layer));
        }
        for (arg, w, heads) in
            [("w_q", &self.w_q, config.heads), ("w_k", &self.w_k, config.heads_kv)]
        {
            let expected = [heads * config.head_dim, config.hidden];
            if w.shape() != expected {
                return Err(Error::shape(arg, format!("{expected:?}"), w.shape()));
            }
        }
        if config.biases.qkv || config.qk_norm {
            let expected = "a model without biases and norms of queries and keys";
            return Err(Error::config("projections", expected, format!("{:?}", config.family)));
        }
        Ok(())
    }

    pub(crate) fn upload(&self, gpu: &Gpu) -> Result<DeviceProjections, attn_wgpu::Error> {
        let of = |w: ArrayView2<'_, f32>| {
            let [outputs, inputs] = [w.nrows(), w.ncols()];
            let data: Vec<f32> = w.iter().copied().collect();
            Tensor::from_slice(gpu, &data, &[outputs, inputs])?.permute(&[1, 0])
        };
        Ok(DeviceProjections { w_q: of(self.w_q.view())?, w_k: of(self.w_k.view())? })
    }
}

/// The same on a device, `[hidden, outputs]`, stored the other way round.
#[derive(Debug, Clone)]
pub(crate) struct DeviceProjections {
    w_q: Tensor,
    w_k: Tensor,
}

impl DeviceProjections {
    /// Queries `[1, heads, tokens, head_dim]` of normed rows `[tokens, hidden]`.
    pub(crate) fn queries(&self, x: &Tensor, heads: usize) -> attn_wgpu::Result<Tensor> {
        project(x, &self.w_q, heads)
    }

    /// Keys `[1, heads_kv, tokens, head_dim]` of normed rows `[tokens, hidden]`.
    pub(crate) fn keys(&self, x: &Tensor, heads_kv: usize) -> attn_wgpu::Result<Tensor> {
        project(x, &self.w_k, heads_kv)
    }
}

fn project(x: &Tensor, w: &Tensor, heads: usize) -> attn_wgpu::Result<Tensor> {
    let y = matmul_with(x, w, &Epilogue::new().with_dtype(DType::F32))?;
    let &[tokens, width] = y.shape() else { return Ok(y) };
    y.reshape(&[1, tokens, heads, width / heads.max(1)])?.permute(&[0, 2, 1, 3])
}
