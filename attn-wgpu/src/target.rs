//! Results: what kernels write, and what a caller gets.

use crate::error::Result;
use crate::gpu::Gpu;
use crate::ops;
use crate::rows;
use crate::tensor::{DType, Tensor};
use crate::vec4::is_vec4;

/// A result of four dimensions.
pub(crate) struct Target {
    /// Rows of whole groups of four elements; of a state `[batch, heads, 1, padded state]`.
    pub(crate) written: Tensor,
    /// The same without padding.
    pub(crate) view: Tensor,
    /// A caller's tensor that is not written directly.
    copied_to: Option<Tensor>,
}

impl Target {
    /// A new tensor `[batch, heads, tokens, dim]`.
    pub(crate) fn new(gpu: &Gpu, shape: [usize; 4], dtype: DType) -> Result<Target> {
        let [batch, heads, tokens, dim] = shape;
        let padded = [batch, heads, tokens, dim.next_multiple_of(4)];
        let written = Tensor::uninit(gpu, &padded, dtype)?;
        Ok(Target { view: written.narrow(3, 0, dim)?, written, copied_to: None })
    }

    /// A new state `[batch, heads, D, E]`, f32.
    pub(crate) fn state(gpu: &Gpu, shape: [usize; 4]) -> Result<Target> {
        let [batch, heads, d, e] = shape;
        let padded = [batch, heads, d.next_multiple_of(4), e.next_multiple_of(4)];
        let all = Tensor::uninit(gpu, &padded, DType::F32)?;
        let view = all.narrow(2, 0, d)?.narrow(3, 0, e)?;
        let written = all.reshape(&[batch, heads, 1, padded[2] * padded[3]])?;
        Ok(Target { written, view, copied_to: None })
    }

    /// A caller's tensor of the form of [`Target::new`], whose shape was checked. It is written directly
    /// where kernels can address it, and where no binding of it meets one of `beside`, which the same
    /// kernels bind.
    pub(crate) fn of(arg: &'static str, out: &Tensor, beside: &[&Tensor]) -> Result<Target> {
        let direct = is_vec4(out) && is_apart(out, beside);
        Target::maybe_direct(arg, out, direct)
    }

    /// [`Target::of`] for kernels that write rows without gaps.
    pub(crate) fn of_rows(arg: &'static str, out: &Tensor, beside: &[&Tensor]) -> Result<Target> {
        let direct = is_vec4(out) && out.is_contiguous() && is_apart(out, beside);
        Target::maybe_direct(arg, out, direct)
    }

    fn maybe_direct(arg: &'static str, out: &Tensor, direct: bool) -> Result<Target> {
        refuse_repeats(arg, out)?;
        if direct {
            return Ok(Target { written: out.clone(), view: out.clone(), copied_to: None });
        }
        let target = Target::new(out.gpu(), extents(out), out.dtype())?;
        Ok(Target { copied_to: Some(out.clone()), ..target })
    }

    /// A caller's tensor of the form of [`Target::state`], as [`Target::of`].
    pub(crate) fn of_state(arg: &'static str, kv: &Tensor, beside: &[&Tensor]) -> Result<Target> {
        refuse_repeats(arg, kv)?;
        let [batch, heads, d, e] = extents(kv);
        let whole = d.is_multiple_of(4) && is_vec4(kv) && kv.is_contiguous();
        if whole && is_apart(kv, beside) {
            let written = kv.reshape(&[batch, heads, 1, d * e])?;
            return Ok(Target { written, view: kv.clone(), copied_to: None });
        }
        let target = Target::state(kv.gpu(), [batch, heads, d, e])?;
        Ok(Target { copied_to: Some(kv.clone()), ..target })
    }

    /// Writes zeros, or the elements of `from`.
    pub(crate) fn fill(&self, from: Option<&Tensor>) -> Result<()> {
        if let Some(from) = from {
            return ops::copy(from, &self.view);
        }
        let all = &self.written;
        ops::convert_into(&Tensor::zeros(all.gpu(), all.shape(), all.dtype())?, all)
    }

    /// What the caller gets, once the kernels are recorded.
    pub(crate) fn finish(self) -> Result<Tensor> {
        match self.copied_to {
            Some(out) => {
                ops::convert_into(&self.view, &out)?;
                Ok(out)
            }
            None => self.view.contiguous(),
        }
    }
}

/// Checks a caller's tensor that [`write_rows`] is to fill: floats of any type, on `gpu`, of this shape.
///
/// # Errors
/// [`attn_core::Error`] naming `arg`.
pub fn check_target(arg: &'static str, out: &Tensor, gpu: &Gpu, shape: &[usize]) -> Result<()> {
    rows::check_float(arg, out.dtype())?;
    rows::check_device(arg, out, gpu)?;
    rows::check_form(arg, out, shape, out.dtype())?;
    refuse_repeats(arg, out)
}

/// Fills a tensor of floats by kernels that write contiguous rows of f32, filled up to whole groups of four
/// elements, from the beginning of a binding on. `write` gets the tensor itself where it is like that and
/// no binding of it meets one of `beside`, which the same kernels bind; else a new one, whose elements are
/// converted into `out`. Returns what holds the elements in f32, without padding.
///
/// # Errors
/// [`attn_core::Error`] for tensors of integers or of repeated elements, and halves whose layout
/// [`copy`](crate::ops::copy) does not take; those of `write`.
pub fn write_rows(
    out: &Tensor,
    beside: &[&Tensor],
    write: impl FnOnce(&Tensor) -> Result<()>,
) -> Result<Tensor> {
    check_target("out", out, out.gpu(), out.shape())?;
    if out.is_empty() {
        return Tensor::uninit(out.gpu(), out.shape(), DType::F32);
    }
    let mut shape = out.shape().to_vec();
    let width = shape.pop().unwrap_or(1);
    let whole = width.is_multiple_of(4) && out.is_contiguous() && out.binding().1 == 0;
    if out.dtype() == DType::F32 && whole && is_apart(out, beside) {
        write(out)?;
        return Ok(out.clone());
    }
    let last = shape.len();
    shape.push(width.next_multiple_of(4));
    let written = Tensor::uninit(out.gpu(), &shape, DType::F32)?;
    write(&written)?;
    let written = written.narrow(last, 0, width)?;
    ops::convert_into(&written, out)?;
    Ok(written)
}

/// Whether a kernel may bind `out` to write beside the others: bindings begin at aligned offsets, so those
/// of neighbours can meet where their elements do not.
pub(crate) fn is_apart(out: &Tensor, others: &[&Tensor]) -> bool {
    let ours = out.binding().0;
    others.iter().all(|other| !ours.meets(&other.binding().0))
}

/// The extents of a tensor that was checked to have four.
fn extents(tensor: &Tensor) -> [usize; 4] {
    let mut shape = [1; 4];
    shape.iter_mut().zip(tensor.shape()).for_each(|(to, from)| *to = *from);
    shape
}

pub(crate) fn refuse_repeats(arg: &'static str, out: &Tensor) -> Result<()> {
    let repeats = out.shape().iter().zip(out.strides()).any(|(&n, &s)| n > 1 && s == 0);
    if repeats {
        let expected = "a tensor without repeated elements";
        return Err(attn_core::Error::shape(arg, expected, out.shape()).into());
    }
    Ok(())
}
