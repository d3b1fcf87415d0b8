//! The equations on the host, in f64.
//!
//! Per batch entry and head, with one query `q` `[D]` and tokens t = 1..N:
//!
//! ```text
//! s_t   = scale q . k_t                                          score
//! (s_t, 1, v_t)                                                  element of a token
//! (-inf, 0, 0)                                                   of one that is masked: the identity
//! m = max(mA, mB)                                                A before B
//! u = uA e^(mA - m) + uB e^(mB - m)     w = wA e^(mA - m) + wB e^(mB - m)
//! (m, u, w)_t = element 1 .. element t, combined
//! o_t   = w_t / u_t                                              0 where no token counts yet
//! lse_t = m_t + ln u_t                                           -inf there
//! ```
//!
//! so that `o_t = sum_{i <= t} softmax_{i <= t}(s)_i v_i`. Combining is associative, and the order in which
//! it is done is free: one after the other, as a tree, in tiles ([`Order`]), or part by part with a [`State`]
//! in between. `u` and `w` are kept with what rounding took from them, since a stream adds to them for ever.
//!
//! Keys and values of masked tokens are never read. NaN or an infinity in a token makes its head's outputs
//! from that token on meaningless, and nothing else.

mod backward;
mod element;
mod layer;
mod scan;
mod state;

use attn_core::{AttentionShape, Error, Result};
use ndarray::{Array2, Array3, Array4, ArrayView2, ArrayView3, ArrayView4, Axis, s};

pub use backward::{Cotangents, Grads, backward};
pub use layer::{Layer, LayerGrads};
pub use scan::Order;
pub use state::State;

use crate::Config;
use element::Element;

/// The query of each head, and the keys and values of the tokens.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries `[batch, heads, dim_qk]`, or `[1, heads, dim_qk]` where the batch shares them.
    pub q: ArrayView3<'a, f64>,
    /// Keys `[batch, heads_kv, tokens, dim_qk]`; `heads_kv` divides `heads`.
    pub k: ArrayView4<'a, f64>,
    /// Values `[batch, heads_kv, tokens, dim_v]`.
    pub v: ArrayView4<'a, f64>,
    /// Which tokens count `[batch, tokens]`. Default: all.
    pub valid: Option<ArrayView2<'a, bool>>,
}

impl<'a> Inputs<'a> {
    /// A query `[batch, heads, dim_qk]` for each batch entry and head.
    pub fn new(q: ArrayView3<'a, f64>, k: ArrayView4<'a, f64>, v: ArrayView4<'a, f64>) -> Self {
        Inputs { q, k, v, valid: None }
    }

    /// A query `[heads, dim_qk]` for each head, as a layer learns them.
    pub fn shared(q: ArrayView2<'a, f64>, k: ArrayView4<'a, f64>, v: ArrayView4<'a, f64>) -> Self {
        Inputs::new(q.insert_axis(Axis(0)), k, v)
    }

    /// The same with tokens `[batch, tokens]` that do not count.
    pub fn with_valid(mut self, valid: ArrayView2<'a, bool>) -> Self {
        self.valid = Some(valid);
        self
    }

    /// Checks that the tensors fit together. `queries` and `keys` of the extents are the tokens; every
    /// extent may be 0.
    ///
    /// # Errors
    /// [`Error::Shape`], naming the tensor.
    pub fn check(&self) -> Result<AttentionShape> {
        let (batch, _, tokens, _) = self.k.dim();
        let (entries, heads, dim_qk) = self.q.dim();
        if entries != batch && entries != 1 {
            return Err(Error::shape("q", format!("batch 1 or {batch} as in k"), self.q.shape()));
        }
        let q = [batch, heads, tokens, dim_qk];
        let shape = AttentionShape::from_shapes(&q, self.k.shape(), self.v.shape())?;
        if let Some(valid) = self.valid {
            expect("valid", valid.shape(), &[batch, tokens])?;
        }
        Ok(shape)
    }

    /// Scores of the tokens for one head, `None` for those that do not count.
    fn scores(&self, scale: f64, b: usize, h: usize, group: usize) -> Vec<Option<f64>> {
        let q = self.q.slice(s![if self.q.dim().0 == 1 { 0 } else { b }, h, ..]);
        let keys = self.k.slice(s![b, h / group, .., ..]);
        let counts = |t: usize| self.valid.is_none_or(|valid| valid[[b, t]]);
        let score = |(t, key)| counts(t).then(|| scale * q.dot(&key));
        keys.rows().into_iter().enumerate().map(score).collect()
    }

