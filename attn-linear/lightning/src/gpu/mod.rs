//! The device's implementation.
//!
//! ```text
//! attn_wgpu::linear_attention   blocks, states, gradients, the next token
//! lrpe.rs                       positions: lightning_lrpe and its derivatives
//! layer.rs, layer/              the layer: projections by attn_wgpu::matmul, norms by attn_wgpu::norm
//! ```

pub(crate) mod kernels;
pub mod layer;
mod lrpe;
mod state;

use attn_wgpu::linear_attention::{
    Cotangents, Grads, Inputs, LinearAttention, MAX_BLOCK, Output, Saved,
};
use attn_wgpu::{Gpu, Result, Tensor};

#[cfg(feature = "bench")]
pub use kernels::kernels;
pub use lrpe::Lrpe;
pub use state::State;

use crate::Config;

/// Lightning attention on a device: linear attention with the decays of a [`Config`], block by block.
///
/// ```text
/// KV_t = exp(-s_h) KV_(t-1) + k_t^T v_t        o_t = q_t KV_t
/// ```
///
/// Products are not scaled. Inputs are f32, f16 or bf16; sums and states are f32.
#[derive(Clone)]
pub struct Lightning {
    config: Config,
    attention: LinearAttention,
}

impl Lightning {
    /// With the decays of `config`. Blocks have at most [`MAX_BLOCK`] tokens on a device.
    ///
    /// # Errors
    /// As [`Config::validate`].
    pub fn new(gpu: &Gpu, config: Config) -> Result<Self> {
        let slopes = config.head_slopes()?;
        let block = config.block.min(MAX_BLOCK);
        Ok(Lightning { attention: LinearAttention::new(gpu, &slopes)?.with_block(block)?, config })
    }

    /// The parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        self.attention.gpu()
    }

    /// The kernels below.
    pub fn attention(&self) -> &LinearAttention {
        &self.attention
    }

    /// Records output and last state, from the start of a sequence or behind the state of the inputs.
    ///
    /// # Errors
    /// [`attn_core::Error`] for shapes, types or devices that do not fit; errors of the device.
    pub fn forward(&self, inputs: Inputs<'_>) -> Result<Output> {
        self.attention.forward(inputs)
    }

    /// [`Lightning::forward`], and what [`Lightning::backward`] needs.
    ///
    /// # Errors
    /// As [`Lightning::forward`].
    pub fn forward_saved(&self, inputs: Inputs<'_>) -> Result<(Output, Saved)> {
        self.attention.forward_saved(inputs)
    }

    /// Records the gradients by queries, keys, values and the first state.
    ///
    /// # Errors
    /// As [`Lightning::forward`].
    pub fn backward(&self, saved: &Saved, cotangents: Cotangents<'_>) -> Result<Grads> {
        self.attention.backward(saved, cotangents)
    }

    /// The output of a prompt, and the state behind it. A long prompt may come in pieces: the first by
    /// this, the others by [`Lightning::decode`], with memory that does not grow.
    ///
    /// # Errors
    /// As [`Lightning::forward`]; [`attn_core::Error::Config`] for inputs with a state.
    pub fn prefill(&self, inputs: Inputs<'_>) -> Result<(Tensor, State)> {
        refuse_state(inputs)?;
        let output = self.forward(inputs)?;
        Ok((output.out, State::new(output.kv, inputs.q.shape()[2])))
    }

    /// The output of the next tokens, one or more, `[batch, heads, new, dim_v]`. The state goes on; where
    /// the call fails it is as before.
    ///
    /// # Errors
    /// As [`Lightning::forward`], and where the state is of other extents.
    pub fn decode(&self, state: &mut State, inputs: Inputs<'_>) -> Result<Tensor> {
        refuse_state(inputs)?;
        let (&[batch, heads, new, _], &[.., dim_v]) = (inputs.q.shape(), inputs.v.shape()) else {
            let expected = "[batch, heads, tokens, dim_qk]";
            return Err(attn_core::Error::shape("q", expected, inputs.q.shape()).into());
        };
        let out = Tensor::uninit(self.gpu(), &[batch, heads, new, dim_v], inputs.q.dtype())?;
        self.attention.decode_into(inputs, state.kv(), &out)?;
        state.advance(new);
        Ok(out)
    }
}

fn refuse_state(inputs: Inputs<'_>) -> Result<()> {
    match inputs.kv {
        None => Ok(()),
        Some(_) => Err(attn_core::Error::config("kv", "none: the state holds it", "some").into()),
    }
}
