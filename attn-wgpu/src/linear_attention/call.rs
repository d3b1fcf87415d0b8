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

/// A result: what kernels write, and what the caller gets.
pub(super) struct Target {
    /// Rows of whole chunks; of a state `[batch, heads, 1, padded state]`.
    pub(super) written: Tensor,
    /// The same without padding.
    view: Tensor,
    /// A caller's tensor that is not written directly.
    copied_to: Option<Tensor>,
}

impl Target {
    /// A new tensor `[batch, heads, tokens, dim]`.
    pub(super) fn new(gpu: &Gpu, shape: [usize; 4], dtype: DType) -> Result<Target> {
        let [batch, heads, tokens, dim] = shape;
        let padded = [batch, heads, tokens, dim.next_multiple_of(4)];
        let written = Tensor::uninit(gpu, &padded, dtype)?;
        Ok(Target { view: written.narrow(3, 0, dim)?, written, copied_to: None })
    }

    /// A new state `[batch, heads, D, E]`.
    pub(super) fn state(gpu: &Gpu, shape: [usize; 4]) -> Result<Target> {
        let [batch, heads, d, e] = shape;
        let padded = [batch, heads, d.next_multiple_of(4), e.next_multiple_of(4)];
        let all = Tensor::uninit(gpu, &padded, DType::F32)?;
        let view = all.narrow(2, 0, d)?.narrow(3, 0, e)?;
        let written = all.reshape(&[batch, heads, 1, padded[2] * padded[3]])?;
        Ok(Target { written, view, copied_to: None })
    }

    /// A caller's tensor of the form of [`Target::new`].
    pub(super) fn of(out: &Tensor) -> Result<Target> {
        refuse_repeats("out", out)?;
        if is_vec4(out) {
            return Ok(Target { written: out.clone(), view: out.clone(), copied_to: None });
        }
        let target = Target::new(out.gpu(), extents(out), out.dtype())?;
        Ok(Target { copied_to: Some(out.clone()), ..target })
    }

    /// A caller's state. It is copied to, as the state that a call begins with may be the same one.
    pub(super) fn of_state(kv: &Tensor) -> Result<Target> {
        refuse_repeats("kv", kv)?;
        let target = Target::state(kv.gpu(), extents(kv))?;
        Ok(Target { copied_to: Some(kv.clone()), ..target })
    }

    /// Writes zeros, or the elements of `from`.
    pub(super) fn fill(&self, from: Option<&Tensor>) -> Result<()> {
        if let Some(from) = from {
            return ops::copy(from, &self.view);
        }
        let all = &self.written;
        ops::copy(&Tensor::zeros(all.gpu(), all.shape(), all.dtype())?, all)
    }

    /// What the caller gets, once the kernels are recorded.
    pub(super) fn finish(self) -> Result<Tensor> {
        match self.copied_to {
            Some(out) => {
                ops::copy(&self.view, &out)?;
                Ok(out)
            }
            None => self.view.contiguous(),
        }
    }
}

/// The extents of a tensor that was checked to have four.
fn extents(tensor: &Tensor) -> [usize; 4] {
    let mut shape = [1; 4];
    shape.iter_mut().zip(tensor.shape()).for_each(|(to, from)| *to = *from);
    shape
}

fn refuse_repeats(arg: &'static str, out: &Tensor) -> Result<()> {
    let repeats = out.shape().iter().zip(out.strides()).any(|(&n, &s)| n > 1 && s == 0);
    if repeats {
        let expected = "a tensor without repeated elements";
        return Err(attn_core::Error::shape(arg, expected, out.shape()).into());
    }
    Ok(())
}
