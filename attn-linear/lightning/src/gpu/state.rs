//! What a layer keeps between calls.

use std::path::Path;

use attn_wgpu::{DType, Gpu, Result, Tensor, ops};

use crate::reference;

/// The sums of decayed products of keys and values, and the number of tokens so far. Its size does not
/// depend on that number.
///
/// Decoding changes it in place, so there is no `Clone` that would share it: [`State::fork`] copies.
#[derive(Debug)]
pub struct State {
    kv: Tensor,
    position: usize,
}

impl State {
    pub(super) fn new(kv: Tensor, position: usize) -> Self {
        State { kv, position }
    }

    /// Before the first token: zeros `[batch, heads, dim_qk, dim_v]`. With position embedding `dim_qk` is
    /// twice that of the queries before it.
    ///
    /// # Errors
    /// Allocation errors.
    pub fn zeros(gpu: &Gpu, shape: [usize; 4]) -> Result<Self> {
        Ok(State { kv: Tensor::zeros(gpu, &shape, DType::F32)?, position: 0 })
    }

    /// `[batch, heads, dim_qk, dim_v]`, f32.
    pub fn kv(&self) -> &Tensor {
        &self.kv
    }

    /// Position of the next token: the number of tokens so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        4 * self.kv.len()
    }

    /// A copy that goes its own way.
    ///
    /// # Errors
    /// Allocation errors.
    pub fn fork(&self) -> Result<Self> {
        let kv = Tensor::uninit(self.kv.gpu(), self.kv.shape(), DType::F32)?;
        ops::copy(&self.kv, &kv)?;
        Ok(State { kv, ..*self })
    }

    /// Writes a safetensors file, the same as [`reference::State::save`] does. Waits for the device.
    ///
    /// # Errors
    /// [`attn_core::Error::File`] where it cannot be written; errors of the device.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let kv = self.kv.to_array::<f32>()?.mapv(f64::from);
        let kv = kv.into_dimensionality().map_err(|_| {
            attn_core::Error::shape("kv", "[batch, heads, dim_qk, dim_v]", self.kv.shape())
        })?;
        Ok(reference::State::from_kv(kv, self.position).save(path)?)
    }

    /// Reads what [`State::save`] or [`reference::State::save`] wrote.
    ///
    /// # Errors
    /// [`attn_core::Error::File`] where the file cannot be read or does not hold a state; errors of the
    /// device.
    pub fn load(gpu: &Gpu, path: impl AsRef<Path>) -> Result<Self> {
        let state = reference::State::load(path)?;
        let kv = state.kv().mapv(|x| x as f32);
        let kv = Tensor::from_array(gpu, &kv.view().into_dyn())?;
        Ok(State { kv, position: state.position() })
    }

    pub(super) fn advance(&mut self, tokens: usize) {
        self.position += tokens;
    }
}
