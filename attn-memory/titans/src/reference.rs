//! The paper's equations on the host, in f64.
//!
//! For each batch entry and head, with the memory's weights W, their momentum S, and W* the weights at the
//! start of the current chunk of `chunk` tokens:
//!
//! ```text
//! M(W; x) = x W_1                      depth 1
//!         = sg(x W_1) W_2              depth 2, sg the activation
//! u_t = c d/dW |M(W*; k_t) - v_t|^2 / 2
//! S_t = eta_t S_(t-1) - theta_t u_t
//! W_t = (1 - alpha_t) W_(t-1) + S_t
//! y_t = M(W_t; q_t)                    read after storing the same token
//! ```
//!
//! theta is the step, eta the momentum, alpha what is forgotten. With chunks of one token this is the exact
//! online rule; larger ones take all gradients at W*, which makes a chunk parallel.
//!
//! [`forward`] and [`backward`] go token by token, as written; [`forward_chunked`] and
//! [`backward_chunked`] take a chunk at once, as the device does: the same numbers up to rounding. Both
//! derivatives are exact, with those of the inner gradients, and go through a [`State`] at any token.
//! [`layer`] builds a layer on the memory: alone, or as context, gate or layer beside attention.

mod chunk;
mod head;
pub mod layer;
mod network;
mod products;
mod state;
mod token;

use attn_core::{Error, Result};
use ndarray::{Array2, Array3, Array4, ArrayView2, ArrayView3, ArrayView4, Axis, s};

use head::{Head, HeadGrads};
pub use state::State;
use state::{Adjoint, Memory, check_layers};

use crate::Config;

/// Queries, keys, values and gates.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries `[batch, heads, tokens, dim_qk]`.
    pub q: ArrayView4<'a, f64>,
    /// Keys `[batch, heads, tokens, dim_qk]`.
    pub k: ArrayView4<'a, f64>,
    /// Values `[batch, heads, tokens, dim_v]`.
    pub v: ArrayView4<'a, f64>,
    /// Steps `[batch, heads, tokens]`.
    pub theta: ArrayView3<'a, f64>,
    /// Momentum `[batch, heads, tokens]`.
    pub eta: ArrayView3<'a, f64>,
    /// What is forgotten `[batch, heads, tokens]`.
    pub alpha: ArrayView3<'a, f64>,
}

impl Inputs<'_> {
    fn check(&self, state: &State, config: &Config) -> Result<[usize; 3]> {
        let (batch, heads, tokens, _) = self.q.dim();
        config.validate()?;
        let shape = [batch, config.heads, tokens];
        expect("q", self.q.shape(), &[batch, config.heads, tokens, config.dim_qk])?;
        expect("k", self.k.shape(), &[batch, heads, tokens, config.dim_qk])?;
        expect("v", self.v.shape(), &[batch, heads, tokens, config.dim_v])?;
        for (arg, gate) in [("theta", self.theta), ("eta", self.eta), ("alpha", self.alpha)] {
            expect(arg, gate.shape(), &shape)?;
        }
        state.check(batch, config)?;
        Ok(shape)
    }

    fn head(&self, b: usize, h: usize) -> Head<'_> {
        Head {
            q: self.q.slice(s![b, h, .., ..]),
            k: self.k.slice(s![b, h, .., ..]),
            v: self.v.slice(s![b, h, .., ..]),
            theta: self.theta.slice(s![b, h, ..]),
            eta: self.eta.slice(s![b, h, ..]),
            alpha: self.alpha.slice(s![b, h, ..]),
        }
    }
}

/// What [`forward`] computes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// What was read `[batch, heads, tokens, dim_v]`.
    pub y: Array4<f64>,
    /// Behind the last token.
    pub state: State,
}

/// Derivatives of a loss by what [`forward`] returned; those by the state are by layer
/// `[batch, heads, in, out]`, where the loss uses it.
#[derive(Debug, Clone, Copy)]
pub struct Cotangents<'a> {
    /// By what was read `[batch, heads, tokens, dim_v]`.
    pub y: ArrayView4<'a, f64>,
    /// By the last weights.
    pub w: Option<&'a [Array4<f64>]>,
    /// By the last momentum.
    pub s: Option<&'a [Array4<f64>]>,
    /// By the weights at the start of the last chunk.
    pub chunk_start: Option<&'a [Array4<f64>]>,
}

impl<'a> Cotangents<'a> {
    /// Of a loss that uses what was read alone.
    pub fn new(y: ArrayView4<'a, f64>) -> Self {
        Cotangents { y, w: None, s: None, chunk_start: None }
    }

    /// The same with cotangents of the last weights and of the last momentum.
    pub fn with_state(self, w: &'a [Array4<f64>], s: &'a [Array4<f64>]) -> Self {
        Cotangents { w: Some(w), s: Some(s), ..self }
    }

