//! The paper's equations on the host, in f64.
//!
//! For each batch entry and query head, with the decay `lambda = exp(-s_h)` and the state `KV`
//! `[dim_qk, dim_v]`, which starts as 0 or is carried on:
//!
//! ```text
//! KV_t = lambda KV_(t-1) + k_t^T v_t
//! o_t  = q_t KV_t  =  sum_{i <= t} lambda^(t-i) (q_t . k_i) v_i  +  lambda^(t+1) q_t KV_(-1)
//! ```
//!
//! Products are not scaled. The decay is not learned and has no gradient. [`forward`] and
//! [`backward`] go token by token, as written; [`forward_chunked`] and [`backward_chunked`] go block
//! by block, as the device does: the same numbers up to rounding. [`State`] with [`prefill`] and
//! [`decode`] is the streaming form. Padding on the right decays the state: cut it off, and start a
//! new document without a state. In padding on the left, values of 0 change nothing.
//!
//! Query heads may share the keys and values of a head (grouped queries, not in the paper): every
//! query head keeps its own decay and state.
//!
//! [`layer`] composes attention with [`lrpe`], [`srmsnorm`] and [`sglu`] to the layer of TransNormerLLM.

mod attention;
mod chunked;
pub mod layer;
mod linear;
mod lrpe;
mod norm;
mod sglu;
mod state;
mod tensors;

use attn_core::{AttentionShape, Error, Result, dense};
use ndarray::{Array2, Array4, ArrayView2, ArrayView4, s};

pub use attention::{backward, forward};
pub use chunked::{backward_chunked, forward_chunked};
pub use lrpe::{initial_theta, lrpe, lrpe_backward};
pub use norm::{srmsnorm, srmsnorm_backward};
pub use sglu::{Sglu, sglu, sglu_backward};
pub use state::{State, decode, prefill};

use crate::Config;

/// Queries, keys, values and the state before the first token.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries `[batch, heads, tokens, dim_qk]`.
    pub q: ArrayView4<'a, f64>,
    /// Keys `[batch, heads_kv, tokens, dim_qk]`; `heads_kv` divides `heads`.
    pub k: ArrayView4<'a, f64>,
    /// Values `[batch, heads_kv, tokens, dim_v]`.
    pub v: ArrayView4<'a, f64>,
    /// State before the first token `[batch, heads, dim_qk, dim_v]`; 0 where there is none.
    pub kv: Option<ArrayView4<'a, f64>>,
}

impl<'a> Inputs<'a> {
    /// Queries, keys and values of a sequence from its start.
    pub fn new(q: ArrayView4<'a, f64>, k: ArrayView4<'a, f64>, v: ArrayView4<'a, f64>) -> Self {
        Inputs { q, k, v, kv: None }
    }

    /// The same with the state `[batch, heads, dim_qk, dim_v]` before the first token.
    pub fn with_state(self, kv: ArrayView4<'a, f64>) -> Self {
        Inputs { kv: Some(kv), ..self }
    }

    fn check(&self, config: &Config) -> Result<Shape> {
        config.validate()?;
        let shape = dense::Inputs::new(self.q, self.k, self.v).check()?;
        if shape.heads != config.heads {
            let expected = format!("{} heads", config.heads);
            return Err(Error::shape("q", expected, self.q.shape()));
        }
        if shape.keys != shape.queries {
            let expected = format!("{} tokens, as q", shape.queries);
            return Err(Error::shape("k", expected, self.k.shape()));
        }
        let shape = Shape(shape);
        if let Some(kv) = self.kv {
            expect("kv", kv.shape(), &shape.kv())?;
        }
        Ok(shape)
    }
}

/// What [`forward`] computes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// Output `[batch, heads, tokens, dim_v]`.
    pub out: Array4<f64>,
    /// State behind the last token `[batch, heads, dim_qk, dim_v]`; without tokens the one before.
    pub kv: Array4<f64>,
}

/// Derivatives of a loss by what [`forward`] returned.
#[derive(Debug, Clone, Copy)]
pub struct Cotangents<'a> {
    /// By the output `[batch, heads, tokens, dim_v]`.
    pub out: ArrayView4<'a, f64>,
    /// By the state behind the last token `[batch, heads, dim_qk, dim_v]`, where the loss uses it.
    pub kv: Option<ArrayView4<'a, f64>>,
}

impl<'a> Cotangents<'a> {
    /// Of a loss that uses the output alone.
    pub fn new(out: ArrayView4<'a, f64>) -> Self {
        Cotangents { out, kv: None }
    }

    /// The same with the cotangent `[batch, heads, dim_qk, dim_v]` of the last state.
    pub fn with_state(self, kv: ArrayView4<'a, f64>) -> Self {
        Cotangents { kv: Some(kv), ..self }
    }

    fn check(&self, shape: &Shape) -> Result<()> {
        expect("d_out", self.out.shape(), &shape.0.out())?;
        match self.kv {
            Some(kv) => expect("d_kv", kv.shape(), &shape.kv()),
            None => Ok(()),
        }
    }
}

/// Derivatives of a loss by the inputs.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Grads {
    /// By the queries `[batch, heads, tokens, dim_qk]`.
    pub dq: Array4<f64>,
    /// By the keys `[batch, heads_kv, tokens, dim_qk]`.
    pub dk: Array4<f64>,
    /// By the values `[batch, heads_kv, tokens, dim_v]`.
    pub dv: Array4<f64>,
    /// By the state before the first token `[batch, heads, dim_qk, dim_v]`.
    pub d_kv: Array4<f64>,
}

impl Grads {
    fn zeros(shape: &Shape) -> Self {
        Grads {
            dq: Array4::zeros(shape.0.q()),
            dk: Array4::zeros(shape.0.k()),
            dv: Array4::zeros(shape.0.v()),
            d_kv: Array4::zeros(shape.kv()),
        }
    }
}

/// Extents of a call.
struct Shape(AttentionShape);

impl Shape {
    fn kv(&self) -> [usize; 4] {
        [self.0.batch, self.0.heads, self.0.dim_qk, self.0.dim_v]
    }

    /// Batch entry, query head and key head of every state.
    fn heads(&self) -> impl Iterator<Item = [usize; 3]> {
        let (heads, group) = (self.0.heads, self.0.group());
        (0..self.0.batch).flat_map(move |b| (0..heads).map(move |h| [b, h, h / group]))
    }
}

/// Rows of one head, `[tokens, dim]`.
fn head<'a>(x: ArrayView4<'a, f64>, b: usize, h: usize) -> ArrayView2<'a, f64> {
    x.slice_move(s![b, h, .., ..])
}

/// What a head starts with.
fn state_of(kv: Option<ArrayView4<'_, f64>>, shape: &Shape, b: usize, h: usize) -> Array2<f64> {
    match kv {
        Some(kv) => head(kv, b, h).to_owned(),
        None => Array2::zeros((shape.0.dim_qk, shape.0.dim_v)),
    }
}

fn expect(arg: &'static str, got: &[usize], expected: &[usize]) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::shape(arg, format!("{expected:?}"), got)) }
}
