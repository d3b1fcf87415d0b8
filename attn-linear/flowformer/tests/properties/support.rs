//! Data and comparisons.

use attn_core::testing::{Values, fill};
use attn_flowformer::Config;
use attn_flowformer::reference::{Inputs, Output, forward};
use ndarray::{Array, Array2, Array4, Dimension, s};
use proptest::prelude::*;
use proptest::sample::select;

/// Extents of a call.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub batch: usize,
    pub heads: usize,
    pub heads_kv: usize,
    pub queries: usize,
    pub keys: usize,
    pub dim_qk: usize,
    pub dim_v: usize,
}

fn length(from: usize) -> impl Strategy<Value = usize> {
    prop_oneof![6 => from..=17_usize, 3 => select(&[31, 32, 37, 61, 67][..])]
}

/// At least `from` tokens: few, primes, a power of two; shared key heads; unequal dims and lengths.
pub fn shape(from: usize) -> impl Strategy<Value = Shape> {
    let heads = select(&[(1, 1), (2, 2), (3, 1), (4, 2)][..]);
    (1..=3_usize, heads, length(from), length(from), 1..=6_usize, 1..=5_usize).prop_map(
        |(batch, (heads, heads_kv), queries, keys, dim_qk, dim_v)| Shape {
            batch,
            heads,
            heads_kv,
            queries,
            keys,
            dim_qk,
            dim_v,
        },
    )
}

/// The same with as many queries as keys.
pub fn square(from: usize) -> impl Strategy<Value = Shape> {
    shape(from).prop_map(|shape| Shape { queries: shape.keys, ..shape })
}

/// Without a clamp, with one that some flows reach, and with one that none does.
pub fn clamp() -> impl Strategy<Value = Option<f64>> {
    select(&[None, Some(1.0), Some(10.0)][..])
}

/// Both forms have the rest of their parameters in common.
pub fn config(causal: bool, clamp: Option<f64>) -> Config {
    let config = if causal { Config::causal() } else { Config::new() };
    clamp.into_iter().fold(config, Config::with_clamp)
}

pub fn array<D: Dimension>(
    seed: u64,
    stream: u64,
    shape: impl ndarray::ShapeBuilder<Dim = D>,
) -> Array<f64, D> {
    let zeros = Array::<f64, D>::zeros(shape);
    let numbers = fill(seed, stream, Values::Normal, zeros.len());
    let numbers = numbers.into_iter().map(f64::from).collect();
    Array::from_shape_vec(zeros.raw_dim(), numbers).unwrap()
}

/// A call's tensors.
#[derive(Debug, Clone)]
pub struct Data {
    pub q: Array4<f64>,
    pub k: Array4<f64>,
    pub v: Array4<f64>,
    pub valid_q: Option<Array2<bool>>,
    pub valid_k: Option<Array2<bool>>,
}

impl Data {
    /// Normal numbers, no padding.
    pub fn new(shape: Shape, seed: u64) -> Self {
        let Shape { batch, heads, heads_kv, queries, keys, dim_qk, dim_v } = shape;
        Data {
            q: array(seed, 0, (batch, heads, queries, dim_qk)),
            k: array(seed, 1, (batch, heads_kv, keys, dim_qk)),
            v: array(seed, 2, (batch, heads_kv, keys, dim_v)),
            valid_q: None,
            valid_k: None,
        }
    }

    /// The same with about every third token as padding; the same ones on both sides where `same`.
    pub fn padded(mut self, same: bool, seed: u64) -> Self {
        let (batch, _, queries, _) = self.q.dim();
        let valid = |stream, tokens| array(seed, stream, (batch, tokens)).mapv(|x| x > -0.4);
        self.valid_q = Some(valid(5, queries));
        self.valid_k = Some(valid(if same { 5 } else { 6 }, self.k.dim().2));
        self
    }

    pub fn inputs(&self) -> Inputs<'_> {
        let mut inputs = Inputs::new(self.q.view(), self.k.view(), self.v.view());
        inputs.valid_q = self.valid_q.as_ref().map(|valid| valid.view());
        inputs.valid_k = self.valid_k.as_ref().map(|valid| valid.view());
        inputs
    }

    /// Tokens `from..to` of self-attention.
    pub fn part(&self, from: usize, to: usize) -> Self {
        let rows = |x: &Array4<f64>| x.slice(s![.., .., from..to, ..]).to_owned();
        let valid = |x: &Option<Array2<bool>>| {
            x.as_ref().map(|valid| valid.slice(s![.., from..to]).to_owned())
        };
        Data {
            q: rows(&self.q),
            k: rows(&self.k),
            v: rows(&self.v),
            valid_q: valid(&self.valid_q),
            valid_k: valid(&self.valid_k),
        }
    }

    pub fn run(&self, config: &Config) -> Output {
        forward(self.inputs(), config).unwrap()
    }
}

pub fn close<D: Dimension>(what: &str, got: &Array<f64, D>, want: &Array<f64, D>, bound: f64) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    // A NaN is no distance, and must not pass for 0.
    let error = |(a, b): (&f64, &f64)| {
        let error = (a - b).abs();
        if error.is_finite() { error } else { f64::INFINITY }
    };
    let worst = got.iter().zip(want).map(error).fold(0.0, f64::max);
    assert!(worst <= bound, "{what}: {worst:e} above {bound:e}");
}

/// All results of two calls, relative to what is larger than 1.
pub fn close_outputs(got: &Output, want: &Output, bound: f64) {
    let relative = |got: &ndarray::ArrayD<f64>, want: &ndarray::ArrayD<f64>, what: &str| {
        let scale = want.mapv(|x| x.abs().max(1.0));
        close(what, &(got / &scale), &(want / &scale), bound);
    };
    let all = |output: &Output| {
        let flows = &output.flows;
        [
            output.out.clone().into_dyn(),
            flows.incoming.clone().into_dyn(),
            flows.outgoing.clone().into_dyn(),
            flows.conserved_sink.clone().into_dyn(),
            flows.conserved_source.clone().into_dyn(),
            flows.allocation.clone().into_dyn(),
            flows.competition.clone().into_dyn(),
            output.memory.clone().into_dyn(),
        ]
    };
    for (at, (got, want)) in all(got).iter().zip(&all(want)).enumerate() {
        relative(got, want, &format!("result {at}"));
    }
}
