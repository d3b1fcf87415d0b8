//! Data and comparisons.

use attn_aaren::Config;
use attn_aaren::reference::{Inputs, Output, State, forward};
use attn_core::testing::{Values, fill};
use ndarray::{Array, Array2, Array3, Array4, Dimension, s};
use proptest::prelude::*;
use proptest::sample::select;

/// Extents of a call: batch, heads, heads_kv, tokens, dim_qk, dim_v.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub batch: usize,
    pub heads: usize,
    pub heads_kv: usize,
    pub tokens: usize,
    pub dim_qk: usize,
    pub dim_v: usize,
}

/// No token, few, primes and powers of two with their neighbours; shared key heads; unequal dims.
pub fn shape() -> impl Strategy<Value = Shape> {
    let tokens =
        prop_oneof![1 => Just(0), 6 => 1..=17_usize, 3 => select(&[31, 32, 37, 61, 67][..])];
    let heads = select(&[(1, 1), (2, 2), (3, 1), (4, 2)][..]);
    (1..=3_usize, heads, tokens, 1..=5_usize, 1..=5_usize).prop_map(
        |(batch, (heads, heads_kv), tokens, dim_qk, dim_v)| Shape {
            batch,
            heads,
            heads_kv,
            tokens,
            dim_qk,
            dim_v,
        },
    )
}

pub fn numbers(seed: u64, stream: u64, count: usize) -> Vec<f64> {
    fill(seed, stream, Values::Normal, count).into_iter().map(f64::from).collect()
}

pub fn array<D: Dimension>(
    seed: u64,
    stream: u64,
    shape: impl ndarray::ShapeBuilder<Dim = D>,
) -> Array<f64, D> {
    let zeros = Array::<f64, D>::zeros(shape);
    let numbers = numbers(seed, stream, zeros.len());
    Array::from_shape_vec(zeros.raw_dim(), numbers).unwrap()
}

/// A call's tensors.
#[derive(Debug, Clone)]
pub struct Data {
    pub q: Array3<f64>,
    pub k: Array4<f64>,
    pub v: Array4<f64>,
    pub valid: Option<Array2<bool>>,
}

impl Data {
    /// Normal numbers; every third token or so does not count where `masked`.
    pub fn new(shape: Shape, shared: bool, masked: bool, seed: u64) -> Self {
        let Shape { batch, heads, heads_kv, tokens, dim_qk, dim_v } = shape;
        let counts = array(seed, 5, (batch, tokens)).mapv(|x| x > -0.4);
        Data {
            q: array(seed, 0, (if shared { 1 } else { batch }, heads, dim_qk)),
            k: array(seed, 1, (batch, heads_kv, tokens, dim_qk)),
            v: array(seed, 2, (batch, heads_kv, tokens, dim_v)),
            valid: masked.then_some(counts),
        }
    }

    pub fn inputs(&self) -> Inputs<'_> {
        let valid = self.valid.as_ref().map(|valid| valid.view());
        Inputs { valid, ..Inputs::new(self.q.view(), self.k.view(), self.v.view()) }
    }

    pub fn tokens(&self) -> usize {
        self.k.dim().2
    }

    /// Tokens `from..to` alone.
    pub fn part(&self, from: usize, to: usize) -> Self {
        Data {
            q: self.q.clone(),
            k: self.k.slice(s![.., .., from..to, ..]).to_owned(),
            v: self.v.slice(s![.., .., from..to, ..]).to_owned(),
            valid: self.valid.as_ref().map(|valid| valid.slice(s![.., from..to]).to_owned()),
        }
    }

    pub fn run(&self, state: Option<&State>, config: &Config) -> Output {
        forward(self.inputs(), state, config).unwrap()
    }
}

/// Equal infinities are equal; NaN is never.
pub fn worst<D: Dimension>(got: &Array<f64, D>, want: &Array<f64, D>) -> f64 {
    assert_eq!(got.shape(), want.shape());
    let error = |(a, b): (&f64, &f64)| match (a - b).abs() {
        error if error.is_finite() => error,
        _ if a == b => 0.0,
        _ => f64::INFINITY,
    };
    got.iter().zip(want).map(error).fold(0.0, f64::max)
}

pub fn close<D: Dimension>(what: &str, got: &Array<f64, D>, want: &Array<f64, D>, bound: f64) {
    let worst = worst(got, want);
    assert!(worst <= bound, "{what}: {worst:e} above {bound:e}");
}

/// All results of two calls.
pub fn close_outputs(got: &Output, want: &Output, bound: f64) {
    close("out", &got.out, &want.out, bound);
    close("lse", &got.lse, &want.lse, bound);
    close("max", &got.max, &want.max, bound);
    close("sum", &got.sum, &want.sum, bound);
    close("weighted", &got.weighted, &want.weighted, bound);
}

pub fn bits<D: Dimension>(x: &Array<f64, D>) -> Vec<u64> {
    x.iter().map(|x| x.to_bits()).collect()
}
