//! Streams on a device: what is kept between tokens.

use std::path::Path;

use attn_wgpu::scan::SoftmaxState;
use attn_wgpu::{Error, Gpu, Result, Tensor};
use ndarray::{Array, Dimension};

use crate::reference;

/// What a stream keeps: three numbers m, u and w for each head (w has `dim_v` elements), in f32, however many
/// tokens there were. Cloning shares them, as updates make new ones.
#[derive(Debug, Clone)]
pub struct State {
    element: SoftmaxState,
}

impl State {
    pub(super) fn new(element: SoftmaxState) -> State {
        State { element }
    }

    pub(super) fn element(&self) -> &SoftmaxState {
        &self.element
    }

    /// Before the first token.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn empty(gpu: &Gpu, batch: usize, heads: usize, dim_v: usize) -> Result<State> {
        Ok(State::new(SoftmaxState::empty(gpu, batch, heads, dim_v)?))
    }

    /// From the largest scores f32 `[batch, heads]`, the sums u f32 `[batch, heads]` and w f32
    /// `[batch, heads, dim_v]`. Where no token counts, the largest score is at most -1e30, and the rest is 0.
    ///
    /// # Errors
    /// [`attn_core::Error`] for other shapes or types; errors of the device.
    pub fn from_parts(max: &Tensor, sum: &Tensor, weighted: &Tensor) -> Result<State> {
        Ok(State::new(SoftmaxState::from_parts(max, sum, weighted)?))
    }

    /// `[batch, heads, dim_v]`.
    pub fn shape(&self) -> [usize; 3] {
        self.element.shape()
    }

    /// Largest score so far, m, f32 `[batch, heads]`, a view; at most -1e30 before the first token.
    ///
    /// # Errors
    /// None in practice.
    pub fn max(&self) -> Result<Tensor> {
        self.element.max()
    }

    /// `sum exp(s - m)`, u, f32 `[batch, heads]`, a view.
    ///
    /// # Errors
    /// None in practice.
    pub fn sum(&self) -> Result<Tensor> {
        self.element.sum()
    }

    /// `sum exp(s - m) v`, w, f32 `[batch, heads, dim_v]`, a view.
    ///
    /// # Errors
    /// None in practice.
    pub fn weighted(&self) -> Result<Tensor> {
        self.element.weighted()
    }

    /// Attention over the tokens so far, f32 `[batch, heads, dim_v]`; 0 before the first one.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn out(&self) -> Result<Tensor> {
        Ok(self.element.read_out()?.0)
    }

    /// Natural log-sum-exp of the scores so far, f32 `[batch, heads]`; -inf before the first token.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn lse(&self) -> Result<Tensor> {
        Ok(self.element.read_out()?.1)
    }

    /// The state after these tokens and then those of `later`.
    ///
    /// # Errors
    /// [`attn_core::Error::Shape`] where the extents differ; errors of the device.
    pub fn merge(&self, later: &State) -> Result<State> {
        Ok(State::new(self.element.merge(&later.element)?))
    }

    /// Bytes on the device: independent of the number of tokens.
    pub fn bytes(&self) -> usize {
        self.element.bytes()
    }

    /// Copies the state to the host. Blocks until the device is done.
    ///
    /// # Errors
    /// Errors of the device; [`attn_core::Error::Data`] for a state that is not a number.
    pub fn read(&self) -> Result<reference::State> {
        let max = numbers(&self.max()?)?;
        let (sum, weighted) = (numbers(&self.sum()?)?, numbers(&self.weighted()?)?);
        Ok(reference::State::from_parts(max.view(), sum.view(), weighted.view())?)
    }

    /// Copies a state from the host, rounded to f32.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn upload(gpu: &Gpu, state: &reference::State) -> Result<State> {
        let upload = |data: Vec<f32>, shape: &[usize]| Tensor::from_slice(gpu, &data, shape);
        let [batch, heads, dim_v] = state.shape();
        let max = state.max().iter().map(|&m| (m as f32).max(super::MASKED)).collect();
        let sum = state.sum().iter().map(|&u| u as f32).collect();
        let weighted = state.weighted().iter().map(|&w| w as f32).collect();
        State::from_parts(
            &upload(max, &[batch, heads])?,
            &upload(sum, &[batch, heads])?,
            &upload(weighted, &[batch, heads, dim_v])?,
        )
    }

    /// Writes a safetensors file, which [`reference::State::load`] reads, too.
    ///
    /// # Errors
    /// As [`State::read`], and [`attn_core::Error::File`] where it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        Ok(self.read()?.save(path)?)
    }

    /// Reads what [`State::save`] or [`reference::State::save`] wrote.
    ///
    /// # Errors
    /// [`attn_core::Error::File`] where the file cannot be read or holds something else; errors of the device.
    pub fn load(gpu: &Gpu, path: impl AsRef<Path>) -> Result<State> {
        State::upload(gpu, &reference::State::load(path)?)
    }
}

fn numbers<D: Dimension>(x: &Tensor) -> Result<Array<f64, D>> {
    let array = x.to_array::<f32>()?.mapv(f64::from);
    array
        .into_dimensionality()
        .map_err(|error| Error::from(attn_core::Error::data("state", "its extents", error)))
}
