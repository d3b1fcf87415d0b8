//! Cases, the dense definition, and how far apart rounding may put two results.

use attn_core::testing::strategies::length;
use attn_core::testing::{Values, fill};
use attn_lightning::reference::Inputs;
use attn_lightning::{Config, Slopes};
use ndarray::{Array, Array2, Array4, Dimension, s};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// Queries, keys, values and perhaps a state, with the slopes of their heads.
#[derive(Debug, Clone)]
pub struct Case {
    pub q: Array4<f64>,
    pub k: Array4<f64>,
    pub v: Array4<f64>,
    pub kv: Option<Array4<f64>>,
    pub slopes: Vec<f64>,
    pub block: usize,
    pub seed: u64,
}

impl Case {
    pub fn inputs(&self) -> Inputs<'_> {
        let inputs = Inputs::new(self.q.view(), self.k.view(), self.v.view());
        Inputs { kv: self.kv.as_ref().map(|kv| kv.view()), ..inputs }
    }

    pub fn config(&self) -> Config {
        let slopes = Slopes::Given(self.slopes.clone());
        Config::new(self.slopes.len()).with_slopes(slopes).with_block(self.block)
    }

    /// The state to start from, also where it is 0.
    pub fn first_state(&self) -> Array4<f64> {
        let ((batch, heads, _, d), e) = (self.q.dim(), self.v.dim().3);
        self.kv.clone().unwrap_or_else(|| Array4::zeros((batch, heads, d, e)))
    }

    /// Cotangents of output and state.
    pub fn cotangents(&self) -> [Array4<f64>; 2] {
        let (batch, heads, tokens, _) = self.q.dim();
        let e = self.v.dim().3;
        let d_out = tensor(self.seed, 5, (batch, heads, tokens, e));
        [d_out, tensor(self.seed, 6, self.first_state().dim())]
    }

    /// The same with absolute values: its results bound the terms of the sums.
    pub fn magnitude(&self) -> Case {
        let abs = |x: &Array4<f64>| x.mapv(f64::abs);
        let kv = self.kv.as_ref().map(abs);
        Case { q: abs(&self.q), k: abs(&self.k), v: abs(&self.v), kv, ..self.clone() }
    }

    /// Tokens `from..to`, with a state.
    pub fn part(&self, from: usize, to: usize, kv: &Array4<f64>) -> Case {
        let cut = |x: &Array4<f64>| x.slice(s![.., .., from..to, ..]).to_owned();
        let kv = Some(kv.clone());
        Case { q: cut(&self.q), k: cut(&self.k), v: cut(&self.v), kv, ..self.clone() }
    }
}

/// 0 to 200 tokens, dims of 0 to 9, shared keys, all kinds of decay, with and without a state.
pub fn case() -> impl Strategy<Value = Case> {
    let slope = select(&[0.0, 1e-5, 0.0039, 0.1, 0.7, 3.0, 50.0, 1e4][..]);
    let block = select(&[1, 2, 7, 16, 64, 1000, usize::MAX][..]);
    let values = select(&[Values::Normal, Values::HeavyTailed, Values::Huge, Values::Tiny][..]);
    let sizes = (1..=2_usize, 1..=2_usize, 1..=3_usize, length(), 0..=9_usize, 0..=9_usize);
    (sizes, vec(slope, 6), block, values, any::<bool>(), any::<u64>()).prop_map(
        |((batch, heads_kv, group, tokens, d, e), mut slopes, block, values, with_state, seed)| {
            let heads = heads_kv * group;
            slopes.truncate(heads);
            let of = |stream, shape| filled(seed, stream, values, shape);
            Case {
                q: of(0, (batch, heads, tokens, d)),
                k: of(1, (batch, heads_kv, tokens, d)),
                v: of(2, (batch, heads_kv, tokens, e)),
                kv: with_state.then(|| of(3, (batch, heads, d, e))),
                slopes,
                block,
                seed,
            }
        },
    )
}

type Extents = (usize, usize, usize, usize);

pub fn filled(seed: u64, stream: u64, values: Values, shape: Extents) -> Array4<f64> {
    let count = shape.0 * shape.1 * shape.2 * shape.3;
    let data = fill(seed, stream, values, count).into_iter().map(f64::from).collect();
    Array4::from_shape_vec(shape, data).unwrap()
}

pub fn tensor(seed: u64, stream: u64, shape: Extents) -> Array4<f64> {
    filled(seed, stream, Values::Normal, shape)
}

pub fn matrix(seed: u64, stream: u64, rows: usize, columns: usize) -> Array2<f64> {
    let data = fill(seed, stream, Values::Normal, rows * columns);
    Array2::from_shape_vec((rows, columns), data.into_iter().map(f64::from).collect()).unwrap()
}

/// Output and last state by the sums of the definition, pair by pair.
pub fn dense(case: &Case) -> [Array4<f64>; 2] {
    let (batch, heads, tokens, d) = case.q.dim();
    let (_, heads_kv, _, e) = case.v.dim();
    let first = case.first_state();
    let mut out = Array4::zeros((batch, heads, tokens, e));
    let mut kv = first.clone();
    for b in 0..batch {
        for h in 0..heads {
            let g = h / (heads / heads_kv);
            let decay = |n: usize| (-case.slopes[h] * n as f64).exp();
            for t in 0..tokens {
                for j in 0..e {
                    let product = |i: usize| {
                        (0..d).map(|c| case.q[[b, h, t, c]] * case.k[[b, g, i, c]]).sum::<f64>()
                    };
                    let new = (0..=t).map(|i| decay(t - i) * product(i) * case.v[[b, g, i, j]]);
                    let old = (0..d).map(|c| case.q[[b, h, t, c]] * first[[b, h, c, j]]);
                    out[[b, h, t, j]] = new.sum::<f64>() + decay(t + 1) * old.sum::<f64>();
                }
            }
            for ((c, j), kv) in kv.slice_mut(s![b, h, .., ..]).indexed_iter_mut() {
                let term = |i: usize| case.k[[b, g, i, c]] * case.v[[b, g, i, j]];
                let new = (0..tokens).map(|i| decay(tokens - 1 - i) * term(i));
                *kv = decay(tokens) * *kv + new.sum::<f64>();
            }
        }
    }
    [out, kv]
}

/// Elements differ by rounding: of up to 200 terms, whose decays are products of up to 200 factors on one
/// side and exponentials of products on the other, 1e-12 of the sum of the terms' magnitudes.
pub fn close<D: Dimension>(
    what: &str,
    got: &Array<f64, D>,
    want: &Array<f64, D>,
    magnitude: &Array<f64, D>,
) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    for ((got, want), magnitude) in got.iter().zip(want).zip(magnitude) {
        let error = (got - want).abs();
        // Decays below the smallest normal number are not held.
        assert!(error <= 1e-12 * magnitude + 1e-290, "{what}: {got:e} for {want:e}");
    }
}

/// The largest difference, of the largest number of `want`.
pub fn distance<D: Dimension>(got: &Array<f64, D>, want: &Array<f64, D>) -> f64 {
    assert_eq!(got.shape(), want.shape());
    let largest = want.iter().fold(f64::MIN_POSITIVE, |max, x| max.max(x.abs()));
    got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest
}
