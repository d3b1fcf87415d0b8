//! Causal linear attention with a fixed decay of each head, in blocks, with states in and out.
//!
//! For each batch entry and query head, with the decay `l = exp(-slope)` and the state `KV` `[D, E]`,
//! which starts as 0 or is carried on:
//!
//! ```text
//! KV_t = l KV_(t-1) + k_t^T v_t        o_t = q_t KV_t = sum_{i <= t} l^(t-i) (q_t . k_i) v_i + l^(t+1) q_t KV_(-1)
//! ```
//!
//! There is no scale, and with slope 0 no decay. The kernels go block by block of [`DEFAULT_BLOCK`]
//! tokens: `O = ((Q K^T) * M) V + F Q KV` with `M[r, p] = l^(r-p)` for `p <= r`, `F` the powers
//! `l^(r+1)`, and `KV` the state before the block. The cost is linear in the number of tokens, and
//! results do not depend on the size of blocks or on where a sequence is cut, up to rounding.
//!
//! **Types.** Queries, keys and values are f32, f16 or bf16, alike; states and sums are f32. Powers come
//! from a table that the host computes in f64, never from an exponential of the device or a quotient
//! of powers.
//!
//! **Grouped queries.** Query heads may share keys and values; every query head has its own state.
//!
//! **Causal in every bit.** A token changes no output before it, also where it is no number.

mod backward;
mod call;
#[cfg(feature = "bench")]
pub(crate) mod catalogue;
mod decode;
mod forward;
mod sweep;
mod variant;

use std::sync::Arc;

use crate::error::Result;
use crate::gpu::Gpu;
use crate::tensor::Tensor;

/// Tokens of a block.
pub const DEFAULT_BLOCK: usize = 64;

/// Most tokens of a block.
pub const MAX_BLOCK: usize = 1024;

/// Queries, keys, values and the state before the first token. Any strides, but the last dimension of
/// queries, keys and values should be contiguous; else they are copied.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries `[batch, heads, tokens, dim_qk]`.
    pub q: &'a Tensor,
    /// Keys `[batch, heads_kv, tokens, dim_qk]`; `heads_kv` divides `heads`.
    pub k: &'a Tensor,
    /// Values `[batch, heads_kv, tokens, dim_v]`.
    pub v: &'a Tensor,
    /// State before the first token `[batch, heads, dim_qk, dim_v]`, f32; 0 where there is none.
    pub kv: Option<&'a Tensor>,
}

impl<'a> Inputs<'a> {
    /// Queries, keys and values of a sequence from its start.
    pub fn new(q: &'a Tensor, k: &'a Tensor, v: &'a Tensor) -> Self {
        Inputs { q, k, v, kv: None }
    }

    /// The same with the state `[batch, heads, dim_qk, dim_v]` before the first token.
    pub fn with_state(self, kv: &'a Tensor) -> Self {
        Inputs { kv: Some(kv), ..self }
    }
}

/// What [`LinearAttention::forward`] computes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Output {
    /// Output `[batch, heads, tokens, dim_v]`, of the type of the queries.
    pub out: Tensor,
    /// State behind the last token `[batch, heads, dim_qk, dim_v]`, f32.
    pub kv: Tensor,
}

/// What [`LinearAttention::backward`] needs of a forward pass: its inputs, and the state before each
/// block.
#[derive(Clone)]
pub struct Saved {
    call: call::Call,
    /// `[batch, heads, blocks, padded state]`.
    states: Option<Tensor>,
}

/// Derivatives of a loss by what [`LinearAttention::forward`] returned.
#[derive(Debug, Clone, Copy)]
pub struct Cotangents<'a> {
    /// By the output `[batch, heads, tokens, dim_v]`, of its type.
    pub out: &'a Tensor,
    /// By the state behind the last token `[batch, heads, dim_qk, dim_v]`, where the loss uses it.
    pub kv: Option<&'a Tensor>,
}

impl<'a> Cotangents<'a> {
    /// Of a loss that uses the output alone.
    pub fn new(out: &'a Tensor) -> Self {
        Cotangents { out, kv: None }
    }

    /// The same with the cotangent `[batch, heads, dim_qk, dim_v]` of the last state.
    pub fn with_state(self, kv: &'a Tensor) -> Self {
        Cotangents { kv: Some(kv), ..self }
    }
}

/// Derivatives of a loss by the inputs, of their types.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Grads {
    /// By the queries `[batch, heads, tokens, dim_qk]`.
    pub dq: Tensor,
    /// By the keys `[batch, heads_kv, tokens, dim_qk]`.
    pub dk: Tensor,
    /// By the values `[batch, heads_kv, tokens, dim_v]`.
    pub dv: Tensor,
    /// By the state before the first token `[batch, heads, dim_qk, dim_v]`, f32.
    pub d_kv: Tensor,
}

/// Where [`LinearAttention::backward_into`] writes gradients, of the shapes and types of [`Grads`]; what has
/// no target is not computed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Targets<'a> {
    /// By the queries.
    pub dq: Option<&'a Tensor>,
    /// By the keys.
    pub dk: Option<&'a Tensor>,
    /// By the values.
    pub dv: Option<&'a Tensor>,
    /// By the state before the first token.
    pub d_kv: Option<&'a Tensor>,
}

/// Causal linear attention with a decay for each head.
#[derive(Clone)]
pub struct LinearAttention {
    gpu: Gpu,
    slopes: Arc<[f64]>,
    block: usize,
    /// `exp(-slope n)` for n up to the size of a block, `[heads, block + 1]`.
    powers: Tensor,
}

impl LinearAttention {
    /// With the decay `exp(-slope)` of each query head; 0 is plain linear attention.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] for slopes that are negative or not finite, or none at all.
    pub fn new(gpu: &Gpu, slopes: &[f64]) -> Result<Self> {
        if slopes.is_empty() {
            return Err(attn_core::Error::config("slopes", "one for each head", "none").into());
        }
        if let Some(slope) = slopes.iter().find(|slope| !(slope.is_finite() && **slope >= 0.0)) {
            return Err(attn_core::Error::config("slopes", "numbers of at least 0", slope).into());
        }
        let powers = powers(gpu, slopes, DEFAULT_BLOCK)?;
        Ok(LinearAttention {
            gpu: gpu.clone(),
            slopes: slopes.into(),
            block: DEFAULT_BLOCK,
            powers,
        })
    }

    /// The same in blocks of `block` tokens. Results differ by rounding alone.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] for blocks that are not of 1 to [`MAX_BLOCK`] tokens.
    pub fn with_block(self, block: usize) -> Result<Self> {
        if !(1..=MAX_BLOCK).contains(&block) {
            let expected = format!("1 to {MAX_BLOCK}");
            return Err(attn_core::Error::config("block", expected, block).into());
        }
        let powers = powers(&self.gpu, &self.slopes, block)?;
        Ok(LinearAttention { block, powers, ..self })
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The slope of each head.
    pub fn slopes(&self) -> &[f64] {
        &self.slopes
    }

    /// Tokens of a block.
    pub fn block(&self) -> usize {
        self.block
    }
}

/// Each is one exponential of an exact product: a product of rounded decays would be off by as many
/// roundings as it has factors.
fn powers(gpu: &Gpu, slopes: &[f64], block: usize) -> Result<Tensor> {
    let of = |slope: &f64| {
        let slope = *slope;
        (0..=block).map(move |n| (-slope * n as f64).exp() as f32)
    };
    let table: Vec<f32> = slopes.iter().flat_map(of).collect();
    Tensor::from_slice(gpu, &table, &[slopes.len(), block + 1])
}
