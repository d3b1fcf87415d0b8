//! The mechanisms by their definitions, in burn's own tensor operations: what the kernels are compared with.

use attn_burn::nn::{Aaren, FlowAttention, GatedLinearAttention, simple_rms_norm};
use burn::tensor::activation::{sigmoid, silu, softmax};
use burn::tensor::{Device, Int, Tensor, TensorData};

const EPSILON: f64 = 1e-6;

/// `o_t = sum_{i <= t} exp(-s (t - i)) (q_t . k_i) v_i`.
pub fn lightning(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, slopes: &[f64]) -> Tensor<4> {
    let tokens = q.dims()[2];
    let decay = |slope: f64, row: usize, column: usize| match row.checked_sub(column) {
        Some(steps) => (-slope * steps as f64).exp() as f32,
        None => 0.0,
    };
    let table = slopes
        .iter()
        .flat_map(|&slope| (0..tokens * tokens).map(move |i| decay(slope, i / tokens, i % tokens)));
    let shape = [1, slopes.len(), tokens, tokens];
    let decays = TensorData::new(table.collect::<Vec<f32>>(), shape);
    let weights = q.clone().matmul(k.swap_dims(2, 3)) * Tensor::from_data(decays, &q.device());
    weights.matmul(v)
}

/// The causal Flow-Attention, without a clamp.
pub fn flow(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    let tokens = q.dims()[2];
    let device = q.device();
    let earlier = Tensor::<2>::ones([tokens, tokens], &device).tril(0).unsqueeze::<4>();
    let count = Tensor::<1, Int>::arange(1..tokens as i64 + 1, &device).float();
    let count = count.reshape([1, 1, -1, 1]);
    let sums = |x: Tensor<4>| earlier.clone().matmul(x);
    let flow = |x: &Tensor<4>, sum: Tensor<4>| ((x.clone() + EPSILON) * (sum + EPSILON)).sum_dim(3);

    let (a, b) = (sigmoid(q), sigmoid(k));
    let (incoming, outgoing) = (flow(&a, sums(b.clone())), flow(&b, sums(a.clone())));
    let sink = flow(&a, sums(b.clone() * count.clone() / outgoing)) / count.clone();
    let source = flow(&b, sums(a.clone() * count.clone() / incoming.clone())) / count.clone();
    let weights = source.exp();
    let competition = weights.clone() * count / sums(weights);
    let mixed = (a.matmul(b.swap_dims(2, 3)) * earlier).matmul(v * competition);
    mixed * sigmoid(sink) / incoming
}

/// Softmax attention of the queries `[heads, dim]` over every prefix.
pub fn prefixes(q: Tensor<2>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    let [heads, dim] = q.dims();
    let tokens = k.dims()[2];
    let later = Tensor::<2>::full([tokens, tokens], -1e30, &k.device()).triu(1).unsqueeze::<4>();
    let scores = (k * q.reshape([1, heads, 1, dim])).sum_dim(3) / (dim as f64).sqrt();
    softmax(scores.swap_dims(2, 3) + later, 3).matmul(v)
}

/// A module by one of the functions above.
pub fn gated(module: &GatedLinearAttention, x: Tensor<3>, slopes: &[f64]) -> Tensor<3> {
    let heads = slopes.len();
    let [mut q, mut k] =
        [&module.query, &module.key].map(|map| split(silu(map.forward(x.clone())), heads));
    if let Some(theta) = &module.theta {
        let [cos, sin] = angles(theta.val(), q.dims()[2], &x.device());
        let turned = |x: Tensor<4>| Tensor::cat(vec![x.clone() * cos.clone(), x * sin.clone()], 3);
        (q, k) = (turned(q), turned(k));
    }
    let mixed = lightning(q, k, split(module.value.forward(x.clone()), heads), slopes);
    module.output.forward(module.gate.forward(x) * simple_rms_norm(join(mixed), EPSILON))
}

/// A module by one of the functions above.
pub fn flowing(module: &FlowAttention, x: Tensor<3>, heads: usize) -> Tensor<3> {
    let [q, k, v] =
        [&module.query, &module.key, &module.value].map(|map| split(map.forward(x.clone()), heads));
    module.output.forward(join(flow(q, k, v)))
}

/// A module by one of the functions above.
pub fn recurrent(module: &Aaren, x: Tensor<3>, heads: usize) -> Tensor<3> {
    let q = module.query.forward(module.token.val()).reshape([heads as i32, -1]);
    let [k, v] = [&module.key, &module.value].map(|map| split(map.forward(x.clone()), heads));
    module.output.forward(join(prefixes(q, k, v)))
}

/// Cosines and sines of all positions, `[1, heads, tokens, dim]`.
fn angles(theta: Tensor<2>, tokens: usize, device: &Device) -> [Tensor<4>; 2] {
    let [heads, dim] = theta.dims();
    let positions = Tensor::<1, Int>::arange(0..tokens as i64, device).float();
    let angles = positions.reshape([1, 1, -1, 1]) * theta.reshape([1, heads, 1, dim]);
    [angles.clone().cos(), angles.sin()]
}

fn split(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, tokens, width] = x.dims();
    x.reshape([batch, tokens, heads, width / heads]).swap_dims(1, 2)
}

fn join(x: Tensor<4>) -> Tensor<3> {
    let [batch, heads, tokens, dim] = x.dims();
    x.swap_dims(1, 2).reshape([batch, tokens, heads * dim])
}
