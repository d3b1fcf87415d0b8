//! Gradients through burn: the bits of our own backward passes, finite differences, and burn's own autodiff.

mod common;

use attn_burn::attn_core::plan::{PlanShape, Share, SparsePlan};
use attn_burn::attn_core::{Mask, Modifier};
use attn_burn::attn_routing::{self, Uninitialised};
use attn_burn::attn_wgpu::attention::{Cotangents, Inputs};
use attn_burn::attn_wgpu::{Tensor as Ours, attention, plan};
use attn_burn::dense::Config;
use attn_burn::ops::{Attention, Plan, PlanAttention, Routing};
use burn::tensor::Tensor;
use burn::tensor::module::attention_fallback;
use burn::tensor::ops::AttentionModuleOptions;
use common::case::{Case, Shapes, Three, words};
use common::{deviation, device, normal, ours, read, tensor};

fn configs() -> Vec<(Shapes, Config)> {
    let square = |heads, heads_kv, n, dim| {
        [[2, heads, n, dim], [2, heads_kv, n, dim], [2, heads_kv, n, dim]]
    };
    let causal = || Config::new().with_mask(Mask::Causal);
    let window = Mask::Window { left: 5, right: 2 };
    let documents = Mask::documents(&[0, 7, 7, 19], Mask::Causal);
    vec![
        (square(2, 2, 19, 16), Config::new()),
        (square(4, 2, 33, 32), causal()),
        (square(2, 1, 17, 8), causal().with_soft_cap(3.0).with_scale(0.4)),
        (square(1, 1, 24, 12), Config::new().with_mask(window)),
        (square(1, 1, 19, 16), Config::new().with_mask(documents)),
        (
            square(4, 4, 21, 16),
            causal().with_modifier(Modifier::alibi(&[0.5, 0.25, 0.125, 0.0625])),
        ),
        // Few queries of many keys, another dimension of values, no multiple of four.
        ([[1, 2, 3, 10], [1, 2, 40, 10], [1, 2, 40, 7]], causal()),
    ]
}

#[test]
fn dense_attention_has_the_bits_of_its_own_gradients() {
    let Some(device) = device() else { return };
    let gpu = attn_burn::gpu(&device).unwrap();
    for (shapes, config) in configs() {
        let case = Case::new(shapes);
        let op = Attention::new(config.clone()).unwrap();
        let f = |x: &Three| op.forward(x[0].clone(), x[1].clone(), x[2].clone()).unwrap();
        let got = case.run(&device.clone().autodiff(), f);
        case.differences(&device, &got, f);

        let attention = attention::Attention::new(&gpu, config.clone()).unwrap();
        let ([q, k, v], weights) = case.ours(&gpu);
        let (output, saved) = attention.forward_saved(Inputs::new(&q, &k, &v)).unwrap();
        let cotangents = Cotangents { out: &weights, lse: None };
        let grads = attention.backward(&saved, cotangents).unwrap();
        let want = words([&output.out, &grads.dq, &grads.dk, &grads.dv]);
        assert!(got == want, "{config:?}");
    }
}

#[test]
fn dense_attention_agrees_with_burns_own() {
    let Some(device) = device() else { return };
    let case = Case::new([[2, 3, 29, 16]; 3]);
    for causal in [false, true] {
        let mask = if causal { Mask::Causal } else { Mask::Full };
        let op = Attention::new(Config::new().with_mask(mask)).unwrap();
        let device = device.clone().autodiff();
        let got =
            case.run(&device, |x| op.forward(x[0].clone(), x[1].clone(), x[2].clone()).unwrap());
        let options = AttentionModuleOptions { is_causal: causal, ..Default::default() };
        let want = case.run(&device, |x| {
            attention_fallback(x[0].clone(), x[1].clone(), x[2].clone(), None, None, options)
        });
        for (got, want) in got.iter().zip(&want) {
            // Two orders of summation in f32 over 29 keys.
            assert!(deviation(got, want) < 5e-6, "{causal} {:e}", deviation(got, want));
        }
    }
}

#[test]
fn views_and_untracked_inputs() {
    let Some(device) = device() else { return };
    let device = device.autodiff();
    let case = Case::new([[2, 3, 16, 8]; 3]);
    let op = Attention::new(Config::new()).unwrap();
    case.views(&device, |[q, k, v]| op.forward(q.clone(), k.clone(), v.clone()).unwrap());
    // Keys that are the values, expanded over the heads.
    let shared = |x: &Three, f: &dyn Fn(Tensor<4>, Tensor<4>) -> Tensor<4>| {
        let one = x[1].clone().slice([0..2, 0..1, 0..16, 0..8]).expand([2, 3, 16, 8]);
        f(x[0].clone(), one)
    };
    let got = case.run(&device, |x| shared(x, &|q, kv| op.forward(q, kv.clone(), kv).unwrap()));
    let want = case.run(&device, |x| {
        shared(x, &|q, kv| attention_fallback(q, kv.clone(), kv, None, None, Default::default()))
    });
    for (got, want) in got.iter().zip(&want).filter(|(_, want)| !want.is_empty()) {
        assert!(deviation(got, want) < 5e-6);
    }
}

