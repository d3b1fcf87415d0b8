//! What golden files hold, compared with what a model computes.

use std::collections::BTreeMap;
use std::ops::Range;

use attn_core::testing::TensorFile;
use attn_model::attn_wgpu::{DType, Tensor};
use attn_model::{AttentionView, ModelConfig, Observer, Result, Session, Wants};

/// Keeps the residual stream and the weights of attention of every layer on the host.
#[derive(Default)]
pub struct Recorder {
    /// Behind the embedding, then behind each layer: `[tokens, hidden]`.
    pub hidden: Vec<Vec<f32>>,
    /// By layer, `[heads, tokens, keys]`, for the layers in `wanted`.
    pub maps: BTreeMap<usize, Vec<f64>>,
    /// Layers whose weights are wanted; with their windows, soft-caps and scales.
    wanted: Vec<(usize, Option<usize>)>,
    scale: f64,
    soft_cap: Option<f64>,
    rows: Option<Vec<usize>>,
}

impl Recorder {
    /// Records the weights of these layers, for all queries.
    pub fn of(config: &ModelConfig, layers: &[usize]) -> Self {
        let wanted = layers.iter().map(|&layer| (layer, config.layers[layer].window)).collect();
        Recorder {
            wanted,
            scale: config.scale,
            soft_cap: config.attention_soft_cap,
            ..Recorder::default()
        }
    }
}

/// The elements as f32, whatever the type.
pub fn floats(tensor: &Tensor) -> Vec<f32> {
    use half::{bf16, f16};
    match tensor.dtype() {
        DType::F16 => tensor.to_vec::<f16>().unwrap().into_iter().map(f32::from).collect(),
        DType::BF16 => tensor.to_vec::<bf16>().unwrap().into_iter().map(f32::from).collect(),
        _ => tensor.to_vec::<f32>().unwrap(),
    }
}

impl Observer for Recorder {
    fn hidden(&mut self, layer: usize, hidden: &Tensor) -> Result<()> {
        assert_eq!(layer, self.hidden.len());
        self.hidden.push(hidden.to_vec()?);
        Ok(())
    }

    fn wants(&mut self, layer: usize, _: Range<usize>) -> Wants {
        match self.wanted.iter().any(|(wanted, _)| *wanted == layer) {
            true => Wants::nothing().with_inputs(),
            false => Wants::nothing(),
        }
    }

    /// The softmax of the rotated queries and keys that the kernel got, in f64.
    fn attention(&mut self, layer: usize, view: &AttentionView) -> Result<()> {
        let window = self.wanted.iter().find(|(wanted, _)| *wanted == layer).unwrap().1;
        let inputs = view.inputs.as_ref().unwrap();
        let (q, k) = (floats(&inputs.q), floats(&inputs.k));
        let &[_, heads, queries, dim] = inputs.q.shape() else { unreachable!() };
        let &[_, heads_kv, keys, _] = inputs.k.shape() else { unreachable!() };
        let mut map = Vec::with_capacity(heads * queries * keys);
        for head in 0..heads {
            let kv = head / (heads / heads_kv);
            for query in 0..queries {
                let position = query + keys - queries;
                let row = &q[(head * queries + query) * dim..][..dim];
                let logit = |key: usize| {
                    let column = &k[(kv * keys + key) * dim..][..dim];
                    let dot: f64 =
                        row.iter().zip(column).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    let scaled = self.scale * dot;
                    self.soft_cap.map_or(scaled, |cap| cap * (scaled / cap).tanh())
                };
                let sees = |key: usize| {
                    key <= position && window.is_none_or(|window| position - key < window)
                };
                let logits: Vec<f64> = (0..keys)
                    .map(|key| if sees(key) { logit(key) } else { f64::NEG_INFINITY })
                    .collect();
                let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = logits.iter().map(|logit| (logit - top).exp()).sum();
                map.extend(logits.iter().map(|logit| (logit - top).exp() / sum));
            }
        }
        self.maps.insert(layer, map);
        Ok(())
    }
}

/// All logits of what a session returned, some rows at a time, `[tokens, vocabulary]`.
pub fn all_logits(session: &Session, hidden: &Tensor) -> Vec<f32> {
    let (count, at_once) = (hidden.shape()[0], session.logit_rows());
    let chunk = |first: usize| {
        let rows = first..(first + at_once).min(count);
        session.logits(hidden, rows).unwrap().to_vec::<f32>().unwrap()
    };
    (0..count).step_by(at_once).flat_map(chunk).collect()
}

/// Sequence `number` of a tensor of `file`.
pub fn sequence(file: &TensorFile, name: &str, number: usize) -> Vec<f64> {
    let whole = file.f64(name).unwrap();
    let len = whole.len() / whole.shape()[0];
    whole.iter().skip(number * len).take(len).copied().collect()
}

/// Tokens of sequence `number`.
pub fn tokens(file: &TensorFile, name: &str, number: usize) -> Vec<u32> {
    let whole = file.i32(name).unwrap();
    let len = whole.shape()[whole.ndim() - 1];
    whole.iter().skip(number * len).take(len).map(|&token| token as u32).collect()
}

/// Fails if any element is further off than `bound`.
pub fn close<T: Copy + Into<f64>>(what: &str, got: &[T], expected: &[f64], bound: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let distance = |(got, expected): (&T, &f64)| ((*got).into() - expected).abs();
    let worst = got.iter().zip(expected).map(distance).fold(0.0, f64::max);
    let all = got.iter().all(|x| (*x).into().is_finite());
    assert!(all && worst <= bound, "{what}: {worst:e} above {bound:e}");
}
