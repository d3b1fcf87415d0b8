//! The equations on the host, in f64.
//!
//! Per batch entry and head, with L sinks i (queries), S sources j (keys), `a = sigmoid(q)`, `b = sigmoid(k)`
//! and `<x, y> = (x + epsilon) . (y + epsilon)`:
//!
//! ```text
//! K = sum_j b_j              Q = sum_i a_i
//! I_i = <a_i, K>             O_j = <b_j, Q>                incoming and outgoing flow
//! K^ = sum_j b_j / O_j       Q^ = sum_i a_i / I_i
//! I^_i = <a_i, K^>           O^_j = <b_j, Q^>              conserved: they sum to S and to L
//! comp_j = S softmax_j(clamp(O^_j))                        competition of sources
//! alloc_i = sigmoid(I^_i L / S)                            allocation to sinks
//! M = sum_j b_j^T (comp_j v_j)
//! o_i = alloc_i (a_i M) / I_i
//! ```
//!
//! The causal form has L = S and sums up to each token t, counted from 1:
//!
//! ```text
//! K_t, Q_t = sums of b, a    I_t = <a_t, K_t>              O_t = <b_t, Q_t>
//! K^_t = sum b_s s / O_s     Q^_t = sum a_s s / I_s        over s <= t
//! I^_t = <a_t, K^_t> / t     O^_t = <b_t, Q^_t> / t
//! comp_t = t softmax_{s <= t}(clamp(O^))_t                 later tokens do not change it
//! alloc_t = sigmoid(I^_t)
//! M_t = sum_{s <= t} b_s^T (comp_s v_s)
//! o_t = alloc_t (a_t M_t) / I_t
//! ```
//!
//! The factors s and 1/t stand for tokens to come, so that flows are conserved only approximately, and the last
//! token's output is not that of the form above.
//!
//! Padding is left out of every sum and every count: results are those of the sequence without it, and 0 at
//! its places. It is never read. Where there is no source, outputs are 0.

mod causal;
mod full;
mod state;

use attn_core::{AttentionShape, Error, Result};
use ndarray::{Array1, Array2, Array3, Array4, ArrayView2, ArrayView4, ArrayViewMut1, Axis, s};

pub(crate) use state::STATE_KIND;
pub use state::State;

use crate::Config;

/// Queries, keys, values, and which of their tokens are padding.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries `[batch, heads, queries, dim_qk]`.
    pub q: ArrayView4<'a, f64>,
    /// Keys `[batch, heads_kv, keys, dim_qk]`; `heads_kv` divides `heads`.
    pub k: ArrayView4<'a, f64>,
    /// Values `[batch, heads_kv, keys, dim_v]`.
    pub v: ArrayView4<'a, f64>,
    /// Which queries count `[batch, queries]`. Default: all.
    pub valid_q: Option<ArrayView2<'a, bool>>,
    /// Which keys count `[batch, keys]`. Default: all.
    pub valid_k: Option<ArrayView2<'a, bool>>,
}

impl<'a> Inputs<'a> {
    /// Tensors without padding.
    pub fn new(q: ArrayView4<'a, f64>, k: ArrayView4<'a, f64>, v: ArrayView4<'a, f64>) -> Self {
        Inputs { q, k, v, valid_q: None, valid_k: None }
    }

    /// Self-attention in which only some tokens count `[batch, tokens]`.
    pub fn with_valid(self, valid: ArrayView2<'a, bool>) -> Self {
        Inputs { valid_q: Some(valid), valid_k: Some(valid), ..self }
    }

    /// Checks that the tensors fit together. Every extent but `dim_qk` may be 0.
    ///
    /// # Errors
    /// [`Error::Shape`], naming the tensor.
    pub fn check(&self) -> Result<AttentionShape> {
        let shape = AttentionShape::from_shapes(self.q.shape(), self.k.shape(), self.v.shape())?;
        if shape.dim_qk == 0 {
            return Err(Error::shape("q", "heads of at least 1 element", self.q.shape()));
        }
        if let Some(valid) = self.valid_q {
            expect("valid_q", valid.shape(), &[shape.batch, shape.queries])?;
        }
        if let Some(valid) = self.valid_k {
            expect("valid_k", valid.shape(), &[shape.batch, shape.keys])?;
        }
        Ok(shape)
    }