#[test]
fn the_log_sum_exp_and_sinks_have_gradients() {
    let Some(device) = device() else { return };
    let gpu = attn_burn::gpu(&device).unwrap();
    let device = device.autodiff();
    let case = Case::new([[2, 2, 13, 16]; 3]);
    let (sinks, by_lse) = (normal(2, 30), normal(52, 31));
    let op = Attention::new(Config::new()).unwrap();

    let [q, k, v] = case.inputs(&device);
    let attended = op.forward_with_lse(q.clone(), k.clone(), v.clone()).unwrap();
    let weights = tensor(&case.weights, case.out, &device);
    let loss = (attended.out * weights.clone()).sum()
        + (attended.lse * tensor(&by_lse, [2, 2, 13], &device)).sum();
    let grads = loss.backward();
    let got = [&q, &k, &v].map(|x| read(x.grad(&grads).unwrap()));

    let attention = attention::Attention::new(&gpu, Config::new()).unwrap();
    let ([oq, ok, ov], own_weights) = case.ours(&gpu);
    let (_, saved) = attention.forward_saved(Inputs::new(&oq, &ok, &ov)).unwrap();
    let lse = ours(&gpu, &by_lse, &[2, 2, 13]);
    let cotangents = Cotangents { out: &own_weights, lse: Some(&lse) };
    let want = attention.backward(&saved, cotangents).unwrap();
    let want = [&want.dq, &want.dk, &want.dv].map(|x| x.to_vec::<f32>().unwrap());
    assert!(got == want);

    let own_sinks = tensor(&sinks, [2], &device).require_grad();
    let out = op.forward_with_sinks(q, k, v, own_sinks.clone()).unwrap();
    let grads = (out * weights).sum().backward();
    let got = read(own_sinks.grad(&grads).unwrap());
    let sinks = ours(&gpu, &sinks, &[2]);
    let inputs = Inputs::new(&oq, &ok, &ov).with_sinks(&sinks);
    let (_, saved) = attention.forward_saved(inputs).unwrap();
    let cotangents = Cotangents { out: &own_weights, lse: None };
    let want = attention.backward(&saved, cotangents).unwrap().d_sinks.unwrap();
    assert_eq!(got, want.to_vec::<f32>().unwrap());
}

fn sparse_plan(shape: PlanShape) -> SparsePlan {
    let allows = |_, query, key| (query * 7 + key * 3) % 5 < 2 || key == query;
    SparsePlan::covering(shape, Share::AllHeads, true, [4, 2], allows).unwrap()
}

#[test]
fn plans_have_the_bits_of_their_own_gradients() {
    let Some(device) = device() else { return };
    let gpu = attn_burn::gpu(&device).unwrap();
    let case = Case::new([[2, 2, 40, 16], [2, 1, 40, 16], [2, 1, 40, 16]]);
    let plan = sparse_plan(PlanShape::new(2, 2, 1, 40, 40));
    let config = Config::new().with_mask(Mask::Causal);
    let op = PlanAttention::new(config.clone()).unwrap();
    let own = plan::DevicePlan::upload(&gpu, &plan).unwrap();
    for given in [Plan::from(plan), Plan::from(own.clone())] {
        let f = |x: &Three| op.forward(x[0].clone(), x[1].clone(), x[2].clone(), &given).unwrap();
        let got = case.run(&device.clone().autodiff(), f);
        case.differences(&device, &got, f);
        let attention = plan::PlanAttention::new(&gpu, config.clone()).unwrap();
        let ([q, k, v], weights) = case.ours(&gpu);
        let (output, saved) = attention.forward_saved(Inputs::new(&q, &k, &v), &own).unwrap();
        let cotangents = Cotangents { out: &weights, lse: None };
        let grads = attention.backward(&saved, cotangents).unwrap();
        assert!(got == words([&output.out, &grads.dq, &grads.dk, &grads.dv]));
    }
}

