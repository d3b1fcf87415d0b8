//! What a memory keeps between calls, on a device.

use std::path::Path;

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

    /// Before the first token: the learned weights `[heads, in, out]` of every layer, in f32, for each of
    /// `batch` sequences, at rest.
    ///
    /// # Errors
    /// As [`State::from_parts`].
    pub fn new(learned: &[Tensor], batch: usize, config: &Config) -> Result<State> {
        let repeat = |layer: &Tensor| {
            let mut shape = vec![1];
            shape.extend(layer.shape());
            let one = layer.split(0, &[1, layer.shape().first().copied().unwrap_or(0)])?;
            shape[0] = batch;
            one.expand(&shape)
        };
        let w = learned.iter().map(repeat).collect::<Result<Vec<_>>>()?;
        State::from_parts(&w, &[], config)
    }

    /// At the start of a chunk: weights and momentum of every layer, `[batch, heads, in, out]` in f32, which
    /// are copied. Without momentum, at rest.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] for parameters out of range and another number of layers,
    /// [`attn_core::Error::Shape`] and [`attn_core::Error::Dtype`] where layers do not fit.
    pub fn from_parts(w: &[Tensor], s: &[Tensor], config: &Config) -> Result<State> {
        config.validate()?;
        let Some(first) = w.first() else {
            let expected = format!("{} layers", config.depth());
            return Err(attn_core::Error::config("w", expected, 0).into());
        };
        let batch = first.shape().first().copied().unwrap_or(0);
        check_layers("w", w, first.gpu(), [batch, config.heads], config)?;
        if !s.is_empty() {
            check_layers("s", s, first.gpu(), [batch, config.heads], config)?;
        }
        let pad =
            |layers: &[Tensor]| padded_layers(first.gpu(), config, [batch, config.heads], layers);
        let w = pad(w)?;
        Ok(State { start: w.clone(), w, s: pad(s)?, position: 0 })
    }

    /// The memories, by layer `[batch, heads, in, out]`, for the configuration they were made with.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] for one with larger layers.
    pub fn w(&self, config: &Config) -> Result<Vec<Tensor>> {
        unpadded(&self.w, config)
    }

    /// Their momentum.
    ///
    /// # Errors
    /// As [`State::w`].
    pub fn s(&self, config: &Config) -> Result<Vec<Tensor>> {
        unpadded(&self.s, config)
    }

    /// The weights at the start of the chunk; between two chunks, the weights.
    ///
    /// # Errors
    /// As [`State::w`].
    pub fn chunk_start(&self, config: &Config) -> Result<Vec<Tensor>> {
        unpadded(&self.start, config)
    }

    /// Reads it back, for files and statistics.
    ///
    /// # Errors
    /// As [`reference::State::from_parts`] for another configuration; those of the device.
    pub fn download(&self, config: &Config) -> Result<reference::State> {
        let layers = |layers: &[Tensor]| -> Result<Vec<Array4<f64>>> {
            let read = |layer: &Tensor| {
                let array = layer.to_array::<f32>()?.mapv(f64::from);
                array.into_dimensionality().map_err(|_| {
                    attn_core::Error::shape("state", "four extents", layer.shape()).into()
                })
            };
            unpadded(layers, config)?.iter().map(read).collect()
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
        let w = own(&self.w)?;
        // Between two chunks nobody reads it before it is written.
        let start = if self.position > 0 { own(&self.start)? } else { w.clone() };
        Ok(State { w, s: own(&self.s)?, start, position: self.position })
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

/// The layers without what they are filled up with.
pub(super) fn unpadded(layers: &[Tensor], config: &Config) -> Result<Vec<Tensor>> {
    let all = layers.iter().zip(config.layers());
    all.map(|(layer, [rows, columns])| layer.narrow(2, 0, rows)?.narrow(3, 0, columns)).collect()
}

/// Refuses layers that are not `[batch, heads, in, out]` in f32 on this device.
pub(super) fn check_layers(
    arg: &'static str,
    layers: &[Tensor],
    gpu: &Gpu,
    [batch, heads]: [usize; 2],
    config: &Config,
) -> Result<()> {
    let all = config.layers();
    if layers.len() != all.len() {
        let expected = format!("{} layers", all.len());
        return Err(attn_core::Error::config(arg, expected, layers.len()).into());
    }
    for (layer, [rows, columns]) in layers.iter().zip(all) {
        check_tensor(arg, layer, gpu, &[batch, heads, rows, columns])?;
        if layer.dtype() != DType::F32 {
            let (expected, got) = ("f32".into(), layer.dtype().name().into());
            return Err(attn_core::Error::Dtype { arg, expected, got }.into());
        }
    }
    Ok(())
}

pub(super) fn check_tensor(
    arg: &'static str,
    tensor: &Tensor,
    gpu: &Gpu,
    expected: &[usize],
) -> Result<()> {
    if tensor.shape() != expected {
        return Err(attn_core::Error::shape(arg, format!("{expected:?}"), tensor.shape()).into());
    }
    if !tensor.gpu().is_same(gpu) {
        let got = "a tensor of another Gpu";
        return Err(attn_core::Error::config(arg, &gpu.adapter().name, got).into());
    }
    Ok(())
}
