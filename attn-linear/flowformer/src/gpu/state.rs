//! Streams of the causal form on a device: what is kept between tokens.

use std::path::Path;

use attn_core::{ArrayFile, AttentionShape, Error};
use attn_wgpu::scan::SoftmaxState;
use attn_wgpu::{DType, Gpu, Result, Tensor};
use ndarray::{Array, ArrayD, Dimension};

use super::parts::whole;
use crate::reference;
use crate::reference::STATE_KIND;

/// What a causal stream keeps, in f32: for each head four sums of `dim_qk` elements, the matrix M, and the
/// largest flow with the sum of exponentials; and how many tokens there were, which padding does not add to.
/// Cloning shares them, as updates make new ones.
#[derive(Debug, Clone)]
pub struct State {
    sums: Sums,
    /// Batch, heads, dim_qk, dim_v.
    extents: [usize; 4],
}

/// The tensors of a state.
#[derive(Debug, Clone)]
pub(super) struct Sums {
    /// `[batch, heads, dim_qk]`.
    pub(super) k: Tensor,
    pub(super) q: Tensor,
    pub(super) k_hat: Tensor,
    pub(super) q_hat: Tensor,
    /// Of the flows of sources, without values.
    pub(super) element: SoftmaxState,
    /// `[batch * heads, padded dim_qk, padded dim_v]`.
    pub(super) memory: Tensor,
    /// f32 `[batch, 1, 1]`.
    pub(super) tokens: Tensor,
}

impl State {
    pub(super) fn new(sums: Sums, extents: [usize; 4]) -> State {
        State { sums, extents }
    }

    pub(super) fn sums(&self) -> &Sums {
        &self.sums
    }

