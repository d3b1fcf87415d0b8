//! Compiling what a model's attention needs before its first call.

use crate::attention::{Attention, Inputs};
use crate::error::Result;
use crate::gpu::WarmUp;
use crate::tensor::{DType, Tensor};

use super::variant::FEW_QUERIES;

/// What the attention calls of one model have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub heads_kv: usize,
    /// Head dimension of queries and keys.
    pub dim_qk: usize,
    /// Head dimension of values.
    pub dim_v: usize,
    /// Type of queries, keys and values.
    pub dtype: DType,
}

impl Attention {
    /// Compiles the kernels of a prompt and of a single new query for inputs like these, and runs
    /// them once on a few zeros. Explicit masks and masks of documents have to fit any number of
    /// keys for it; others, sinks and optional results can be warmed by calls in [`Gpu::warm_up`].
    ///
    /// [`Gpu::warm_up`]: crate::Gpu::warm_up
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn warm_up(&self, heads: &Heads) -> Result<WarmUp> {
        let Heads { heads, heads_kv, dim_qk, dim_v, dtype } = *heads;
        let gpu = &self.gpu;
        gpu.warm_up(|| {
            let keys = FEW_QUERIES + 1;
            let k = Tensor::zeros(gpu, &[1, heads_kv, keys, dim_qk], dtype)?;
            let v = Tensor::zeros(gpu, &[1, heads_kv, keys, dim_v], dtype)?;
            for queries in [keys, 1] {
                let q = Tensor::zeros(gpu, &[1, heads, queries, dim_qk], dtype)?;
                self.forward(Inputs::new(&q, &k, &v))?;
            }
            Ok(())
        })
    }
}