#[test]
fn routing_has_the_bits_of_its_own_gradients() {
    let Some(device) = device() else { return };
    let gpu = attn_burn::gpu(&device).unwrap();
    let case = Case::new([[2, 2, 48, 16]; 3]);
    let means = normal(2 * 4 * 16, 40);
    for shared in [true, false] {
        let config = attn_routing::Config::new(4, 12).with_shared_qk(shared).with_scale(0.25);
        let op = Routing::new(config.clone()).unwrap();
        let f = |x: &Three| {
            let means = tensor(&means, [2, 4, 16], &x[0].device());
            op.forward(x[0].clone(), x[1].clone(), x[2].clone(), None, means).unwrap()
        };
        let got = case.run(&device.clone().autodiff(), f);

        let layer = attn_routing::Routing::new(&gpu, config).unwrap();
        let ([q, k, v], weights) = case.ours(&gpu);
        let inputs = Inputs::new(&q, if shared { &q } else { &k }, &v);
        let means = ours(&gpu, &means, &[2, 4, 16]);
        let centroids = Uninitialised::new(2, 4, 16).with_means(&means).unwrap();
        let (output, saved) = layer.forward_saved(inputs, None, &centroids).unwrap();
        let grads = layer.backward(&saved, attn_routing::Cotangents { out: &weights }).unwrap();
        let mut want = words([&output.out, &grads.dq, &grads.dk, &grads.dv]);
        if shared {
            want[2].clear();
        }
        assert!(got == want, "shared: {shared}");
    }
}

/// With every token in every cluster no route can turn, so that differences mean something.
#[test]
fn routing_agrees_with_differences() {
    let Some(device) = device() else { return };
    let case = Case::new([[1, 2, 12, 8]; 3]);
    let config = attn_routing::Config::new(2, 12).with_shared_qk(false).with_scale(0.3);
    let op = Routing::new(config).unwrap();
    let means = normal(2 * 2 * 8, 41);
    let f = |x: &Three| {
        let means = tensor(&means, [2, 2, 8], &x[0].device());
        op.forward(x[0].clone(), x[1].clone(), x[2].clone(), None, means).unwrap()
    };
    let got = case.run(&device.clone().autodiff(), f);
    case.differences(&device, &got, f);
}

/// A step of training: the loss and its gradient, centroids after the step, padding.
#[test]
fn routing_trains_as_the_layer_does() {
    let Some(device) = device() else { return };
    let gpu = attn_burn::gpu(&device).unwrap();
    let device = device.autodiff();
    let case = Case::new([[2, 2, 32, 8]; 3]);
    let mut config = attn_routing::Config::new(4, 8).with_decay(0.9);
    config.commitment = 0.5;
    let words: Vec<u32> = (0..64).map(|i| u32::from(i % 32 < 27)).collect();
    let valid = burn::tensor::TensorData::new(words.clone(), [2, 32]);
    let valid = Tensor::<2, burn::tensor::Int>::from_data(valid, &device);
    let means = normal(2 * 4 * 8, 42);

    let op = Routing::new(config.clone()).unwrap();
    let [q, k, v] = case.inputs(&device);
    let start = tensor(&means, [2, 4, 8], &device);
    let centroids = attn_burn::ops::Centroids {
        means: start.clone(),
        sums: start,
        counts: Tensor::ones([2, 4], &device),
    };
    let trained = op.train(q.clone(), k, v.clone(), Some(valid), &centroids).unwrap();
    let weights = tensor(&case.weights, case.out, &device);
    let loss = (trained.out * weights).sum() + trained.commitment.clone().sum() * 2.0;
    let grads = loss.backward();

    let layer = attn_routing::Routing::new(&gpu, config).unwrap();
    let ([oq, _, ov], weights) = case.ours(&gpu);
    let inputs = Inputs::new(&oq, &oq, &ov);
    let means = ours(&gpu, &means, &[2, 4, 8]);
    let valid = Ours::from_slice(&gpu, &words, &[2, 32]).unwrap();
    let centroids = Uninitialised::new(2, 4, 8).with_means(&means).unwrap();
    let (output, saved) = layer.forward_saved(inputs, Some(&valid), &centroids).unwrap();
    let own = layer.backward(&saved, attn_routing::Cotangents { out: &weights }).unwrap();
    let commitment = layer.commitment_loss(inputs, &output.routes, &centroids).unwrap();
    let next = layer.update(inputs, &output.routes, &centroids).unwrap();
    let vec = |x: &Ours| x.to_vec::<f32>().unwrap();
    assert_eq!(read(trained.commitment), vec(&commitment.loss));
    assert_eq!(read(trained.centroids.means), vec(&next.means));
    assert_eq!(read(trained.centroids.sums), vec(&next.sums));
    assert_eq!(read(trained.centroids.counts), vec(&next.counts));
    let (dq, by_loss) = (vec(&own.dq), vec(&commitment.dq));
    let want: Vec<_> = dq.iter().zip(by_loss).map(|(a, b)| a + 2.0 * b).collect();
    assert!(deviation(&read(q.grad(&grads).unwrap()), &want) < 1e-6);
    assert_eq!(read(v.grad(&grads).unwrap()), vec(&own.dv));
}