    /// Before the first token, for extents batch, heads, dim_qk and dim_v.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn empty(gpu: &Gpu, extents: [usize; 4]) -> Result<State> {
        let [batch, heads, dim_qk, dim_v] = extents;
        let zeros = |shape: &[usize]| Tensor::zeros(gpu, shape, DType::F32);
        let sum = || zeros(&[batch, heads, dim_qk]);
        let memory = [batch * heads, dim_qk.next_multiple_of(4), dim_v.next_multiple_of(4)];
        let sums = Sums {
            k: sum()?,
            q: sum()?,
            k_hat: sum()?,
            q_hat: sum()?,
            element: SoftmaxState::empty(gpu, batch, heads, 0)?,
            memory: zeros(&memory)?,
            tokens: zeros(&[batch, 1, 1])?,
        };
        Ok(State { sums, extents })
    }

    pub(super) fn check(&self, shape: &AttentionShape) -> Result<()> {
        let expected = [shape.batch, shape.heads, shape.dim_qk, shape.dim_v];
        if self.extents == expected {
            return Ok(());
        }
        Err(Error::shape("state", format!("{expected:?}"), &self.extents).into())
    }

    /// Batch, heads, dim_qk, dim_v.
    pub fn extents(&self) -> [usize; 4] {
        self.extents
    }

    /// Tokens so far that were not padding, f32 `[batch, 1, 1]`.
    pub fn tokens(&self) -> &Tensor {
        &self.sums.tokens
    }

    /// Sum of `sigmoid(k)`, K, f32 `[batch, heads, dim_qk]`.
    pub fn k(&self) -> Tensor {
        self.sums.k.clone()
    }

    /// Sum of `sigmoid(q)`, Q, f32 `[batch, heads, dim_qk]`.
    pub fn q(&self) -> Tensor {
        self.sums.q.clone()
    }

    /// K^, f32 `[batch, heads, dim_qk]`.
    pub fn k_hat(&self) -> Tensor {
        self.sums.k_hat.clone()
    }

    /// Q^, f32 `[batch, heads, dim_qk]`.
    pub fn q_hat(&self) -> Tensor {
        self.sums.q_hat.clone()
    }

    /// Largest clamped flow of a source, f32 `[batch, heads]`, a view; at most -1e30 before the first token.
    ///
    /// # Errors
    /// None in practice.
    pub fn max(&self) -> Result<Tensor> {
        self.sums.element.max()
    }

    /// Sum of the exponentials of these flows, relative to the largest, f32 `[batch, heads]`, a view.
    ///
    /// # Errors
    /// None in practice.
    pub fn sum(&self) -> Result<Tensor> {
        self.sums.element.sum()
    }

    /// M, f32 `[batch, heads, dim_qk, dim_v]`, a view.
    ///
    /// # Errors
    /// None in practice.
    pub fn memory(&self) -> Result<Tensor> {
        let [batch, heads, dim_qk, dim_v] = self.extents;
        self.sums.memory.split(0, &[batch, heads])?.narrow(2, 0, dim_qk)?.narrow(3, 0, dim_v)
    }

    /// Bytes on the device: independent of the number of tokens.
    pub fn bytes(&self) -> usize {
        let Sums { k, q, k_hat, q_hat, element, memory, tokens } = &self.sums;
        let all = [k, q, k_hat, q_hat, memory, tokens];
        4 * all.map(Tensor::len).iter().sum::<usize>() + element.bytes()
    }

    /// Writes a safetensors file, which [`reference::State::load`] reads, too. Blocks until the device is done.
    ///
    /// # Errors
    /// Errors of the device; [`attn_core::Error::File`] where it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let read = |x: &Tensor| -> Result<ArrayD<f64>> { Ok(x.to_array::<f32>()?.mapv(f64::from)) };
        let tokens = read(&self.sums.tokens)?;
        let tokens: Vec<f64> = tokens.iter().copied().collect();
        // Of a device, a finite number stands for -inf.
        let max = read(&self.max()?)?;
        let max = max.mapv(|max| if max <= -1e29 { f64::NEG_INFINITY } else { max });
        let file = ArrayFile::new(STATE_KIND)
            .with("tokens", ndarray::Array1::from(tokens).view())
            .with("k", read(&self.sums.k)?.view())
            .with("q", read(&self.sums.q)?.view())
            .with("k_hat", read(&self.sums.k_hat)?.view())
            .with("q_hat", read(&self.sums.q_hat)?.view())
            .with("max", max.view())
            .with("sum", read(&self.sum()?)?.view())
            .with("memory", read(&self.memory()?)?.view());
        Ok(file.write(path)?)
    }

    /// Reads what [`State::save`] or [`reference::State::save`] wrote.
    ///
    /// # Errors
    /// [`attn_core::Error::File`] where the file cannot be read or holds something else; errors of the device.
    pub fn load(gpu: &Gpu, path: impl AsRef<Path>) -> Result<State> {
        State::upload(gpu, &reference::State::load(path)?)
    }

    /// Copies a state from the host, rounded to f32.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn upload(gpu: &Gpu, state: &reference::State) -> Result<State> {
        let memory = state.memory();
        let (batch, heads, dim_qk, dim_v) = memory.dim();
        let padded = whole(&numbers(gpu, &memory)?)?;
        let width = padded.shape()[3];
        let rows = dim_qk.next_multiple_of(4);
        let all = Tensor::zeros(gpu, &[batch * heads, rows, width], DType::F32)?;
        let flat = padded.contiguous()?.reshape(&[batch * heads, dim_qk, width])?;
        attn_wgpu::ops::copy(&flat, &all.narrow(1, 0, dim_qk)?)?;
        let max = state.max().mapv(|max| max.max(-3e38));
        let none = Tensor::zeros(gpu, &[batch, heads, 0], DType::F32)?;
        let element =
            SoftmaxState::from_parts(&numbers(gpu, &max)?, &numbers(gpu, &state.sum())?, &none)?;
        let tokens: Vec<f32> = state.tokens().iter().map(|&tokens| tokens as f32).collect();
        let sums = Sums {
            k: numbers(gpu, &state.k())?,
            q: numbers(gpu, &state.q())?,
            k_hat: numbers(gpu, &state.k_hat())?,
            q_hat: numbers(gpu, &state.q_hat())?,
            element,
            memory: all,
            tokens: Tensor::from_slice(gpu, &tokens, &[batch, 1, 1])?,
        };
        Ok(State { sums, extents: [batch, heads, dim_qk, dim_v] })
    }
}

fn numbers<D: Dimension>(gpu: &Gpu, x: &Array<f64, D>) -> Result<Tensor> {
    Tensor::from_array(gpu, &x.mapv(|x| x as f32).view().into_dyn())
}
