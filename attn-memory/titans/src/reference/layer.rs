//! Layers on a memory: alone, or as context, gate or layer beside attention.
//!
//! For a sequence `x` `[tokens, d_model]`, with the learned persistent tokens P in front of it:
//!
//! ```text
//! q, k = l2(silu(conv(x Wq^T))), l2(silu(conv(x Wk^T)))    l2 by heads
//! v    = silu(conv(x Wv^T))
//! theta = theta_max sigmoid(x g^T + b),  eta, alpha = sigmoid(..)     by heads
//! LMM(x)     = (RMSNorm(y) gain * silu(x Wgate^T)) Wout^T             y: the memory's heads side by side
//! Gate(y, m) = RMSNorm(y) gamma_y * sigmoid(RMSNorm(m) gamma_m)
//!
//! alone   o = LMM([P; x])                                     rows of x
//! gate    o = Gate(SWA([P; x]), LMM([P; x]))                  rows of x; P is always in the window
//! layer   o = SWA(LMM([P; x]))                                rows of x
//! context by segments: attention over P, the memory's answers and the segment; see `Combination`
//! ```
//!
//! The paper leaves open: the kernel of the causal convolutions, the gates' form, the readout, and which
//! non-linearity the gate has. Residuals and norms around a layer are the model's.

mod attention;
mod beside;
mod context;
mod gate;
mod lmm;
mod parts;
mod project;
mod weights;

use attn_core::{Error, Result};
use beside::Beside;
use context::Context;
use ndarray::{Array2, Array3, Array4, ArrayView2, ArrayView3, Axis, concatenate, s};
pub use weights::{Attention, Gate, Readout, Weights};

use super::{State, expect};
use crate::{Combination, LayerConfig};

/// What [`forward`] computes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// The layer's output `[batch, tokens, d_model]`.
    pub out: Array3<f64>,
    /// What the memory answered `[batch, tokens, d_model]`; as context, to the segment's tokens before
    /// attention.
    pub memory: Array3<f64>,
    /// What attention alone gave `[batch, tokens, d_model]`, where there is attention.
    pub attention: Option<Array3<f64>>,
    /// The memories behind the last token.
    pub state: State,
}

/// Derivatives of a loss by what a layer read.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Grads {
    /// By the tokens `[batch, tokens, d_model]`.
    pub dx: Array3<f64>,
    /// By the weights.
    pub weights: Weights,
}

/// The same of one sequence.
struct Sequence {
    out: Array2<f64>,
    memory: Array2<f64>,
    attention: Option<Array2<f64>>,
    state: State,
}

/// One sequence on its way through a layer.
enum Pass {
    Beside(Box<Beside>),
    Context(Context),
}

impl Pass {
    fn new(x: ArrayView2<'_, f64>, weights: &Weights, config: &LayerConfig) -> Result<Self> {
        Ok(match config.combination {
            Combination::Context { .. } | Combination::LiteralContext { .. } => {
                Pass::Context(Context::new(x, weights, config)?)
            }
            _ => Pass::Beside(Box::new(Beside::new(x, weights, config)?)),
        })
    }

    fn output(&self, weights: &Weights, config: &LayerConfig) -> Result<Sequence> {
        match self {
            Pass::Beside(beside) => beside.output(weights, config),
            Pass::Context(context) => context.output(weights, config),
        }
    }
}

/// The layer on tokens `x` `[batch, tokens, d_model]` from the start of their sequences.
///
/// # Errors
/// [`Error::Config`] for parameters out of range and weights that are not of the combination,
/// [`Error::Shape`] for tokens and weights that do not fit together.
pub fn forward(x: ArrayView3<'_, f64>, weights: &Weights, config: &LayerConfig) -> Result<Output> {
    check(x, weights, config)?;
    let mut output = Output {
        out: Array3::zeros(x.raw_dim()),
        memory: Array3::zeros(x.raw_dim()),
        attention: weights.attention.as_ref().map(|_| Array3::zeros(x.raw_dim())),
        state: empty_state(config)?,
    };
    let mut states = Vec::new();
    for (b, x) in x.outer_iter().enumerate() {
        let sequence = Pass::new(x, weights, config)?.output(weights, config)?;
        let place = s![b, .., ..];
        output.out.slice_mut(place).assign(&sequence.out);
        output.memory.slice_mut(place).assign(&sequence.memory);
        if let (Some(all), Some(one)) = (&mut output.attention, &sequence.attention) {
            all.slice_mut(place).assign(one);
        }
        states.push(sequence.state);
    }
    if !states.is_empty() {
        output.state = join(&states)?;
    }
    Ok(output)
}

/// Vector-Jacobian product of [`forward`], from the cotangent `d_out` `[batch, tokens, d_model]` of its
/// output.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    x: ArrayView3<'_, f64>,
    weights: &Weights,
    d_out: ArrayView3<'_, f64>,
    config: &LayerConfig,
) -> Result<Grads> {
    check(x, weights, config)?;
    expect("d_out", d_out.shape(), x.shape())?;
    let mut grads = Grads { dx: Array3::zeros(x.raw_dim()), weights: weights.zeros() };
    for (b, (x, d_out)) in x.outer_iter().zip(d_out.outer_iter()).enumerate() {
        let by = &mut grads.weights;
        let dx = match Pass::new(x, weights, config)? {
            Pass::Beside(beside) => beside.backward(d_out, weights, by, config)?,
            Pass::Context(context) => context.backward(x, d_out, weights, by, config)?,
        };
        grads.dx.slice_mut(s![b, .., ..]).assign(&dx);
    }
    Ok(grads)
}

fn check(x: ArrayView3<'_, f64>, weights: &Weights, config: &LayerConfig) -> Result<()> {
    weights.check(config)?;
    let (batch, tokens, _) = x.dim();
    expect("x", x.shape(), &[batch, tokens, weights.d_model()])
}

/// The learned memories, for one sequence.
fn first_state(weights: &Weights, config: &LayerConfig) -> Result<State> {
    let learned: Vec<_> = weights.memory.iter().map(|layer| layer.view()).collect();
    State::new(&learned, 1, &config.memory)
}

/// Of no sequence.
fn empty_state(config: &LayerConfig) -> Result<State> {
    let memory = &config.memory;
    let zeros = || -> Vec<Array4<f64>> {
        let layers = memory.layers();
        layers.iter().map(|&[m, n]| Array4::zeros((0, memory.heads, m, n))).collect()
    };
    State::from_parts(zeros(), zeros(), memory)
}

/// States of single sequences as that of a batch.
fn join(states: &[State]) -> Result<State> {
    let part = |part: fn(&State) -> &[Array4<f64>]| -> Result<Vec<Array4<f64>>> {
        let depth = states.first().map_or(0, |state| part(state).len());
        let layer = |i: usize| {
            let all: Vec<_> = states.iter().map(|state| part(state)[i].view()).collect();
            concatenate(Axis(0), &all).map_err(|error| Error::data("state", "equal extents", error))
        };
        (0..depth).map(layer).collect()
    };
    let position = states.first().map_or(0, State::position);
    Ok(State::joined(part(State::w)?, part(State::s)?, part(State::chunk_start)?, position))
}
