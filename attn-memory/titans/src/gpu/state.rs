//! What a memory keeps between calls, on a device.

use std::path::Path;

use attn_wgpu::{DType, Gpu, Result, Tensor, ops};
use ndarray::Array4;

use crate::{Config, reference};

/// The memories of all heads and how they move. Handles: a clone shares the numbers, which no call changes.
#[derive(Debug, Clone)]
pub struct State {
    /// By layer `[batch, heads, in, out]`, rows and columns filled up with zeros to multiples of four.
    pub(super) w: Vec<Tensor>,
    pub(super) s: Vec<Tensor>,
    pub(super) start: Vec<Tensor>,
    pub(super) position: usize,
}

impl State {
    /// A state of the reference on a device, in f32.
    ///
    /// # Errors
    /// Those of allocations.
    pub fn upload(gpu: &Gpu, state: &reference::State) -> Result<State> {
        let layers = |layers: &[Array4<f64>]| -> Result<Vec<Tensor>> {
            layers.iter().map(|layer| padded(gpu, layer)).collect()
        };
        Ok(State {
            w: layers(state.w())?,
            s: layers(state.s())?,
            start: layers(state.chunk_start())?,
            position: state.position(),
        })
    }

    /// Reads it back, for files and statistics.
    ///
    /// # Errors
    /// As [`reference::State::from_parts`] for another configuration; those of the device.
    pub fn download(&self, config: &Config) -> Result<reference::State> {
        let layers = |layers: &[Tensor]| -> Result<Vec<Array4<f64>>> {
            let all = layers.iter().zip(config.layers());
            all.map(|(layer, [rows, columns])| {
                let part = layer.narrow(2, 0, rows)?.narrow(3, 0, columns)?;
                let array = part.to_array::<f32>()?.mapv(f64::from);
                array.into_dimensionality().map_err(|_| {
                    attn_core::Error::shape("state", "four extents", layer.shape()).into()
                })
            })
            .collect()
        };
        let (w, s, start) = (layers(&self.w)?, layers(&self.s)?, layers(&self.start)?);
        let state = reference::State::joined(w, s, start, self.position);
        state.check(state.batch(), config)?;
        Ok(state)
    }

    /// Writes a safetensors file, the same as [`reference::State::save`] does. Waits for the device.
    ///
    /// # Errors
    /// As [`State::download`]; [`attn_core::Error::File`] where it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>, config: &Config) -> Result<()> {
        Ok(self.download(config)?.save(path)?)
    }

    /// Reads what [`State::save`] or [`reference::State::save`] wrote.
    ///
    /// # Errors
    /// [`attn_core::Error`] where the file cannot be read or holds no state of this configuration; those of
    /// allocations.
    pub fn load(gpu: &Gpu, path: impl AsRef<Path>, config: &Config) -> Result<State> {
        State::upload(gpu, &reference::State::load(path, config)?)
    }

    /// Starts a new chunk here, though the last one may not be full.
    ///
    /// # Errors
    /// Those of allocations.
    pub fn restart(&mut self) -> Result<()> {
        if self.position > 0 {
            self.start = copied(&self.w)?;
            self.position = 0;
        }
        Ok(())
    }

    /// Tokens since the start of the chunk.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Bytes on the device; they do not grow.
    pub fn bytes(&self) -> usize {
        let all = self.w.iter().chain(&self.s).chain(&self.start);
        all.map(|layer| 4 * layer.len()).sum()
    }
}

/// Rows and columns filled up with zeros.
fn padded(gpu: &Gpu, layer: &Array4<f64>) -> Result<Tensor> {
    let (batch, heads, rows, columns) = layer.dim();
    let shape = (batch, heads, rows.next_multiple_of(4), columns.next_multiple_of(4));
    let mut wide = Array4::<f32>::zeros(shape);
    wide.slice_mut(ndarray::s![.., .., ..rows, ..columns]).assign(&layer.mapv(|x| x as f32));
    Tensor::from_array(gpu, &wide.view().into_dyn())
}

/// Copies of tensors.
pub(super) fn copied(layers: &[Tensor]) -> Result<Vec<Tensor>> {
    let copy = |layer: &Tensor| -> Result<Tensor> {
        let copy = Tensor::uninit(layer.gpu(), layer.shape(), DType::F32)?;
        ops::copy(layer, &copy)?;
        Ok(copy)
    };
    layers.iter().map(copy).collect()
}
