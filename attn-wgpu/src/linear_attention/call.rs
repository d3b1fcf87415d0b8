//! Tensors of a call in a form that the kernels can address.

use attn_core::AttentionShape;

use super::Inputs;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::ops;
use crate::rows::{check_device, check_float, check_form};
use crate::tensor::{DType, Tensor};
use crate::vec4::{is_vec4, vec4};

/// Inputs of one call, checked. Rows are whole chunks of four elements.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) shape: AttentionShape,
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) v: Tensor,
    /// `[batch, heads, 1, padded state]`.
    pub(super) kv: Option<Tensor>,
}

impl Call {
    pub(super) fn new(gpu: &Gpu, heads: usize, inputs: Inputs<'_>) -> Result<Call> {
        let shape = check(gpu, heads, inputs)?;
        let kv = match inputs.kv {
            Some(kv) if !is_empty(&shape) => Some(padded_state(kv)?),
            _ => None,
        };
        let [q, k, v] = match is_empty(&shape) {
            true => [inputs.q.clone(), inputs.k.clone(), inputs.v.clone()],
            false => [vec4(inputs.q)?, vec4(inputs.k)?, vec4(inputs.v)?],
        };
        Ok(Call { shape, q, k, v, kv })
    }

    pub(super) fn dtype(&self) -> DType {
        self.q.dtype()
    }

    /// Chunks of four elements of a query, and of a value.
    pub(super) fn dims4(&self) -> [usize; 2] {
        [self.shape.dim_qk.div_ceil(4), self.shape.dim_v.div_ceil(4)]
    }

    /// Elements of a state with padding.
    pub(super) fn state_len(&self) -> usize {
        let [depth4, width4] = self.dims4();
        16 * depth4 * width4
    }

    /// A new tensor `[batch, heads, count, padded state]`.
    pub(super) fn states(&self, count: usize) -> Result<Tensor> {
        let shape = [self.shape.batch, self.shape.heads, count, self.state_len()];
        Tensor::uninit(self.q.gpu(), &shape, DType::F32)
    }
}

/// Whether there is nothing to sum.
pub(super) fn is_empty(shape: &AttentionShape) -> bool {
    [shape.batch, shape.queries, shape.dim_qk, shape.dim_v].contains(&0)
}

/// The shape of a state.
pub(super) fn kv_shape(shape: &AttentionShape) -> [usize; 4] {
    [shape.batch, shape.heads, shape.dim_qk, shape.dim_v]
}

fn check(gpu: &Gpu, heads: usize, inputs: Inputs<'_>) -> Result<AttentionShape> {
    let Inputs { q, k, v, kv } = inputs;
    check_float("q", q.dtype())?;
    for (arg, tensor) in [("q", q), ("k", k), ("v", v)] {
        check_device(arg, tensor, gpu)?;
        check_form(arg, tensor, tensor.shape(), q.dtype())?;
    }
    let shape = AttentionShape::from_shapes(q.shape(), k.shape(), v.shape())?;
    if shape.heads != heads {
        let expected = format!("{heads} heads, one for each slope");
        return Err(attn_core::Error::shape("q", expected, q.shape()).into());
    }
    if shape.keys != shape.queries {
        let expected = format!("{} tokens, as q", shape.queries);
        return Err(attn_core::Error::shape("k", expected, k.shape()).into());
    }
    // Kernels count tokens in 32 bits.
    if shape.queries >= 1 << 30 {
        return Err(attn_core::Error::shape("q", "below 2^30 tokens", q.shape()).into());
    }
    if let Some(kv) = kv {
        check_state("kv", gpu, kv, &shape)?;
    }
    Ok(shape)
}

pub(super) fn check_state(
    arg: &'static str,
    gpu: &Gpu,
    kv: &Tensor,
    shape: &AttentionShape,
) -> Result<()> {
    check_device(arg, kv, gpu)?;
    check_form(arg, kv, &kv_shape(shape), DType::F32)
}

/// A state `[batch, heads, D, E]` with rows and columns filled up to whole chunks, as one row a head.
pub(super) fn padded_state(kv: &Tensor) -> Result<Tensor> {
    let &[batch, heads, d, e] = kv.shape() else { return Ok(kv.clone()) };
    let padded = [batch, heads, d.next_multiple_of(4), e.next_multiple_of(4)];
    let flat = [batch, heads, 1, padded[2] * padded[3]];
    if kv.shape() == padded && is_vec4(kv) && kv.is_contiguous() {
        return kv.reshape(&flat);
    }
    let copy = Tensor::zeros(kv.gpu(), &padded, DType::F32)?;
    ops::copy(kv, &copy.narrow(2, 0, d)?.narrow(3, 0, e)?)?;
    copy.reshape(&flat)
}
