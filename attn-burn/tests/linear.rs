//! Attention in linear time through burn: the bits of our own backward passes, finite differences, and burn's
//! autodiff of the definitions.

mod common;
#[path = "../examples/linear/plain.rs"]
mod plain;

use attn_burn::attn_aaren::{self, Config as Prefixes};
use attn_burn::attn_flowformer::{self, Config as Flow};
use attn_burn::attn_lightning::{Config as Decay, Slopes};
use attn_burn::attn_wgpu::linear_attention::{self, LinearAttention};
use attn_burn::nn::{
    AarenConfig, FlowAttentionConfig, GatedLinearAttentionConfig, TransNormerLayerConfig,
};
use attn_burn::ops;
use burn::tensor::{Device, Int, Tensor, TensorData};
use common::case::{Case, Three, words};
use common::{deviation, device, normal, read, seeded, tensor};

fn agree(got: &[Vec<f32>; 4], want: &[Vec<f32>; 4], bound: f64) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(deviation(got, want) < bound, "{i}: {:e}", deviation(got, want));
    }
}

#[test]
fn lightning_has_the_bits_of_its_own_gradients() {
    let Some(device) = device() else { return };
    let gpu = attn_burn::gpu(&device).unwrap();
    let tracked = device.clone().autodiff();
    let slopes = vec![0.25, 0.0];
    let config = Decay::new(2).with_slopes(Slopes::Given(slopes.clone())).with_block(16);
    let op = ops::Lightning::new(config).unwrap();
    let case = Case::new([[2, 2, 37, 8], [2, 1, 37, 8], [2, 1, 37, 12]]);
    let f = |x: &Three| op.forward(x[0].clone(), x[1].clone(), x[2].clone()).unwrap();
    let got = case.run(&tracked, f);
    case.differences(&device, &got, f);
    case.views(&tracked, f);
    let want = case.run(&tracked, |x| {
        let [k, v] = [&x[1], &x[2]].map(|x| x.clone().repeat_dim(1, 2));
        plain::lightning(x[0].clone(), k, v, &slopes)
    });
    // Two orders of summation in f32 over 37 tokens.
    agree(&got, &want, 1e-5);

    let own = LinearAttention::new(&gpu, &slopes).unwrap().with_block(16).unwrap();
    let ([q, k, v], weights) = case.ours(&gpu);
    let (output, saved) = own.forward_saved(linear_attention::Inputs::new(&q, &k, &v)).unwrap();
    let grads = own.backward(&saved, linear_attention::Cotangents::new(&weights)).unwrap();
    assert!(got == words([&output.out, &grads.dq, &grads.dk, &grads.dv]));
}

#[test]
fn states_carry_outputs_and_gradients_across_a_cut() {
    let Some(device) = device() else { return };
    let device = device.autodiff();
    let op = ops::Lightning::new(Decay::new(2)).unwrap();
    let case = Case::new([[2, 2, 24, 8]; 3]);
    let start = normal(2 * 2 * 8 * 8, 70);
    let by_state = normal(2 * 2 * 8 * 8, 71);
    let run = |cuts: &[usize]| {
        let [q, k, v] = case.inputs(&device);
        let first = tensor(&start, [2, 2, 8, 8], &device).require_grad();
        let (mut kv, mut outs) = (first.clone(), Vec::new());
        for part in cuts.windows(2) {
            let cut = |x: &Tensor<4>| x.clone().narrow(2, part[0], part[1] - part[0]);
            let continued = op.forward_with_state(cut(&q), cut(&k), cut(&v), Some(kv)).unwrap();
            kv = continued.kv;
            outs.push(continued.out);
        }
        let out = Tensor::cat(outs, 2);
        let weights = tensor(&case.weights, case.out, &device);
        let loss = (out.clone() * weights).sum()
            + (kv.clone() * tensor(&by_state, [2, 2, 8, 8], &device)).sum();
        let grads = loss.backward();
        let mut all = vec![read(out), read(kv)];
        all.extend([q, k, v, first].map(|x| read(x.grad(&grads).unwrap())));
        all
    };
    let (whole, cut) = (run(&[0, 24]), run(&[0, 7, 24]));
    for (a, b) in whole.iter().zip(&cut) {
        assert!(deviation(a, b) < 1e-5);
    }
}

