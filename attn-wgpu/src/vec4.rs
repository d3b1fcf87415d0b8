//! Tensors as kernels address them: four dimensions, in groups of four elements.

use crate::error::Result;
use crate::kernel::Constants;
use crate::ops;
use crate::tensor::{DType, Tensor};

/// Declares what a group of four elements of a type is: the alias `..Chunk`, and a flag for halves, `.._F16` or
/// `.._BF16`, of names like `Out` and `OUT`.
pub(crate) fn chunks(constants: Constants, name: &str, dtype: DType) -> Constants {
    let chunk = if dtype.bytes() == 2 { "vec2<u32>" } else { "vec4<f32>" };
    let flag = name.to_uppercase();
    constants
        .alias(&format!("{name}Chunk"), chunk)
        .flag(&format!("{flag}_F16"), dtype == DType::F16)
        .flag(&format!("{flag}_BF16"), dtype == DType::BF16)
}

/// The tensor with extents of 1 in front, four in all.
pub(crate) fn four(tensor: &Tensor) -> Tensor {
    let missing = 4 - tensor.shape().len().min(4);
    let mut shape = vec![1; missing];
    let mut strides = vec![0; missing];
    shape.extend(tensor.shape());
    strides.extend(tensor.strides());
    tensor.with_layout(&shape, &strides)
}

/// Whether kernels can address a tensor of four dimensions in groups of four elements.
pub(crate) fn is_vec4(tensor: &Tensor) -> bool {
    let (shape, strides) = (tensor.shape(), tensor.strides());
    let rows = (0..3).all(|d| shape[d] == 1 || strides[d].is_multiple_of(4));
    let last = shape[3].is_multiple_of(4) && strides[3] == 1;
    rows && last && tensor.buffer().1.is_multiple_of(4)
}

/// A copy of a tensor of four dimensions whose rows are filled up with zeros to whole groups.
pub(crate) fn packed(tensor: &Tensor) -> Result<Tensor> {
    let mut shape = tensor.shape().to_vec();
    shape[3] = shape[3].next_multiple_of(4);
    let packed = Tensor::uninit(tensor.gpu(), &shape, tensor.dtype())?;
    ops::copy(tensor, &packed)?;
    Ok(packed)
}

/// The tensor itself where kernels can address it, else a packed copy.
pub(crate) fn vec4(tensor: &Tensor) -> Result<Tensor> {
    if is_vec4(tensor) { Ok(tensor.clone()) } else { packed(tensor) }
}
