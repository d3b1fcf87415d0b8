//! What softmax attention over prefixes keeps of its tokens.

use super::softmax::{merge, softmax_scan};
use super::{check_numbers, single};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::ops;
use crate::rows;
use crate::tensor::{DType, Tensor};

/// What a token has that does not count.
const LOWEST: f32 = -3e38;

/// The element of many tokens: largest score m, `u = sum exp(s - m)` and `w = sum exp(s - m) v` of each batch
/// entry and head. Combining two of them gives that of all their tokens.
#[derive(Debug, Clone)]
pub struct SoftmaxState {
    /// f32 `[batch, heads, padded width + 4]`: w, then u, m and two numbers that say nothing.
    elements: Tensor,
    width: usize,
}

impl SoftmaxState {
    /// From m and u f32 `[batch, heads]` and w f32 `[batch, heads, width]`. Where no token counts, m is at
    /// most -1e30, and the rest is 0.
    ///
    /// # Errors
    /// [`attn_core::Error`] for other shapes or types; errors of the device.
    pub fn from_parts(max: &Tensor, sum: &Tensor, weighted: &Tensor) -> Result<SoftmaxState> {
        let gpu = weighted.gpu();
        let &[batch, heads, width] = weighted.shape() else {
            let expected = "[batch, heads, width]";
            return Err(attn_core::Error::shape("weighted", expected, weighted.shape()).into());
        };
        check_numbers("weighted", weighted, &[batch, heads, width], gpu)?;
        check_numbers("max", max, &[batch, heads], gpu)?;
        check_numbers("sum", sum, &[batch, heads], gpu)?;
        let state = SoftmaxState::uninit(gpu, batch, heads, width)?;
        let padded = width.next_multiple_of(4);
        if width > 0 {
            ops::copy(weighted, &state.elements.narrow(2, 0, padded)?)?;
        }
        let number = |x: &Tensor| x.split(1, &[heads, 1]);
        ops::copy(&number(sum)?, &state.elements.narrow(2, padded, 1)?)?;
        // Behind m there are two zeros.
        ops::copy(&number(max)?, &state.elements.narrow(2, padded + 1, 3)?)?;
        Ok(state)
    }

    pub(super) fn uninit(
        gpu: &Gpu,
        batch: usize,
        heads: usize,
        width: usize,
    ) -> Result<SoftmaxState> {
        let shape = [batch, heads, width.next_multiple_of(4) + 4];
        Ok(SoftmaxState { elements: Tensor::uninit(gpu, &shape, DType::F32)?, width })
    }

    /// That of no token.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn empty(gpu: &Gpu, batch: usize, heads: usize, width: usize) -> Result<SoftmaxState> {
        let shape = [batch, heads, width.next_multiple_of(4) + 4];
        let state = SoftmaxState { elements: Tensor::zeros(gpu, &shape, DType::F32)?, width };
        ops::copy(
            &Tensor::full(gpu, &[1, 1, 1], LOWEST)?.expand(&[batch, heads, 1])?,
            &state.max_column()?,
        )?;
        Ok(state)
    }

    pub(super) fn elements(&self) -> &Tensor {
        &self.elements
    }

    fn max_column(&self) -> Result<Tensor> {
        self.elements.narrow(2, self.width.next_multiple_of(4) + 1, 1)
    }

    fn column(&self, index: usize) -> Result<Tensor> {
        super::column(&self.elements, self.width.next_multiple_of(4) + index)
    }

    /// `[batch, heads, width]`.
    pub fn shape(&self) -> [usize; 3] {
        [self.elements.shape()[0], self.elements.shape()[1], self.width]
    }

    /// m, f32 `[batch, heads]`, a view; at most -1e30 where no token counts.
    ///
    /// # Errors
    /// None in practice.
    pub fn max(&self) -> Result<Tensor> {
        self.column(1)
    }

    /// u, f32 `[batch, heads]`, a view.
    ///
    /// # Errors
    /// None in practice.
    pub fn sum(&self) -> Result<Tensor> {
        self.column(0)
    }

    /// w, f32 `[batch, heads, width]`, a view.
    ///
    /// # Errors
    /// None in practice.
    pub fn weighted(&self) -> Result<Tensor> {
        self.elements.narrow(2, 0, self.width)
    }

    /// Attention over all tokens f32 `[batch, heads, width]`, and its log-sum-exp f32 `[batch, heads]`.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn read_out(&self) -> Result<(Tensor, Tensor)> {
        // The scan of one token that does not count.
        let [batch, heads, width] = self.shape();
        let gpu = self.elements.gpu();
        let scores = Tensor::full(gpu, &[1, 1, 1], LOWEST)?.expand(&[batch, heads, 1])?;
        let v = Tensor::zeros(gpu, &[1, 1, 1, width.max(1)], DType::F32)?;
        let v = v.narrow(3, 0, width)?.expand(&[batch, heads, 1, width])?;
        let scan = softmax_scan(&scores, &v, Some(self), DType::F32)?;
        let out = scan.out.reshape(&[batch, heads, width])?;
        Ok((out, scan.lse.reshape(&[batch, heads])?))
    }

    /// The element of these tokens and then those of `later`.
    ///
    /// # Errors
    /// [`attn_core::Error::Shape`] where the extents differ; errors of the device.
    pub fn merge(&self, later: &SoftmaxState) -> Result<SoftmaxState> {
        let gpu = self.elements.gpu();
        later.check("later", self.shape(), gpu)?;
        let [batch, heads, width] = self.shape();
        let merged = SoftmaxState::uninit(gpu, batch, heads, width)?;
        if batch * heads > 0 {
            let later = single(&later.elements);
            merge(gpu, &later, Some(&single(&self.elements)), &single(&merged.elements), true)?;
        }
        Ok(merged)
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        4 * self.elements.len()
    }

    pub(super) fn check(&self, arg: &'static str, expected: [usize; 3], gpu: &Gpu) -> Result<()> {
        rows::check_device(arg, &self.elements, gpu)?;
        if self.shape() == expected {
            return Ok(());
        }
        Err(attn_core::Error::shape(arg, format!("{expected:?}"), &self.shape()).into())
    }
}
