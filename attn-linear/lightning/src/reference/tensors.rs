//! Arrays in safetensors files.

use std::path::{Path, PathBuf};

use attn_core::{Error, Result};
use half::{bf16, f16};
use ndarray::{Array, Dimension, IxDyn};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// A file in memory.
pub struct Tensors {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Tensors {
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| Error::file(path, error))?;
        SafeTensors::read_metadata(&bytes).map_err(|error| Error::file(path, error))?;
        Ok(Tensors { path: path.to_owned(), bytes })
    }

    pub fn contains(&self, name: &str) -> Result<bool> {
        Ok(self.views()?.tensor(name).is_ok())
    }

    /// A tensor of floating-point numbers, of the rank that is asked for.
    pub fn array<D: Dimension>(&self, name: &str) -> Result<Array<f64, D>> {
        let bad = |reason: String| Error::file(&self.path, format!("tensor `{name}`: {reason}"));
        let views = self.views()?;
        let view = views.tensor(name).map_err(|error| bad(error.to_string()))?;
        let data = numbers(&view).ok_or_else(|| {
            bad(format!("holds {}, expected floating-point numbers", view.dtype()))
        })?;
        let shape = view.shape();
        let array = Array::from_shape_vec(IxDyn(shape), data).map_err(|e| bad(e.to_string()))?;
        array.into_dimensionality().map_err(|_| {
            bad(format!("has shape {shape:?}, expected {} extents", D::NDIM.unwrap_or_default()))
        })
    }

    fn views(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.bytes).map_err(|error| Error::file(&self.path, error))
    }
}

fn numbers(view: &TensorView<'_>) -> Option<Vec<f64>> {
    let data = view.data();
    match view.dtype() {
        Dtype::F16 => Some(elements(data, |b| f16::from_le_bytes(b).to_f64())),
        Dtype::BF16 => Some(elements(data, |b| bf16::from_le_bytes(b).to_f64())),
        Dtype::F32 => Some(elements(data, |b| f64::from(f32::from_le_bytes(b)))),
        Dtype::F64 => Some(elements(data, f64::from_le_bytes)),
        _ => None,
    }
}

/// Elements of `N` bytes each, wherever they lie.
fn elements<const N: usize>(data: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    data.as_chunks::<N>().0.iter().map(|&bytes| read(bytes)).collect()
}
