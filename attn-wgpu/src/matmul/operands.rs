//! The operands of a product as the kernels address them: four dimensions, in chunks of four elements.

use crate::error::Result;
use crate::tensor::{DType, Tensor, row_major};
use crate::vec4::vec4;

/// `[outer batch, inner batch, rows, columns]`, the last contiguous and in whole chunks of four.
#[derive(Debug, Clone)]
pub(super) struct Operand {
    pub(super) tensor: Tensor,
    /// Whether the last two dimensions were exchanged: `a` as `[K, M]`, `b` as `[K, N]`.
    pub(super) across: bool,
}

impl Operand {
    /// From `[.., .., outer, depth]`: contiguous along the depth where it is so or neither dimension is,
    /// else across it, if `may_cross`.
    pub(super) fn new(tensor: &Tensor, may_cross: bool) -> Result<Operand> {
        let (shape, strides) = (tensor.shape(), tensor.strides());
        let along = strides[3] == 1 && (shape[3] > 1 || strides[2] != 1);
        let across = may_cross && !along && strides[2] == 1;
        let view = if across { tensor.permute(&[0, 1, 3, 2])? } else { tensor.clone() };
        Ok(Operand { tensor: vec4(&view)?, across })
    }

    /// Repeats batch entries without copying.
    pub(super) fn expand(self, batch: [usize; 2]) -> Result<Operand> {
        let &[_, _, rows, columns] = self.tensor.shape() else { return Ok(self) };
        let tensor = self.tensor.expand(&[batch[0], batch[1], rows, columns])?;
        Ok(Operand { tensor, ..self })
    }
}

/// The tensor with all batch entries as further rows, if its strides admit that.
pub(crate) fn fold(tensor: &Tensor) -> Option<Tensor> {
    let (shape, strides) = (tensor.shape(), tensor.strides());
    let (mut rows, mut stride) = (shape[2], strides[2]);
    for d in [1, 0] {
        if shape[d] == 1 {
            continue;
        }
        if rows == 1 {
            stride = strides[d];
        } else if strides[d] != rows * stride {
            return None;
        }
        rows *= shape[d];
    }
    Some(tensor.with_layout(&[1, 1, rows, shape[3]], &[0, 0, stride, strides[3]]))
}

/// A new tensor of four dimensions whose rows are whole chunks.
pub(super) fn target(like: &Tensor, dtype: DType) -> Result<Tensor> {
    let mut shape = like.shape().to_vec();
    shape[3] = shape[3].next_multiple_of(4);
    debug_assert_eq!(row_major(&shape).len(), 4);
    Tensor::uninit(like.gpu(), &shape, dtype)
}