    /// The tokens that count of one batch entry, as they are in one head.
    fn plane(&self, b: usize, h: usize, group: usize) -> Plane {
        let kept = |valid: Option<ArrayView2<'_, bool>>, tokens: usize| {
            let counts = |&t: &usize| valid.is_none_or(|valid| valid[[b, t]]);
            (0..tokens).filter(counts).collect::<Vec<_>>()
        };
        let sinks = kept(self.valid_q, self.q.dim().2);
        let sources = kept(self.valid_k, self.k.dim().2);
        let rows = |x: ArrayView4<'_, f64>, h: usize, kept: &[usize]| {
            Array2::from_shape_fn((kept.len(), x.dim().3), |(row, d)| x[[b, h, kept[row], d]])
        };
        Plane {
            a: rows(self.q, h, &sinks).mapv(sigmoid),
            b: rows(self.k, h / group, &sources).mapv(sigmoid),
            v: rows(self.v, h / group, &sources),
            sinks,
            sources,
        }
    }
}

/// What one head of one batch entry computes with, without padding.
struct Plane {
    /// `[sinks, dim_qk]`.
    a: Array2<f64>,
    /// `[sources, dim_qk]`.
    b: Array2<f64>,
    /// `[sources, dim_v]`.
    v: Array2<f64>,
    /// Places of the sinks among the queries.
    sinks: Vec<usize>,
    /// Places of the sources among the keys.
    sources: Vec<usize>,
}

/// Results of one head of one batch entry.
struct PlaneOutput {
    /// `[sinks, dim_v]`.
    out: Array2<f64>,
    incoming: Array1<f64>,
    outgoing: Array1<f64>,
    conserved_sink: Array1<f64>,
    conserved_source: Array1<f64>,
    allocation: Array1<f64>,
    competition: Array1<f64>,
    /// `[dim_qk, dim_v]`.
    memory: Array2<f64>,
}

/// Derivatives by `a`, `b` and `v` of a plane.
struct PlaneGrads {
    da: Array2<f64>,
    db: Array2<f64>,
    dv: Array2<f64>,
}

/// The flows of all heads; 0 for padding.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Flows {
    /// What enters each sink, I `[batch, heads, queries]`.
    pub incoming: Array3<f64>,
    /// What leaves each source, O `[batch, heads, keys]`.
    pub outgoing: Array3<f64>,
    /// What enters each sink when every source gives 1, I^ `[batch, heads, queries]`.
    pub conserved_sink: Array3<f64>,
    /// What leaves each source when every sink takes 1, O^ `[batch, heads, keys]`, before the clamp.
    pub conserved_source: Array3<f64>,
    /// Factors of the outputs `[batch, heads, queries]`.
    pub allocation: Array3<f64>,
    /// Factors of the values `[batch, heads, keys]`; on average 1 where attention is not causal.
    pub competition: Array3<f64>,
}

/// What [`forward`] computes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// `[batch, heads, queries, dim_v]`; 0 for padding.
    pub out: Array4<f64>,
    /// How much flowed.
    pub flows: Flows,
    /// The sum M over all sources `[batch, heads, dim_qk, dim_v]`.
    pub memory: Array4<f64>,
}

impl Output {
    fn new(shape: AttentionShape) -> Self {
        let sinks = || Array3::zeros((shape.batch, shape.heads, shape.queries));
        let sources = || Array3::zeros((shape.batch, shape.heads, shape.keys));
        Output {
            out: Array4::zeros(shape.out()),
            flows: Flows {
                incoming: sinks(),
                outgoing: sources(),
                conserved_sink: sinks(),
                conserved_source: sources(),
                allocation: sinks(),
                competition: sources(),
            },
            memory: Array4::zeros((shape.batch, shape.heads, shape.dim_qk, shape.dim_v)),
        }
    }

    fn set(&mut self, b: usize, h: usize, plane: &Plane, own: &PlaneOutput) {
        let flows = &mut self.flows;
        for (row, &i) in plane.sinks.iter().enumerate() {
            self.out.slice_mut(s![b, h, i, ..]).assign(&own.out.row(row));
            flows.incoming[[b, h, i]] = own.incoming[row];
            flows.conserved_sink[[b, h, i]] = own.conserved_sink[row];
            flows.allocation[[b, h, i]] = own.allocation[row];
        }
        for (row, &j) in plane.sources.iter().enumerate() {
            flows.outgoing[[b, h, j]] = own.outgoing[row];
            flows.conserved_source[[b, h, j]] = own.conserved_source[row];
            flows.competition[[b, h, j]] = own.competition[row];
        }
        self.memory.slice_mut(s![b, h, .., ..]).assign(&own.memory);
    }
}

/// Derivatives of a loss by what [`forward`] returned.
#[derive(Debug, Clone, Copy)]
pub struct Cotangents<'a> {
    /// By the output `[batch, heads, queries, dim_v]`; not read for padding.
    pub out: ArrayView4<'a, f64>,
}

/// Derivatives of a loss by the inputs; 0 for padding.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Grads {
    /// By the queries `[batch, heads, queries, dim_qk]`.
    pub dq: Array4<f64>,
    /// By the keys `[batch, heads_kv, keys, dim_qk]`.
    pub dk: Array4<f64>,
    /// By the values `[batch, heads_kv, keys, dim_v]`.
    pub dv: Array4<f64>,
}

