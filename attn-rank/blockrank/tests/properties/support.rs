//! Random inputs, and comparisons.

use attn_blockrank::reference::Inputs;
use attn_blockrank::{Gpu, Segments, Tensor};
use attn_core::testing::{Values, fill};
use ndarray::{Array, Array4, ArrayView, ArrayViewD, Dimension, s};
use proptest::prelude::*;

/// `[batch, heads, tokens, dim]` of numbers that f32 holds, from a normal distribution.
pub fn tensor(seed: u64, stream: u64, shape: [usize; 4]) -> Array4<f64> {
    let data = fill(seed, stream, Values::Normal, shape.iter().product());
    Array4::from_shape_vec(shape, data.into_iter().map(f64::from).collect()).unwrap()
}

/// Queries, keys and values for segments.
pub struct Qkv {
    pub q: Array4<f64>,
    pub k: Array4<f64>,
    pub v: Array4<f64>,
}

impl Qkv {
    pub fn new(seed: u64, segments: &Segments, [heads, heads_kv, dim]: [usize; 3]) -> Qkv {
        let [batch, tokens] = [segments.batch(), segments.tokens()];
        Qkv {
            q: tensor(seed, 0, [batch, heads, tokens, dim]),
            k: tensor(seed, 1, [batch, heads_kv, tokens, dim]),
            v: tensor(seed, 2, [batch, heads_kv, tokens, dim]),
        }
    }

    pub fn inputs(&self) -> Inputs<'_> {
        Inputs::new(self.q.view(), self.k.view(), self.v.view())
    }

    /// The tokens `order` of every tensor.
    pub fn picked(&self, order: &[usize]) -> Qkv {
        let of = |x: &Array4<f64>| x.select(ndarray::Axis(2), order);
        Qkv { q: of(&self.q), k: of(&self.k), v: of(&self.v) }
    }

    /// Queries and keys rotated by positions of the tokens, as models do.
    pub fn rotated(&self, positions: &[u32]) -> Qkv {
        let of = |x: &Array4<f64>| {
            let mut out = x.clone();
            let half = x.dim().3 / 2;
            for ((b, h, t, d), y) in out.indexed_iter_mut() {
                let pair = d % half;
                let angle = f64::from(positions[t]) * 100f64.powf(-(pair as f64) / half as f64);
                let (near, far) = (x[[b, h, t, pair]], x[[b, h, t, pair + half]]);
                *y = match d < half {
                    true => near * angle.cos() - far * angle.sin(),
                    false => far * angle.cos() + near * angle.sin(),
                };
            }
            out
        };
        Qkv { q: of(&self.q), k: of(&self.k), v: self.v.clone() }
    }
}

pub fn upload<D: Dimension>(gpu: &Gpu, x: &Array<f64, D>) -> Tensor {
    Tensor::from_array(gpu, &x.mapv(|x| x as f32).view().into_dyn()).unwrap()
}

pub fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.to_vec().unwrap()
}

/// Largest difference; equal numbers, also infinite ones, have none.
pub fn far<D: Dimension>(got: &Tensor, want: &Array<f64, D>) -> f64 {
    assert_eq!(got.shape(), want.shape());
    let off = |(got, want): (f32, &f64)| {
        let got = f64::from(got);
        if got == *want { 0.0 } else { (got - want).abs() }
    };
    floats(got).into_iter().zip(want).map(off).fold(0.0, f64::max)
}

pub fn apart<D: Dimension>(a: ArrayView<'_, f64, D>, b: ArrayView<'_, f64, D>) -> f64 {
    assert_eq!(a.shape(), b.shape());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Tokens of a range of every head.
pub fn tokens(x: &Array4<f64>, range: std::ops::Range<usize>) -> ArrayViewD<'_, f64> {
    x.slice(s![.., .., range, ..]).into_dyn()
}

/// Lengths of the segments of a prompt, with room for the signal in the last one.
pub fn lengths() -> impl Strategy<Value = Vec<usize>> {
    let documents = prop::collection::vec(prop_oneof![0usize..3, 3usize..40], 0..7);
    (0usize..12, documents, 2usize..9).prop_map(|(instruction, documents, query)| {
        [vec![instruction], documents, vec![query]].concat()
    })
}
