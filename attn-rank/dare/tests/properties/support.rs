//! Data and comparisons.

use attn_core::testing::{bits, normal};
use attn_dare::reference::{Batch, Embeddings, Head, Linear, Tables};
use attn_dare::{Config, Gpu, Tensor, Widths};
use ndarray::{Array1, Array2, ArrayView, Dimension};

/// Numbers that f32 holds.
pub fn matrix(seed: u64, stream: u64, rows: usize, width: usize) -> Array2<f64> {
    let at =
        |(r, c): (usize, usize)| f64::from(normal(seed, stream, (r * width + c) as u64) as f32);
    Array2::from_shape_fn((rows, width), at)
}

/// Items, categories and slots.
pub type Rows = [usize; 3];

pub fn embeddings(seed: u64, rows: Rows, widths: Widths) -> Embeddings {
    Embeddings {
        item: matrix(seed, 0, rows[0], widths.item),
        category: matrix(seed, 1, rows[1], widths.category),
        time: matrix(seed, 2, rows[2], widths.time),
    }
}

pub fn tables(seed: u64, rows: Rows, config: &Config) -> Tables {
    let own = |seed, widths| embeddings(seed, rows, widths);
    Tables::new(own(seed, config.attention), own(seed + 1000, config.representation))
}

fn id(seed: u64, stream: u64, index: usize, rows: usize) -> u32 {
    (1 + bits(seed, stream, index as u64) % (rows as u64 - 1).max(1)) as u32
}

/// Histories of any length up to `length`, the first one empty and the last one full, filled up in front, with
/// gaps.
pub fn batch(seed: u64, requests: usize, length: usize, rows: Rows) -> Batch {
    let own = |b: usize| match b {
        0 => 0,
        _ if b + 1 == requests => length,
        _ => (bits(seed, 9, b as u64) % (length as u64 + 1)) as usize,
    };
    let counts = |b: usize, j: usize| {
        j + own(b) >= length && !bits(seed, 8, (b * length + j) as u64).is_multiple_of(7)
    };
    let fill = |stream, rows| {
        Array2::from_shape_fn((requests, length), |(b, j)| {
            if counts(b, j) { id(seed, stream, b * length + j, rows) } else { 0 }
        })
    };
    let one =
        |stream, rows| (0..requests).map(|b| id(seed, stream, b, rows)).collect::<Array1<u32>>();
    Batch::new(one(3, rows[0]), one(4, rows[1]), fill(5, rows[0]), fill(6, rows[1]))
}

pub fn config(attention: [usize; 3], representation: [usize; 3], keep: usize) -> Config {
    let widths = |[item, category, time]: [usize; 3]| Widths::new(item, category, time);
    Config::new().with_widths(widths(attention), widths(representation)).with_keep(keep)
}

pub fn head(seed: u64, widths: &[usize]) -> Head {
    let layer = |i: usize| Linear {
        weight: matrix(seed, 20 + i as u64, widths[i + 1], widths[i]) * 0.3,
        bias: matrix(seed, 40 + i as u64, 1, widths[i + 1]).row(0).to_owned(),
    };
    let layers = widths.len() - 1;
    Head {
        gain: matrix(seed, 60, 1, widths[0]).row(0).mapv(|x| 1.0 + 0.1 * x),
        bias: matrix(seed, 61, 1, widths[0]).row(0).to_owned(),
        layers: (0..layers).map(layer).collect(),
        slopes: (1..layers).map(|i| 0.1 * i as f64).collect(),
    }
}

/// Largest difference; NaN is never near.
pub fn worst<'a>(
    got: impl IntoIterator<Item = &'a f64>,
    want: impl IntoIterator<Item = &'a f64>,
) -> f64 {
    let error = |(a, b): (&f64, &f64)| match (a - b).abs() {
        error if error.is_finite() => error,
        _ if a == b => 0.0,
        _ => f64::INFINITY,
    };
    got.into_iter().zip(want).map(error).fold(0.0, f64::max)
}

/// A tensor of floats on the host.
pub fn host<D: Dimension>(x: &Tensor) -> ndarray::Array<f64, D> {
    x.to_array::<f32>().unwrap().mapv(f64::from).into_dimensionality().unwrap()
}

/// Within a bound relative to the largest element.
pub fn near<D: Dimension>(what: &str, got: &Tensor, want: ArrayView<'_, f64, D>, bound: f64) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    let got = host::<ndarray::IxDyn>(got);
    let largest = want.iter().fold(1e-3, |top: f64, x| top.max(x.abs()));
    let worst = worst(&got, want.into_dyn()) / largest;
    assert!(worst <= bound, "{what}: {worst:e} above {bound:e}");
}

pub fn bits_of(x: &Tensor) -> Vec<u32> {
    x.to_vec::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
}

pub fn up<D: Dimension>(gpu: &Gpu, x: ArrayView<'_, f64, D>) -> Tensor {
    Tensor::from_array(gpu, &x.mapv(|x| x as f32).view().into_dyn()).unwrap()
}