#[test]
fn flows_have_the_bits_of_their_own_gradients() {
    let Some(device) = device() else { return };
    let gpu = attn_burn::gpu(&device).unwrap();
    let tracked = device.clone().autodiff();
    let cases = [
        (Flow::causal(), 21),
        (Flow::causal().with_clamp(1.02), 21),
        (Flow::new(), 13),
        (Flow::new().with_clamp(5.0), 13),
    ];
    for (config, keys) in cases {
        let case = Case::new([[2, 2, 21, 8], [2, 2, keys, 8], [2, 2, keys, 12]]);
        let op = ops::Flowformer::new(config.clone()).unwrap();
        let f = |x: &Three| op.forward(x[0].clone(), x[1].clone(), x[2].clone()).unwrap();
        let got = case.run(&tracked, f);
        // A step across the bound of a clamp has no derivative.
        if config.clamp.is_none_or(|clamp| clamp > 2.0) {
            case.differences(&device, &got, f);
        }
        case.views(&tracked, f);
        if config == Flow::causal() {
            let want =
                case.run(&tracked, |x| plain::flow(x[0].clone(), x[1].clone(), x[2].clone()));
            // Three sums in a row in f32, each over 21 tokens.
            agree(&got, &want, 3e-5);
        }
        let own = attn_flowformer::Flowformer::new(&gpu, config).unwrap();
        let ([q, k, v], weights) = case.ours(&gpu);
        let inputs = attn_flowformer::Inputs::new(&q, &k, &v);
        let (output, saved) = own.forward_saved(inputs).unwrap();
        let cotangents = attn_flowformer::Cotangents { out: &weights };
        let grads = own.backward(&saved, cotangents).unwrap();
        assert!(got == words([&output.out, &grads.dq, &grads.dk, &grads.dv]));
    }
}

#[test]
fn prefixes_have_the_bits_of_their_own_gradients() {
    let Some(device) = device() else { return };
    let gpu = attn_burn::gpu(&device).unwrap();
    let tracked = device.clone().autodiff();
    let op = ops::Aaren::new(Prefixes::new()).unwrap();
    let case = Case::with_out([[1, 1, 2, 8], [3, 2, 21, 8], [3, 2, 21, 12]], [3, 2, 21, 12]);
    let query = |x: &Tensor<4>| x.clone().reshape([2, 8]);
    let f = |x: &Three| op.forward::<2>(query(&x[0]), x[1].clone(), x[2].clone()).unwrap();
    let got = case.run(&tracked, f);
    case.differences(&device, &got, f);
    case.views(&tracked, f);
    let want = case.run(&tracked, |x| plain::prefixes(query(&x[0]), x[1].clone(), x[2].clone()));
    agree(&got, &want, 1e-5);

    let own = attn_aaren::Aaren::new(&gpu, Prefixes::new()).unwrap();
    let ([q, k, v], weights) = case.ours(&gpu);
    let q = q.reshape(&[2, 8]).unwrap();
    let (output, saved) = own.forward_saved(attn_aaren::Inputs::new(&q, &k, &v)).unwrap();
    let grads = own.backward(&saved, attn_aaren::Cotangents::new(&weights)).unwrap();
    assert!(got == words([&output.out, &grads.dq, &grads.dk, &grads.dv]));
}

fn marks(tokens: usize, device: &Device) -> Tensor<2, Int> {
    let marks: Vec<i32> = (0..2 * tokens).map(|i| i32::from(i % 5 != 1)).collect();
    Tensor::from_data(TensorData::new(marks, [2, tokens]), device)
}

