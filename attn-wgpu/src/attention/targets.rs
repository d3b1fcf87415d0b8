//! Where gradients of queries, keys and values go: new tensors, or a caller's.

use attn_core::AttentionShape;

use super::call::check_output;
use super::{Attention, Cotangents, Saved};
use crate::error::Result;
use crate::target::{Target, is_apart};
use crate::tensor::{DType, Tensor};

/// Callers' tensors as kernels write them; none where nobody wants a gradient.
pub(crate) struct Wanted {
    dq: Option<Target>,
    /// Kernels write both.
    dkv: Option<[Target; 2]>,
}

impl Wanted {
    pub(crate) fn dq(&self) -> Option<&Tensor> {
        self.dq.as_ref().map(|dq| &dq.written)
    }

    pub(crate) fn dkv(&self) -> Option<[&Tensor; 2]> {
        self.dkv.as_ref().map(|dkv| dkv.each_ref().map(|target| &target.written))
    }

    /// Copies what was not written directly.
    pub(crate) fn finish(self) -> Result<()> {
        for target in self.dq.into_iter().chain(self.dkv.into_iter().flatten()) {
            target.finish()?;
        }
        Ok(())
    }
}

impl Attention {
    /// New tensors for the gradients by queries, keys and values.
    pub(crate) fn new_targets(&self, saved: &Saved, shape: &AttentionShape) -> Result<[Target; 3]> {
        let new = |shape| Target::new(&self.gpu, shape, saved.q.dtype());
        Ok([new(shape.q())?, new(shape.k())?, new(shape.v())?])
    }

    /// Callers' tensors for them, checked.
    pub(crate) fn wanted(
        &self,
        saved: &Saved,
        cotangents: Cotangents<'_>,
        shape: &AttentionShape,
        [dq, dk, dv]: [Option<&Tensor>; 3],
    ) -> Result<Wanted> {
        let read = [&saved.q, &saved.k, &saved.v, cotangents.out];
        let target = |arg, target: Option<&Tensor>, shape: [usize; 4], beside: &[&Tensor]| {
            let Some(target) = target else { return Ok(None) };
            self.check_device(arg, target)?;
            check_output(arg, target, &shape, saved.q.dtype())?;
            Target::of_rows(arg, target, beside).map(Some)
        };
        let new = |shape| Target::new(&self.gpu, shape, saved.q.dtype());
        let dq = target("dq", dq, shape.q(), &read)?;
        if dk.is_none() && dv.is_none() {
            return Ok(Wanted { dq, dkv: None });
        }
        let dk = target("dk", dk, shape.k(), &read)?.map_or_else(|| new(shape.k()), Ok)?;
        let [q, k, v, d_out] = read;
        let beside = [q, k, v, d_out, &dk.written];
        let dv = target("dv", dv, shape.v(), &beside)?.map_or_else(|| new(shape.v()), Ok)?;
        Ok(Wanted { dq, dkv: Some([dk, dv]) })
    }

    /// The caller's tensor where the kernel can write it, else a new one.
    pub(super) fn sinks_target(
        &self,
        saved: &Saved,
        target: Option<&Tensor>,
        heads: usize,
    ) -> Result<Option<Tensor>> {
        let Some(target) = target else { return Ok(None) };
        if saved.sinks.is_none() {
            let expected = "no target, as there are no sinks";
            return Err(attn_core::Error::config("d_sinks", expected, "one").into());
        }
        self.check_device("d_sinks", target)?;
        check_output("d_sinks", target, &[heads], DType::F32)?;
        let read: Vec<&Tensor> = saved.sinks.iter().collect();
        if target.binding().1 == 0 && is_apart(target, &read) {
            return Ok(Some(target.clone()));
        }
        Tensor::uninit(&self.gpu, &[heads], DType::F32).map(Some)
    }
}