    /// The same with the cotangents of the weights at the start of the last chunk.
    pub fn with_chunk_start(self, chunk_start: &'a [Array4<f64>]) -> Self {
        Cotangents { chunk_start: Some(chunk_start), ..self }
    }

    fn head(&self, b: usize, h: usize, config: &Config) -> Adjoint {
        let part = |layers: Option<&[Array4<f64>]>| match layers {
            Some(layers) => {
                layers.iter().map(|layer| layer.slice(s![b, h, .., ..]).to_owned()).collect()
            }
            None => config.layers().into_iter().map(Array2::zeros).collect(),
        };
        Adjoint { w: part(self.w), s: part(self.s), start: part(self.chunk_start) }
    }
}

/// Derivatives of a loss by the inputs and by the state before the first token.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Grads {
    /// By the queries `[batch, heads, tokens, dim_qk]`.
    pub dq: Array4<f64>,
    /// By the keys `[batch, heads, tokens, dim_qk]`.
    pub dk: Array4<f64>,
    /// By the values `[batch, heads, tokens, dim_v]`.
    pub dv: Array4<f64>,
    /// By the steps `[batch, heads, tokens]`.
    pub d_theta: Array3<f64>,
    /// By the momentum `[batch, heads, tokens]`.
    pub d_eta: Array3<f64>,
    /// By what is forgotten `[batch, heads, tokens]`.
    pub d_alpha: Array3<f64>,
    /// By the first weights, by layer `[batch, heads, in, out]`.
    pub d_w: Vec<Array4<f64>>,
    /// By the first momentum.
    pub d_s: Vec<Array4<f64>>,
    /// By the weights at the start of the first chunk; 0 where the first token starts it, since they are
    /// the first weights then.
    pub d_chunk_start: Vec<Array4<f64>>,
}

impl Grads {
    /// By the learned weights that [`State::new`] took, by layer `[heads, in, out]`: sums over the batch.
    pub fn d_learned(&self) -> Vec<Array3<f64>> {
        let all = self.d_w.iter().zip(&self.d_chunk_start);
        all.map(|(w, start)| (w + start).sum_axis(Axis(0))).collect()
    }
}

/// The recurrence from `state`, token by token.
///
/// # Errors
/// [`Error::Config`] for parameters out of range, [`Error::Shape`] and [`Error::Data`] for tensors and a
/// state that do not fit together.
pub fn forward(inputs: Inputs<'_>, state: &State, config: &Config) -> Result<Output> {
    run(inputs, state, config, token::forward)
}

/// [`forward`] in the dual form, chunk by chunk: the same numbers up to rounding.
///
/// # Errors
/// As [`forward`].
pub fn forward_chunked(inputs: Inputs<'_>, state: &State, config: &Config) -> Result<Output> {
    run(inputs, state, config, chunk::forward)
}

/// What was read with the next tokens, one or more; the state moves behind them. Where the call fails, it is
/// as before.
///
/// # Errors
/// As [`forward`].
pub fn decode(state: &mut State, inputs: Inputs<'_>, config: &Config) -> Result<Array4<f64>> {
    let output = forward_chunked(inputs, state, config)?;
    *state = output.state;
    Ok(output.y)
}

/// `M(W; q)` `[batch, heads, tokens, dim_v]` of the state's weights, for any number of queries
/// `[batch, heads, tokens, dim_qk]`: nothing is stored.
///
/// # Errors
/// As [`forward`].
pub fn read(q: ArrayView4<'_, f64>, state: &State, config: &Config) -> Result<Array4<f64>> {
    let (batch, _, tokens, _) = q.dim();
    state.check(batch, config)?;
    expect("q", q.shape(), &[batch, config.heads, tokens, config.dim_qk])?;
    let mut y = Array4::zeros((batch, config.heads, tokens, config.dim_v));
    for [b, h] in heads([batch, config.heads]) {
        let out = network::read(&state.head(b, h).w, q.slice(s![b, h, .., ..]), config);
        y.slice_mut(s![b, h, .., ..]).assign(&out);
    }
    Ok(y)
}

/// Vector-Jacobian product of [`read`]: by the queries, and by the state's weights.
///
/// # Errors
/// As [`read`], also for the cotangent `d_y` `[batch, heads, tokens, dim_v]`.
pub fn read_backward(
    q: ArrayView4<'_, f64>,
    state: &State,
    config: &Config,
    d_y: ArrayView4<'_, f64>,
) -> Result<(Array4<f64>, Vec<Array4<f64>>)> {
    let (batch, _, tokens, _) = q.dim();
    state.check(batch, config)?;
    expect("q", q.shape(), &[batch, config.heads, tokens, config.dim_qk])?;
    expect("d_y", d_y.shape(), &[batch, config.heads, tokens, config.dim_v])?;
    let mut dq = Array4::zeros(q.raw_dim());
    let mut d_w: Vec<_> = state.w().iter().map(|w| Array4::zeros(w.raw_dim())).collect();
    for [b, h] in heads([batch, config.heads]) {
        let rows = s![b, h, .., ..];
        let weights = state.head(b, h).w;
        let (by_q, by_w) = network::read_backward(&weights, q.slice(rows), d_y.slice(rows), config);
        dq.slice_mut(rows).assign(&by_q);
        for (all, one) in d_w.iter_mut().zip(&by_w) {
            all.slice_mut(rows).assign(one);
        }
    }
    Ok((dq, d_w))
}