/// Padding may hold anything, and changes nothing.
#[test]
fn padding_does_not_count() {
    let Some(device) = device() else { return };
    let device = device.autodiff();
    let shape = [2, 2, 15, 8];
    let [mut data, mut other] = [normal(480, 80), normal(480, 80)];
    let place = |i: usize| (i / 240) * 15 + i / 8 % 15;
    for i in 0..480 {
        if place(i) % 5 == 1 {
            (data[i], other[i]) = (9.0, -7.0);
        }
    }
    let valid = marks(15, &device);
    let counted = tensor::<4>(
        &(0..480).map(|i| f32::from(u8::from(place(i) % 5 != 1))).collect::<Vec<_>>(),
        shape,
        &device,
    );
    let query = tensor(&normal(16, 81), [2, 8], &device);
    let aaren = ops::Aaren::new(Prefixes::new()).unwrap();
    let by_aaren = |x: &Tensor<4>| {
        aaren.forward_valid(query.clone(), x.clone(), x.clone(), Some(valid.clone())).unwrap()
    };
    let run = |config: &Flow, x: &Tensor<4>| {
        let [q, k] = [0, 1].map(|_| Some(valid.clone()));
        let op = ops::Flowformer::new(config.clone()).unwrap();
        op.forward_valid(x.clone(), x.clone(), x.clone(), q, k).unwrap()
    };
    let by_flow = |x: &Tensor<4>| run(&Flow::new(), x);
    let by_causal = |x: &Tensor<4>| run(&Flow::causal(), x);
    let each: [&dyn Fn(&Tensor<4>) -> Tensor<4>; 3] = [&by_aaren, &by_flow, &by_causal];
    for f in each {
        let [a, b] = [&data, &other].map(|data| {
            let x = tensor(data, shape, &device).require_grad();
            let out = f(&x) * counted.clone();
            let grads = out.clone().square().sum().backward();
            (read(out), read(x.grad(&grads).unwrap()))
        });
        assert!(a == b && a.1.iter().any(|x| *x != 0.0));
    }
}

const WIDTH: usize = 16;

#[test]
fn modules_are_their_definitions() {
    let Some(device) = device() else { return };
    let (gated, layer, flow, aaren) = seeded(&device, || {
        let gated = GatedLinearAttentionConfig::new(WIDTH, 4).with_lrpe(true);
        (
            gated.init(&device).unwrap(),
            TransNormerLayerConfig::new(gated, 24).init(&device).unwrap(),
            FlowAttentionConfig::new(WIDTH, 2).init(&device).unwrap(),
            AarenConfig::new(WIDTH, 2).init(&device).unwrap(),
        )
    });
    let x = tensor(&normal(2 * 24 * WIDTH, 1), [2, 24, WIDTH], &device);
    let close = |got: Tensor<3>, want: Tensor<3>| {
        let apart = deviation(&read(got), &read(want));
        assert!(apart < 1e-5, "{apart:e}");
    };
    let slopes = Decay::new(4).head_slopes().unwrap();
    close(gated.forward(x.clone()).unwrap(), plain::gated(&gated, x.clone(), &slopes));
    close(flow.forward(x.clone()).unwrap(), plain::flowing(&flow, x.clone(), 2));
    close(aaren.forward(x.clone()).unwrap(), plain::recurrent(&aaren, x.clone(), 2));
    // In two pieces, positions included.
    let (first, state) = layer.forward_with_state(x.clone().narrow(1, 0, 9), None).unwrap();
    let rest = x.clone().narrow(1, 9, 15);
    let (second, state) = layer.forward_with_state(rest, Some(state)).unwrap();
    assert_eq!(state.tokens, 24);
    close(Tensor::cat(vec![first, second], 1), layer.forward(x).unwrap());
}

#[test]
fn what_does_not_fit_is_an_error() {
    let Some(device) = device() else { return };
    assert!(ops::Lightning::new(Decay::new(0)).is_err());
    assert!(ops::Flowformer::new(Flow::new().with_clamp(-1.0)).is_err());
    assert!(ops::Aaren::new(Prefixes::new().with_scale(f64::NAN)).is_err());
    let (flow, aaren) = seeded(&device, || {
        (
            FlowAttentionConfig::new(WIDTH, 2).init(&device).unwrap(),
            AarenConfig::new(WIDTH, 2).init(&device).unwrap(),
        )
    });
    let [x, short] = [24, 23].map(|tokens| Tensor::<3>::ones([2, tokens, WIDTH], &device));
    assert!(flow.forward_cross(x.clone(), short, None).is_err());
    assert!(flow.forward_cross(x.clone(), x.clone(), Some(marks(24, &device))).is_err());
    assert!(aaren.forward_valid(x.clone(), Some(marks(23, &device))).is_err());
    assert!(flow.forward_valid(x, Some(marks(23, &device))).is_err());
    let op = ops::Lightning::new(Decay::new(2)).unwrap();
    let [q, kv] = [[1, 2, 4, 8], [1, 2, 8, 7]].map(|shape| Tensor::<4>::ones(shape, &device));
    assert!(op.forward_with_state(q.clone(), q.clone(), q, Some(kv)).is_err());
    let three = Tensor::<4>::ones([1, 3, 4, 8], &device);
    assert!(op.forward(three.clone(), three.clone(), three).is_err());
}
