//! Titans by its definition, in burn's own tensor operations: what the kernels are compared with.

use attn_burn::nn::{Attention, Titans};
use attn_burn::ops::MemoryInputs;
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor, TensorData};

/// Window of attention, as in `recall`.
const WINDOW: usize = 4;

/// What memories of depth 1 read in chunks of one token, from weights `[heads, in, out]` on.
fn remembered(inputs: MemoryInputs, learned: Tensor<3>, coefficient: f64) -> Tensor<4> {
    let [batch, _, tokens, _] = inputs.q.dims();
    let mut w = learned.unsqueeze::<4>().repeat_dim(0, batch);
    let mut s = w.zeros_like();
    let mut read = Vec::new();
    for t in 0..tokens {
        let row = |x: &Tensor<4>| x.clone().narrow(2, t, 1);
        let gate = |x: &Tensor<3>| x.clone().narrow(2, t, 1).unsqueeze_dim::<4>(3);
        let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(row);
        let [theta, eta, alpha] = [&inputs.theta, &inputs.eta, &inputs.alpha].map(gate);
        let error = k.clone().matmul(w.clone()) - v;
        let gradient = k.swap_dims(2, 3).matmul(error) * coefficient;
        s = s * eta - gradient * theta;
        w = w * (-alpha + 1.0) + s.clone();
        read.push(q.matmul(w.clone()));
    }
    Tensor::cat(read, 2)
}

/// A layer that is the memory alone or gates attention.
pub fn layer(layer: &Titans, x: Tensor<3>) -> Tensor<3> {
    let [batch, tokens, _] = x.dims();
    let persistent = layer.persist.as_ref().map(|persist| persist.val());
    let count = persistent.as_ref().map_or(0, |persist| persist.dims()[0]);
    let rows = match persistent {
        Some(persist) => Tensor::cat(vec![persist.unsqueeze::<3>().repeat_dim(0, batch), x], 1),
        None => x,
    };
    let inputs = layer.memory.inputs(&rows, 0);
    let coefficient = layer.config().memory.coefficient;
    let y = join(remembered(inputs, layer.memory.m_w0.val(), coefficient));
    let m = match &layer.readout {
        Some(readout) => readout.forward(rows.clone(), y),
        None => y,
    };
    let own = |all: Tensor<3>| all.narrow(1, count, tokens);
    match (&layer.attention, &layer.gate) {
        (Some(attention), Some(gate)) => {
            let heads = layer.config().memory.heads;
            gate.forward(own(attended(attention, rows, heads, count)), own(m))
        }
        _ => own(m),
    }
}

/// Softmax attention in a window, and to the first `sinks` tokens.
fn attended(attention: &Attention, x: Tensor<3>, heads: usize, sinks: usize) -> Tensor<3> {
    let [batch, tokens, width] = x.dims();
    let split = |x: Tensor<3>| x.reshape([batch, tokens, heads, width / heads]).swap_dims(1, 2);
    let [q, k, v] = [&attention.query, &attention.key, &attention.value]
        .map(|map| split(map.forward(x.clone())));
    let scores = q.matmul(k.swap_dims(2, 3)) / ((width / heads) as f64).sqrt();
    let weights = softmax(scores + hidden(tokens, sinks, &x.device()), 3);
    attention.output.forward(join(weights.matmul(v)))
}

/// 0 where a token is seen.
fn hidden(tokens: usize, sinks: usize, device: &Device) -> Tensor<4> {
    let seen = |i: usize, j: usize| j <= i && (i - j < WINDOW || j < sinks);
    let bias = |at: usize| if seen(at / tokens, at % tokens) { 0.0 } else { -1e30 };
    let table: Vec<f32> = (0..tokens * tokens).map(bias).collect();
    Tensor::from_data(TensorData::new(table, [1, 1, tokens, tokens]), device)
}

fn join(x: Tensor<4>) -> Tensor<3> {
    let [batch, heads, tokens, dim] = x.dims();
    x.swap_dims(1, 2).reshape([batch, tokens, heads * dim])
}
