//! The mechanisms as functions of burn's tensors.

mod aaren;
mod attention;
mod blockrank;
mod dare;
mod flowformer;
mod lightning;
mod plan;
mod routing;
mod titans;
mod transfer;

use std::sync::{Mutex, PoisonError};

use attn_core::AttentionShape;
use attn_wgpu::{DType, Gpu, Result, Tensor};

pub use self::aaren::Aaren;
pub use self::attention::{Attended, Attention};
pub use self::blockrank::{BlockRank, Segments};
pub use self::dare::{Dare, Embeddings, Features, Requests};
pub use self::flowformer::Flowformer;
pub use self::lightning::{Continued, Lightning};
pub use self::plan::{Plan, PlanAttention};
pub use self::routing::{Centroids, Routing, Trained};
pub use self::titans::{MemoryInputs, Remembered, Titans};
pub use self::transfer::upload;

use crate::operation::Spec;

/// Something that belongs to a device and is made when it is first needed there.
pub struct OnGpu<T> {
    made: Mutex<Option<(Gpu, T)>>,
}

impl<T> std::fmt::Debug for OnGpu<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnGpu").finish_non_exhaustive()
    }
}

impl<T> Default for OnGpu<T> {
    fn default() -> Self {
        OnGpu { made: Mutex::new(None) }
    }
}

impl<T: Clone> OnGpu<T> {
    /// What was made for `gpu`, by `make` if there is nothing yet. One is kept, of the last device.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn get(&self, gpu: &Gpu, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        match &*made {
            Some((of, own)) if of.is_same(gpu) => Ok(own.clone()),
            _ => Ok(made.insert((gpu.clone(), make()?)).1.clone()),
        }
    }
}

/// Checks queries, keys and values, and describes output and log-sum-exp.
fn attention_outputs(q: &Spec, k: &Spec, v: &Spec) -> Result<(AttentionShape, [Spec; 2])> {
    let shape = AttentionShape::from_shapes(&q.shape, &k.shape, &v.shape)?;
    for (arg, spec) in [("q", q), ("k", k), ("v", v)] {
        if !spec.is_float() || spec.dtype != q.dtype {
            let got = spec.dtype.name().into();
            let expected = "f32, f16 or bf16, as q".into();
            return Err(attn_core::Error::Dtype { arg, expected, got }.into());
        }
    }
    Ok((shape, [Spec::new(shape.out(), q.dtype), Spec::new(shape.lse(), DType::F32)]))
}

/// Integers as the words that kernels read.
fn words(x: &Tensor) -> Result<Tensor> {
    let (buffer, offset) = x.buffer();
    Tensor::from_buffer(x.gpu(), buffer.clone(), offset, x.shape(), x.strides(), DType::U32)
}
