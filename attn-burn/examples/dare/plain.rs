//! Search and pooling by their definition, in burn's own operations: what the kernels are compared with.

use attn_burn::attn_dare::Config;
use attn_burn::ops::{Embeddings, Requests};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};

/// Embeddings of ids by item, category and time slot, `[.., width]` each.
fn rows<const D: usize>(
    tables: &Embeddings,
    ids: [Tensor<1, Int>; 3],
    shape: [usize; D],
) -> [Tensor<D>; 3] {
    let [item, category, time] = ids;
    let pairs = [(&tables.item, item), (&tables.category, category), (&tables.time, time)];
    pairs.map(|(table, ids)| {
        let mut own = shape;
        own[D - 1] = table.dims()[1];
        table.clone().select(0, ids).reshape(own)
    })
}

/// Features of the main and of the auxiliary head of what was kept, `index`; and of how many requests the definition
/// keeps others, by scores that rounding decides. Slots are by place, padding is item 0, scores are split.
pub fn features(
    attention: &Embeddings,
    representation: &Embeddings,
    requests: &Requests,
    index: Tensor<2, Int>,
    config: &Config,
) -> ([Tensor<2>; 2], Tensor<1, Int>) {
    let [count, length] = requests.history_item.dims();
    let device = requests.item.device();
    let candidate = || {
        let slot = slots(&[0], count, &device);
        [requests.item.clone(), requests.category.clone(), slot]
    };
    let history = || {
        let own: Vec<i32> = (1..=length as i32).rev().collect();
        let flat = |ids: &Tensor<2, Int>| ids.clone().reshape([-1]);
        [
            flat(&requests.history_item),
            flat(&requests.history_category),
            slots(&own, count, &device),
        ]
    };
    let q = rows(attention, candidate(), [count, 1, 0]);
    let k = rows(attention, history(), [count, length, 0]);
    let [semantic, time] = config.scales();
    let [item, category, slot] =
        [0, 1, 2].map(|part| (q[part].clone() * k[part].clone()).sum_dim(2));
    let scores = (item + category) * semantic + slot * time;
    let scores = scores.reshape([count, length]);
    let padding = requests.history_item.clone().equal_elem(0);
    let scores = scores.mask_fill(padding, -1e30);
    let least = scores.clone().detach().topk(config.keep, 1).narrow(1, config.keep - 1, 1);
    let least = least.clamp_min(-1e29).expand([count, length]);
    let best = scores.clone().detach().greater_equal(least).int();
    let places = Tensor::arange(0..length as i64, &device).reshape([1, 1, length]);
    let places = places.expand([count, config.keep, length]);
    let index = index.reshape([count, config.keep, 1]).expand([count, config.keep, length]);
    let given = index.equal(places).int().sum_dim(1).reshape([count, length]);
    let others = (best - given.clone()).abs().sum_dim(1).greater_elem(0).int().sum();
    let kept = scores.clone().mask_fill(given.equal_elem(0), -1e30);

    let v = Tensor::cat(rows(representation, candidate(), [count, 0]).to_vec(), 1);
    let e = Tensor::cat(rows(representation, history(), [count, length, 0]).to_vec(), 2);
    let features = [kept, scores].map(|scores| {
        let some = scores.clone().greater_elem(-1e29).float();
        let weights = (softmax(scores, 1) * some).reshape([count, 1, length]);
        let [_, _, width] = e.dims();
        let h = weights.matmul(e.clone()).reshape([count, width]);
        Tensor::cat(vec![v.clone(), h.clone(), v.clone() * h], 1)
    });
    (features, others)
}

/// The slots of one history, as often as there are requests.
fn slots(own: &[i32], count: usize, device: &Device) -> Tensor<1, Int> {
    let all: Vec<i32> = own.iter().copied().cycle().take(own.len() * count).collect();
    Tensor::from_data(TensorData::new(all, [own.len() * count]), device)
}
