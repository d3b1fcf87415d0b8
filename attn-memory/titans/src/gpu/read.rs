//! Reading from a memory without storing.

use attn_core::Error;
use attn_wgpu::matmul::{Epilogue, matmul_with};
use attn_wgpu::{DType, Result, Tensor, ops};

use super::{State, Titans};
use crate::Activation;

impl Titans {
    /// `M(W; q)` `[batch, heads, tokens, dim_v]` of the state's weights, for any number of queries
    /// `[batch, heads, tokens, dim_qk]`: nothing is stored. Of the queries' type.
    ///
    /// # Errors
    /// [`attn_core::Error`] for queries and a state that do not fit together; those of the device.
    pub fn read(&self, q: &Tensor, state: &State) -> Result<Tensor> {
        let &[batch, _, tokens, _] = q.shape() else {
            let expected = "[batch, heads, tokens, dim_qk]";
            return Err(Error::shape("q", expected, q.shape()).into());
        };
        self.check_float("q", q, &[batch, self.config.heads, tokens, self.config.dim_qk])?;
        self.check_state(state, batch)?;
        ops::convert(&self.read_from(q, &state.w)?, q.dtype())
    }

    /// The same with weights of this memory, by layer and padded as a state's, in f32.
    pub(super) fn read_from(&self, q: &Tensor, weights: &[Tensor]) -> Result<Tensor> {
        let mut rows = ops::convert(q, DType::F32)?;
        let last = weights.len().saturating_sub(1);
        for (i, (w, [depth, columns])) in weights.iter().zip(self.config.layers()).enumerate() {
            let activation = match self.config.activation {
                _ if i == last => attn_wgpu::Activation::None,
                Activation::Silu => attn_wgpu::Activation::Silu,
                Activation::Gelu => attn_wgpu::Activation::Gelu,
            };
            let w = w.narrow(2, 0, depth)?.narrow(3, 0, columns)?;
            rows = matmul_with(&rows, &w, &Epilogue::new().with_activation(activation))?;
        }
        Ok(rows)
    }
}
