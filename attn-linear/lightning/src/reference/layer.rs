//! A layer of TransNormerLLM: gated linear attention, then the gated linear unit.
//!
//! For tokens `x` `[batch, tokens, d_model]`, with `hid = heads * dim`:
//!
//! ```text
//! n         = SRMSNorm(x)
//! [q,k,v,u] = n Wqkvu^T                          each [.., hid], in this order
//! q, k      = LRPE(silu(q)), LRPE(silu(k))       by heads; LRPE only where the layer has angles
//! a         = attention(q, k, v)                 heads side by side
//! y         = x + (u * SRMSNorm(a)) Wout^T       the norm runs over all heads together
//! z         = y + SGLU(SRMSNorm(y))
//! ```

mod backward;
mod weights;

use attn_core::{Error, Result};
use ndarray::{Array2, Array3, Array4, ArrayView3, s};

pub use backward::{Grads, backward};
pub use weights::Weights;

use super::{Inputs, State, forward_chunked, linear, lrpe, norm, sglu};
use crate::Config;

/// What [`forward`] computes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// The layer's output `[batch, tokens, d_model]`.
    pub out: Array3<f64>,
    /// What attention alone gave `[batch, heads, tokens, dim]`.
    pub attention: Array4<f64>,
    /// Between the two halves, `y` `[batch, tokens, d_model]`.
    pub after_attention: Array3<f64>,
    /// Behind the last token.
    pub state: State,
}

/// The layer on tokens `x` `[batch, tokens, d_model]`, from the start of a sequence or behind `state`.
///
/// # Errors
/// [`Error::Config`] for parameters out of range, [`Error::Shape`] for weights, tokens and a state that
/// do not fit together.
pub fn forward(
    x: ArrayView3<'_, f64>,
    state: Option<&State>,
    weights: &Weights,
    config: &Config,
) -> Result<Output> {
    let size = Size::of(x, weights, config)?;
    let mixer = Mixer::forward(x, state, weights, config, &size)?;
    let after = linear::rows(x) + linear::apply(&(&mixer.u * &mixer.normed), weights.w_out.view());
    let glu = sglu::of_rows(&norm::srmsnorm(after.view(), config.epsilon), weights.sglu());
    let position = mixer.first + size.tokens;
    Ok(Output {
        out: linear::tokens(&(&after + &glu), size.batch, size.tokens),
        attention: mixer.output.out,
        after_attention: linear::tokens(&after, size.batch, size.tokens),
        state: State::from_kv(mixer.output.kv, position),
    })
}

/// The output of the next tokens `[batch, new, d_model]`, one or more. Where the call fails the state is
/// as before.
///
/// # Errors
/// As [`forward`].
pub fn decode(
    state: &mut State,
    x: ArrayView3<'_, f64>,
    weights: &Weights,
    config: &Config,
) -> Result<Array3<f64>> {
    let output = forward(x, Some(state), weights, config)?;
    *state = output.state;
    Ok(output.out)
}

/// Extents of a call.
struct Size {
    batch: usize,
    heads: usize,
    tokens: usize,
    hidden: usize,
}

impl Size {
    fn of(x: ArrayView3<'_, f64>, weights: &Weights, config: &Config) -> Result<Self> {
        config.validate()?;
        let (batch, tokens, d_model) = x.dim();
        let hidden = weights.check(config.heads)?;
        if d_model != weights.d_model() {
            let expected = format!("{} elements of a token, as w_qkvu", weights.d_model());
            return Err(Error::shape("x", expected, x.shape()));
        }
        Ok(Size { batch, heads: config.heads, tokens, hidden })
    }

    fn heads(&self) -> [usize; 3] {
        [self.batch, self.heads, self.tokens]
    }
}

/// Attention and what it was made of; rows are `[batch * tokens, ..]`.
struct Mixer {
    /// The normalised tokens.
    n: Array2<f64>,
    /// Before the activation, `[.., 4 hid]`.
    projected: Array2<f64>,
    /// Queries and keys behind the activation, before LRPE.
    active: [Array4<f64>; 2],
    /// Queries and keys as attention reads them.
    q: Array4<f64>,
    k: Array4<f64>,
    v: Array4<f64>,
    u: Array2<f64>,
    /// Position of the first token.
    first: usize,
    output: super::Output,
    /// The heads' outputs side by side, and normalised.
    merged: Array2<f64>,
    normed: Array2<f64>,
}

impl Mixer {
    fn forward(
        x: ArrayView3<'_, f64>,
        state: Option<&State>,
        weights: &Weights,
        config: &Config,
        size: &Size,
    ) -> Result<Self> {
        let n = norm::srmsnorm(linear::rows(x).view(), config.epsilon);
        let projected = linear::apply(&n, weights.w_qkvu.view());
        let part = |i: usize| projected.slice(s![.., i * size.hidden..(i + 1) * size.hidden]);
        let heads = |i| linear::split_heads(part(i), size.heads());
        let active = [heads(0), heads(1)].map(|x| x.mapv(silu));
        let first = state.map_or(0, State::position);
        let rotated = |x: &Array4<f64>| match &weights.theta {
            Some(theta) => lrpe::lrpe(x.view(), theta.view(), first),
            None => Ok(x.clone()),
        };
        let (q, k, v) = (rotated(&active[0])?, rotated(&active[1])?, heads(2));
        let inputs =
            Inputs { kv: state.map(State::kv), ..Inputs::new(q.view(), k.view(), v.view()) };
        let output = forward_chunked(inputs, config)?;
        let merged = linear::merge_heads(output.out.view());
        let normed = norm::srmsnorm(merged.view(), config.epsilon);
        let u = part(3).to_owned();
        Ok(Mixer { n, projected, active, q, k, v, u, first, output, merged, normed })
    }
}

/// `x sigmoid(x)`.
fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}
