//! Tensors of this workspace as tensors of burn.

use attn_wgpu::{DType, Gpu, Result, Tensor};
use burn::tensor::Device;

use crate::apply::{Inputs, apply};
use crate::operation::{Backward, Operation, Spec};

/// A float tensor of `attn-wgpu` as a tensor of burn, by a copy on the device: burn's memory is of its own
/// making, and it has no way to take in a buffer. An operation's outputs need no such copy, since they are
/// written into burn's memory.
///
/// # Errors
/// [`attn_core::Error`] for integers, another rank, and devices that are not the tensor's.
pub fn upload<const D: usize>(tensor: &Tensor, device: &Device) -> Result<burn::tensor::Tensor<D>> {
    if tensor.shape().len() != D {
        let expected = format!("{D} dimensions");
        return Err(attn_core::Error::shape("tensor", expected, tensor.shape()).into());
    }
    if !crate::gpu(device)?.is_same(tensor.gpu()) {
        return Err(
            attn_core::Error::config("device", "the tensor's", format!("{device:?}")).into()
        );
    }
    // A backend is chosen by an input, so there is one.
    let none = burn::tensor::Tensor::<1>::zeros([1], &device.clone().inner());
    let copied = apply(Copied(tensor.clone()), Inputs::new().float(none))?.float::<D>()?;
    Ok(match device.gradient_checkpointing_strategy() {
        Some(strategy) => copied.autodiff().with_gradient_checkpointing_strategy(strategy),
        None => copied,
    })
}

#[derive(Debug)]
struct Copied(Tensor);

impl Operation for Copied {
    type Saved = ();

    fn name(&self) -> &'static str {
        "upload"
    }

    fn outputs(&self, _: &[Spec]) -> Result<Vec<Spec>> {
        if matches!(self.0.dtype(), DType::I32 | DType::U32) {
            let (expected, got) = ("f32, f16 or bf16".into(), self.0.dtype().name().into());
            return Err(attn_core::Error::Dtype { arg: "tensor", expected, got }.into());
        }
        Ok(vec![Spec::new(self.0.shape(), self.0.dtype())])
    }

    fn differentiable(&self) -> usize {
        0
    }

    fn forward(&self, _: &Gpu, _: &[Tensor], outputs: &[Tensor]) -> Result<()> {
        attn_wgpu::ops::copy(&self.0, &outputs[0])
    }

    fn backward(&self, _: &Gpu, _: Backward<'_, ()>) -> Result<()> {
        Ok(())
    }
}