    /// Elements of the tokens for one head.
    fn elements(&self, scale: f64, b: usize, h: usize, group: usize) -> Vec<Element> {
        let values = self.v.slice(s![b, h / group, .., ..]);
        let scores = self.scores(scale, b, h, group);
        let element = |(score, value): (Option<f64>, _)| match score {
            Some(score) => Element::token(score, value),
            None => Element::identity(values.ncols()),
        };
        scores.into_iter().zip(values.rows()).map(element).collect()
    }
}

/// What [`forward`] computes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// Attention over the tokens up to each one `[batch, heads, tokens, dim_v]`; 0 where none counts.
    pub out: Array4<f64>,
    /// Natural log-sum-exp of their scores `[batch, heads, tokens]`; -inf where none counts.
    pub lse: Array3<f64>,
    /// Their largest score, m `[batch, heads, tokens]`; -inf where none counts.
    pub max: Array3<f64>,
    /// `sum exp(s - m)`, u `[batch, heads, tokens]`.
    pub sum: Array3<f64>,
    /// `sum exp(s - m) v`, w `[batch, heads, tokens, dim_v]`.
    pub weighted: Array4<f64>,
    /// What a stream keeps after the last token.
    pub state: State,
}

impl Output {
    fn new(shape: AttentionShape) -> Self {
        Output {
            out: Array4::zeros(shape.out()),
            lse: Array3::zeros(shape.lse()),
            max: Array3::zeros(shape.lse()),
            sum: Array3::zeros(shape.lse()),
            weighted: Array4::zeros(shape.out()),
            state: State::new(shape.batch, shape.heads, shape.dim_v),
        }
    }

    fn set(&mut self, [b, h, t]: [usize; 3], prefix: &Element) {
        self.out.slice_mut(s![b, h, t, ..]).assign(&prefix.out());
        self.lse[[b, h, t]] = prefix.lse();
        self.max[[b, h, t]] = prefix.max;
        self.sum[[b, h, t]] = prefix.sum.value();
        self.weighted.slice_mut(s![b, h, t, ..]).assign(&prefix.weighted());
    }
}

/// Outputs of all prefixes, one token after the other, after the tokens of `state` where there were any.
///
/// # Errors
/// [`Error::Config`] for a scale that is not finite, [`Error::Shape`] for tensors or a state that do not fit.
pub fn forward(inputs: Inputs<'_>, state: Option<&State>, config: &Config) -> Result<Output> {
    forward_in(Order::Sequential, inputs, state, config)
}

/// [`forward`] with elements combined in another order: the same up to rounding.
///
/// # Errors
/// As [`forward`], and [`Error::Config`] for tiles of no token.
pub fn forward_in(
    order: Order,
    inputs: Inputs<'_>,
    state: Option<&State>,
    config: &Config,
) -> Result<Output> {
    order.validate()?;
    let shape = check(inputs, state, config)?;
    let scale = config.scale_for(shape.dim_qk);
    let mut output = Output::new(shape);
    for b in 0..shape.batch {
        for h in 0..shape.heads {
            let first = state.map_or(Element::identity(shape.dim_v), |state| state.at(b, h));
            let mut elements = vec![first];
            elements.extend(inputs.elements(scale, b, h, shape.group()));
            let prefixes = order.scan(elements);
            for (t, prefix) in prefixes.iter().skip(1).enumerate() {
                output.set([b, h, t], prefix);
            }
            if let Some(last) = prefixes.into_iter().last() {
                output.state.set(b, h, last);
            }
        }
    }
    Ok(output)
}

/// Outputs of a prompt, and the state from which [`State::decode`] goes on.
///
/// # Errors
/// As [`forward`].
pub fn prefill(inputs: Inputs<'_>, config: &Config) -> Result<(Output, State)> {
    let output = forward(inputs, None, config)?;
    let state = output.state.clone();
    Ok((output, state))
}

/// Checks a call.
fn check(inputs: Inputs<'_>, state: Option<&State>, config: &Config) -> Result<AttentionShape> {
    config.validate()?;
    let shape = inputs.check()?;
    if let Some(state) = state {
        expect("state", &state.shape(), &[shape.batch, shape.heads, shape.dim_v])?;
    }
    Ok(shape)
}

fn expect(arg: &'static str, got: &[usize], expected: &[usize]) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::shape(arg, format!("{expected:?}"), got)) }
}

/// `e^(from - to)`, 0 where `from` is the logarithm of nothing.
fn weight(from: f64, to: f64) -> f64 {
    if from == f64::NEG_INFINITY { 0.0 } else { (from - to).exp() }
}

/// `[batch, heads]` from each head's number.
fn by_head(shape: [usize; 3], number: impl Fn(usize, usize) -> f64) -> Array2<f64> {
    Array2::from_shape_fn((shape[0], shape[1]), |(b, h)| number(b, h))
}
