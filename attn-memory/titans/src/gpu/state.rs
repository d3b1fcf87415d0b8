//! What a memory keeps between calls, on a device.

use attn_wgpu::{DType, Gpu, Result, Tensor, ops};
use ndarray::Array4;

use super::parts::Part;
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

    /// A part of it, on its own.
    pub(super) fn of(&self, part: &Part) -> Result<State> {
        let own = |layers: &[Tensor]| -> Result<Vec<Tensor>> {
            let parts: Result<Vec<Tensor>> = layers.iter().map(|layer| part.of(layer)).collect();
            copied(&parts?)
        };
        Ok(State {
            w: own(&self.w)?,
            s: own(&self.s)?,
            start: own(&self.start)?,
            position: self.position,
        })
    }

    /// Of the same extents, with any numbers.
    pub(super) fn empty(&self) -> Result<State> {
        let like = |layers: &[Tensor]| -> Result<Vec<Tensor>> {
            let new = |layer: &Tensor| Tensor::uninit(layer.gpu(), layer.shape(), DType::F32);
            layers.iter().map(new).collect()
        };
        Ok(State {
            w: like(&self.w)?,
            s: like(&self.s)?,
            start: like(&self.start)?,
            position: self.position,
        })
    }

    /// Writes a part.
    pub(super) fn set(&mut self, part: &Part, own: &State) -> Result<()> {
        let pairs = [(&self.w, &own.w), (&self.s, &own.s), (&self.start, &own.start)];
        for (all, layers) in pairs {
            for (all, layer) in all.iter().zip(layers) {
                ops::copy(layer, &part.of(all)?)?;
            }
        }
        self.position = own.position;
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

/// Copies of layers `[batch, heads, in, out]` with rows and columns filled up with zeros; zeros where there
/// are no layers.
pub(super) fn padded_layers(
    gpu: &Gpu,
    config: &Config,
    [batch, heads]: [usize; 2],
    layers: &[Tensor],
) -> Result<Vec<Tensor>> {
    let pad = |(i, [rows, columns]): (usize, [usize; 2])| -> Result<Tensor> {
        let shape = [batch, heads, rows.next_multiple_of(4), columns.next_multiple_of(4)];
        let wide = Tensor::zeros(gpu, &shape, DType::F32)?;
        if let Some(layer) = layers.get(i) {
            ops::copy(layer, &wide.narrow(2, 0, rows)?)?;
        }
        Ok(wide)
    };
    config.layers().into_iter().enumerate().map(pad).collect()
}