/// The attention of all heads.
///
/// # Errors
/// [`Error::Config`] for parameters out of range, [`Error::Shape`] for tensors that do not fit, or a causal
/// call with other numbers of queries and keys; [`Error::Data`] for a causal call in which queries and keys have
/// different padding.
pub fn forward(inputs: Inputs<'_>, config: &Config) -> Result<Output> {
    let shape = check(inputs, config)?;
    let mut output = Output::new(shape);
    for b in 0..shape.batch {
        for h in 0..shape.heads {
            let plane = inputs.plane(b, h, shape.group());
            let own = match config.causal {
                true => causal::forward(&plane, config),
                false => full::forward(&plane, config),
            };
            output.set(b, h, &plane, &own);
        }
    }
    Ok(output)
}

/// The vector-Jacobian product of [`forward`], exact. A source whose conserved flow is beyond the clamp gets
/// no gradient through it. Key heads get the sum over the query heads that share them.
///
/// # Errors
/// As [`forward`], and for a cotangent of another shape.
pub fn backward(inputs: Inputs<'_>, config: &Config, cotangents: Cotangents<'_>) -> Result<Grads> {
    let shape = check(inputs, config)?;
    expect("cotangents.out", cotangents.out.shape(), &shape.out())?;
    let mut grads = Grads {
        dq: Array4::zeros(shape.q()),
        dk: Array4::zeros(shape.k()),
        dv: Array4::zeros(shape.v()),
    };
    for b in 0..shape.batch {
        for h in 0..shape.heads {
            let plane = inputs.plane(b, h, shape.group());
            let d_out = cotangents.out.slice(s![b, h, .., ..]);
            let d_out = Array2::from_shape_fn((plane.sinks.len(), shape.dim_v), |(row, e)| {
                d_out[[plane.sinks[row], e]]
            });
            let own = match config.causal {
                true => causal::backward(&plane, config, &d_out),
                false => full::backward(&plane, config, &d_out),
            };
            let h_kv = h / shape.group();
            for (row, &i) in plane.sinks.iter().enumerate() {
                let target = grads.dq.slice_mut(s![b, h, i, ..]);
                add_through_sigmoid(target, &own.da, &plane.a, row);
            }
            for (row, &j) in plane.sources.iter().enumerate() {
                let target = grads.dk.slice_mut(s![b, h_kv, j, ..]);
                add_through_sigmoid(target, &own.db, &plane.b, row);
                let mut target = grads.dv.slice_mut(s![b, h_kv, j, ..]);
                target += &own.dv.row(row);
            }
        }
    }
    Ok(grads)
}

/// Outputs of a prompt, and the state from which [`State::decode`] goes on. The configuration must be causal.
///
/// # Errors
/// As [`State::decode`].
pub fn prefill(inputs: Inputs<'_>, config: &Config) -> Result<(Output, State)> {
    let shape = check(inputs, config)?;
    let mut state = State::new(shape.batch, shape.heads, shape.dim_qk, shape.dim_v);
    let output = state.decode(inputs, config)?;
    Ok((output, state))
}

fn check(inputs: Inputs<'_>, config: &Config) -> Result<AttentionShape> {
    config.validate()?;
    let shape = inputs.check()?;
    if config.causal && shape.queries != shape.keys {
        let expected = format!("{} tokens as q: the causal form has no other", shape.queries);
        return Err(Error::shape("k", expected, inputs.k.shape()));
    }
    if config.causal && inputs.valid_q != inputs.valid_k {
        return Err(Error::data("valid_k", "the tokens of valid_q in a causal call", "others"));
    }
    Ok(shape)
}

fn expect(arg: &'static str, got: &[usize], expected: &[usize]) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::shape(arg, format!("{expected:?}"), got)) }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn add_through_sigmoid(
    mut target: ArrayViewMut1<'_, f64>,
    d: &Array2<f64>,
    value: &Array2<f64>,
    row: usize,
) {
    for ((target, d), value) in target.iter_mut().zip(d.row(row)).zip(value.row(row)) {
        *target += d * value * (1.0 - value);
    }
}

/// `x_i . y_i` of rows i.
fn row_products(x: &Array2<f64>, y: &Array2<f64>) -> Array1<f64> {
    x.rows().into_iter().zip(y.rows()).map(|(x, y)| x.dot(&y)).collect()
}

/// Rows `f_i x_i`.
fn scaled_rows(x: &Array2<f64>, factors: &Array1<f64>) -> Array2<f64> {
    x * &factors.view().insert_axis(Axis(1))
}