/// Vector-Jacobian product of [`forward`].
///
/// # Errors
/// As [`forward`], also for cotangents.
pub fn backward(
    inputs: Inputs<'_>,
    state: &State,
    config: &Config,
    cotangents: Cotangents<'_>,
) -> Result<Grads> {
    run_backward(inputs, state, config, cotangents, token::backward)
}

/// Vector-Jacobian product of [`forward_chunked`].
///
/// # Errors
/// As [`backward`].
pub fn backward_chunked(
    inputs: Inputs<'_>,
    state: &State,
    config: &Config,
    cotangents: Cotangents<'_>,
) -> Result<Grads> {
    run_backward(inputs, state, config, cotangents, chunk::backward)
}

fn run(
    inputs: Inputs<'_>,
    state: &State,
    config: &Config,
    form: impl Fn(&Head<'_>, &mut Memory, &Config) -> Array2<f64>,
) -> Result<Output> {
    let [batch, heads_, tokens] = inputs.check(state, config)?;
    let mut y = Array4::zeros((batch, heads_, tokens, config.dim_v));
    let mut last = state.clone();
    for [b, h] in heads([batch, heads_]) {
        let mut memory = state.head(b, h);
        y.slice_mut(s![b, h, .., ..]).assign(&form(&inputs.head(b, h), &mut memory, config));
        last.set(b, h, &memory);
    }
    last.advance(tokens, config);
    Ok(Output { y, state: last })
}

fn run_backward(
    inputs: Inputs<'_>,
    state: &State,
    config: &Config,
    cotangents: Cotangents<'_>,
    form: impl Fn(&Head<'_>, Memory, ArrayView2<'_, f64>, &mut Adjoint, &Config) -> HeadGrads,
) -> Result<Grads> {
    let [batch, heads_, tokens] = inputs.check(state, config)?;
    expect("cotangents.y", cotangents.y.shape(), &[batch, heads_, tokens, config.dim_v])?;
    for (arg, layers) in [
        ("cotangents.w", cotangents.w),
        ("cotangents.s", cotangents.s),
        ("cotangents.chunk_start", cotangents.chunk_start),
    ] {
        layers.map_or(Ok(()), |layers| check_layers(arg, layers, batch, config))?;
    }
    let zeros = || -> Vec<Array4<f64>> {
        config.layers().iter().map(|&[m, n]| Array4::zeros((batch, heads_, m, n))).collect()
    };
    let mut all = Grads {
        dq: Array4::zeros(inputs.q.raw_dim()),
        dk: Array4::zeros(inputs.k.raw_dim()),
        dv: Array4::zeros(inputs.v.raw_dim()),
        d_theta: Array3::zeros(inputs.theta.raw_dim()),
        d_eta: Array3::zeros(inputs.theta.raw_dim()),
        d_alpha: Array3::zeros(inputs.theta.raw_dim()),
        d_w: zeros(),
        d_s: zeros(),
        d_chunk_start: zeros(),
    };
    for [b, h] in heads([batch, heads_]) {
        let mut adjoint = cotangents.head(b, h, config);
        let d_y = cotangents.y.slice(s![b, h, .., ..]);
        let head = form(&inputs.head(b, h), state.head(b, h), d_y, &mut adjoint, config);
        let (rows, gates) = (s![b, h, .., ..], s![b, h, ..]);
        all.dq.slice_mut(rows).assign(&head.dq);
        all.dk.slice_mut(rows).assign(&head.dk);
        all.dv.slice_mut(rows).assign(&head.dv);
        all.d_theta.slice_mut(gates).assign(&head.d_theta);
        all.d_eta.slice_mut(gates).assign(&head.d_eta);
        all.d_alpha.slice_mut(gates).assign(&head.d_alpha);
        for i in 0..all.d_w.len() {
            all.d_w[i].slice_mut(rows).assign(&adjoint.w[i]);
            all.d_s[i].slice_mut(rows).assign(&adjoint.s[i]);
            all.d_chunk_start[i].slice_mut(rows).assign(&adjoint.start[i]);
        }
    }
    Ok(all)
}

/// Batch entry and head of every memory.
fn heads([batch, heads]: [usize; 2]) -> impl Iterator<Item = [usize; 2]> {
    (0..batch).flat_map(move |b| (0..heads).map(move |h| [b, h]))
}

fn expect(arg: &'static str, got: &[usize], expected: &[usize]) -> Result<()> {
    match got == expected {
        true => Ok(()),
        false => Err(Error::shape(arg, format!("{expected:?}"), got)),
    }
}
