//! What the tests share.

use attn_core::dense;
use attn_core::testing::{normal, uniform};
use attn_vlsam::ndarray::{Array2, Array3, Array4, ArrayD, Axis};
use attn_vlsam::{Gpu, Regularisation, Tensor};

pub const PLACEMENTS: [Regularisation; 3] =
    [Regularisation::Once, Regularisation::PerLayer, Regularisation::None];

/// Softmax of each row of logits over the keys up to its own.
pub fn causal_softmax(logits: &Array2<f64>) -> Array2<f64> {
    let mut map = Array2::zeros(logits.dim());
    for (i, row) in logits.outer_iter().enumerate() {
        let most = row.iter().take(i + 1).copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().take(i + 1).map(|x| (x - most).exp()).sum();
        for j in 0..=i {
            map[[i, j]] = (row[j] - most).exp() / sum;
        }
    }
    map
}

/// Causal probabilities of normal logits, `[layers, heads, tokens, tokens]`.
pub fn stack(seed: u64, [layers, heads, tokens]: [usize; 3]) -> Array4<f64> {
    let mut maps = Array4::zeros((layers, heads, tokens, tokens));
    for (layer, mut maps) in maps.outer_iter_mut().enumerate() {
        for (head, mut map) in maps.outer_iter_mut().enumerate() {
            let stream = (layer * heads + head) as u64;
            let logit = |(i, j)| 1.5 * normal(seed, stream, (i * tokens + j) as u64);
            map.assign(&causal_softmax(&Array2::from_shape_fn((tokens, tokens), logit)));
        }
    }
    maps
}

/// Aggregated maps `[layers, tokens, tokens]`.
pub fn aggregated(maps: &Array4<f64>) -> Array3<f64> {
    let (layers, _, tokens, _) = maps.dim();
    let mut all = Array3::zeros((layers, tokens, tokens));
    for (layer, own) in maps.outer_iter().enumerate() {
        let weights = attn_vlsam::reference::head_weights(own);
        let sum = attn_vlsam::reference::aggregate(own, weights.view());
        all.index_axis_mut(Axis(0), layer).assign(&sum);
    }
    all
}

/// Normal numbers `[1, heads, tokens, dim]` as a device gets them.
pub fn numbers(seed: u64, stream: u64, [heads, tokens, dim]: [usize; 3]) -> Array4<f64> {
    let mut index = 0;
    Array4::from_shape_simple_fn((1, heads, tokens, dim), || {
        index += 1;
        f64::from(normal(seed, stream, index) as f32)
    })
}

pub fn below(seed: u64, stream: u64, index: u64, end: usize) -> usize {
    ((uniform(seed, stream, index) * end as f64) as usize).min(end - 1)
}

pub fn upload(gpu: &Gpu, x: &Array4<f64>) -> Tensor {
    Tensor::from_array(gpu, &x.mapv(|x| x as f32).view().into_dyn()).unwrap()
}

pub fn wide(tensor: &Tensor) -> ArrayD<f64> {
    tensor.to_array::<f32>().unwrap().mapv(f64::from)
}

pub fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// Probabilities of one layer `[heads, N, N]`, of queries and keys.
pub fn probabilities(q: &Array4<f64>, k: &Array4<f64>, config: &dense::Config) -> Array3<f64> {
    let inputs = dense::Inputs::new(q.view(), k.view(), k.view());
    let probs = dense::forward_with_probs(inputs, config).unwrap().probs.unwrap();
    probs.index_axis(Axis(0), 0).to_owned()
}

/// Largest difference, relative to the largest element of `want`.
pub fn distance(got: &ArrayD<f64>, want: &ArrayD<f64>) -> f64 {
    assert_eq!(got.shape(), want.shape());
    let largest = want.iter().fold(f64::MIN_POSITIVE, |most, x| most.max(x.abs()));
    let off = |(a, b): (&f64, &f64)| match (a - b).abs() / largest {
        off if off.is_finite() => off,
        _ => f64::INFINITY,
    };
    got.iter().zip(want).map(off).fold(0.0, f64::max)
}
