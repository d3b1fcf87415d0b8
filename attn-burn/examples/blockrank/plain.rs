//! Scores of documents and the loss by their definitions, in burn's own operations: what the kernels are
//! compared with.

use burn::tensor::activation::softmax;
use burn::tensor::{Tensor, TensorData};

/// `mean_hi sum_{j in document} softmax_j(q_hi k_hj / sqrt(dim))`, `[batch, documents]`, of signal rows
/// `q [batch, heads, signals, dim]` and the rows of all documents `k [batch, heads_kv, tokens, dim]`, one
/// document of each prompt behind another from token 0 on.
pub fn scores(q: Tensor<4>, k: Tensor<4>, documents: &[&[usize]]) -> Tensor<2> {
    let [batch, heads, signals, dim] = q.dims();
    let [_, heads_kv, tokens, _] = k.dims();
    let most = documents.iter().map(|own| own.len()).max().unwrap_or(0);
    let mut belongs = vec![0.0f32; batch * tokens * most];
    let mut hidden = vec![-1e30f32; batch * tokens];
    for (prompt, own) in documents.iter().enumerate() {
        let mut token = prompt * tokens;
        for (document, length) in own.iter().enumerate() {
            for at in token..token + length {
                belongs[at * most + document] = 1.0;
                hidden[at] = 0.0;
            }
            token += length;
        }
    }
    let device = q.device();
    let table = |data: Vec<f32>, shape: [usize; 4]| {
        Tensor::<4>::from_data(TensorData::new(data, shape), &device)
    };
    let q = q.reshape([batch, heads_kv, heads / heads_kv * signals, dim]);
    let logits = q.matmul(k.swap_dims(2, 3)) / (dim as f64).sqrt();
    let weights = softmax(logits + table(hidden, [batch, 1, 1, tokens]), 3);
    let belongs = table(belongs, [batch, 1, tokens, most]).repeat_dim(1, heads_kv);
    let masses = weights.matmul(belongs).reshape([batch, heads * signals, most]);
    masses.mean_dim(1).reshape([batch, most])
}

/// The mean of `ln sum_all exp(s / tau) - s_positive / tau`.
pub fn loss(scores: Tensor<2>, positives: &[usize], tau: f64) -> Tensor<1> {
    let [batch, documents] = scores.dims();
    let mut chosen = vec![0.0f32; batch * documents];
    positives.iter().enumerate().for_each(|(prompt, own)| chosen[prompt * documents + own] = 1.0);
    let chosen = Tensor::from_data(TensorData::new(chosen, [batch, documents]), &scores.device());
    let logits = burn::tensor::activation::log_softmax(scores / tau, 1);
    -(logits * chosen).sum() / batch as f64
}
