//! BlockRank: attention, scores and loss.

use std::path::Path;

use attn_burn::attn_blockrank::{self as blockrank, Config};
use attn_burn::ops::{BlockRank, Segments};
use attn_core::testing::golden::files;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Tensor};

use crate::common::case::{Case, Three, words};
use crate::common::{device, normal, ours, read, seeded, tensor};
use crate::{close, one};

/// Over the largest element: outputs, scores and gradients, by the paper's specification.
const OUT: f64 = 2e-5;
const SCORES: f64 = 1e-5;
const LOSS: f64 = 1e-4;
const GRAD: f64 = 1e-4;

fn segments(lengths: &[&[usize]]) -> Segments {
    blockrank::Segments::packed(lengths).unwrap().into()
}

/// Two prompts of unlike lengths, three documents and two.
fn two() -> Segments {
    segments(&[&[5, 7, 1, 9, 4], &[3, 6, 8, 5]])
}

#[test]
fn attention_has_the_bits_of_its_own_gradients() {
    let Some(device) = device() else { return };
    let gpu = attn_burn::gpu(&device).unwrap();
    let (segments, case) = (two(), Case::new([[2, 4, 26, 16], [2, 2, 26, 16], [2, 2, 26, 16]]));
    let op = BlockRank::new(Config::new()).unwrap();
    let f = |x: &Three| op.forward(x[0].clone(), x[1].clone(), x[2].clone(), &segments).unwrap();
    let got = case.run(&device.autodiff(), f);

    let method = blockrank::BlockRank::new(&gpu, Config::new()).unwrap();
    let own = method.segments(segments.host()).unwrap();
    let ([q, k, v], weights) = case.ours(&gpu);
    let inputs = blockrank::Inputs::new(&q, &k, &v);
    let (output, saved) = method.forward_saved(inputs, &own).unwrap();
    let cotangents = blockrank::Cotangents { out: &weights, lse: None };
    let grads = method.backward(&saved, cotangents).unwrap();
    assert!(got == words([&output.out, &grads.dq, &grads.dk, &grads.dv]));
}

#[test]
fn scores_have_the_bits_of_their_own_gradients() {
    let Some(device) = device() else { return };
    let gpu = attn_burn::gpu(&device).unwrap();
    let segments = two();
    let (shape_q, shape_k) = ([2, 4, 2, 16], [2, 2, 26, 16]);
    let (q, k, by) = (normal(256, 1), normal(2 * 2 * 26 * 16, 2), normal(6, 3));
    let op = BlockRank::new(Config::new().with_heads(vec![0, 2, 3])).unwrap();
    let method = blockrank::BlockRank::new(&gpu, op.config().clone()).unwrap();
    let own = method.segments(segments.host()).unwrap();
    let (own_q, own_k) = (ours(&gpu, &q, &shape_q), ours(&gpu, &k, &shape_k));
    let (want, saved) = method.doc_scores_saved(&own_q, &own_k, &own).unwrap();
    let grads = method.doc_scores_backward(&saved, &ours(&gpu, &by, &[2, 3])).unwrap();

    let device = device.autodiff();
    let own = |data: &[f32], shape| tensor(data, shape, &device).require_grad();
    let (q, k) = (own(&q, shape_q), own(&k, shape_k));
    let scores = op.scores(q.clone(), k.clone(), &segments).unwrap();
    let by = tensor(&by, [2, 3], &device);
    let found = (scores.clone() * by).sum().backward();
    assert_eq!(read(scores), want.to_vec::<f32>().unwrap());
    assert_eq!(read(q.grad(&found).unwrap()), grads.dq.to_vec::<f32>().unwrap());
    assert_eq!(read(k.grad(&found).unwrap()), grads.dk.to_vec::<f32>().unwrap());
}

/// Attention, scores and loss at once, as a layer trains: queries and keys get gradients from both.
#[test]
fn losses_and_gradients_are_those_of_golden_files() {
    let Some(device) = device() else { return };
    let device = device.autodiff();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../attn-rank/blockrank/tests/data");
    let mut seen = 0;
    for file in files(&folder, "blockrank").unwrap() {
        if !file.has(&["d_out", "dq", "dk", "dv", "dq_aux", "dk_aux"]) {
            continue;
        }
        let lengths: Vec<usize> =
            file.i32("segment_lengths").unwrap().iter().map(|x| *x as usize).collect();
        let positives: Vec<usize> =
            file.i32("positives").unwrap().iter().map(|x| *x as usize).collect();
        let rows = file.i32("signal_rows").unwrap();
        let (first, signals) = (rows[[0]] as usize, rows.len());
        let segments = segments(&[&lengths]);
        let op = BlockRank::new(Config::new().with_tau(file.number("tau").unwrap())).unwrap();

        let [q, k, v] = ["q", "k", "v"].map(|name| one::<4>(&file, name, &device).require_grad());
        // A backward pass takes the graph with it, so each has one of its own.
        let scores =
            || op.scores(q.clone().narrow(2, first, signals), k.clone(), &segments).unwrap();
        let loss = || op.loss(scores(), std::slice::from_ref(&positives), &segments).unwrap();
        close(&file, "doc_scores", &read(scores()), SCORES);
        close(&file, "aux_loss", &read(loss()), LOSS);
        let grads = loss().backward();
        close(&file, "dq_aux", &read(q.grad(&grads).unwrap()), GRAD);
        close(&file, "dk_aux", &read(k.grad(&grads).unwrap()), GRAD);

        let out = op.forward(q.clone(), k.clone(), v.clone(), &segments).unwrap();
        close(&file, "out", &read(out.clone()), OUT);
        let both = (out * one(&file, "d_out", &device)).sum()
            + loss().sum() * file.number("lambda_aux").unwrap();
        let grads = both.backward();
        for (name, x) in [("dq", &q), ("dk", &k), ("dv", &v)] {
            close(&file, name, &read(x.grad(&grads).unwrap()), GRAD);
        }
        println!("checked {}", file.name);
        seen += 1;
    }
    assert!(seen > 0);
}

const WIDTH: usize = 16;

#[derive(Module, Debug)]
struct Model {
    maps: [Linear; 5],
}

/// Attention in blocks, with a residual, and scores of what comes out.
fn loss(model: &Model, op: &BlockRank, x: Tensor<3>, segments: &Segments) -> Tensor<1> {
    let [batch, tokens, _] = x.dims();
    let heads = |map: &Linear, x: &Tensor<3>| {
        map.forward(x.clone()).reshape([batch, tokens, 2, WIDTH / 2]).swap_dims(1, 2)
    };
    let [q, k, v] = [0, 1, 2].map(|i| heads(&model.maps[i], &x));
    let out = op.forward(q, k, v, segments).unwrap();
    let x = x + out.swap_dims(1, 2).reshape([batch, tokens, WIDTH]);
    let [q, k] = [3, 4].map(|i| heads(&model.maps[i], &x));
    let signals = |prompt: usize, end: usize| q.clone().narrow(0, prompt, 1).narrow(2, end - 2, 2);
    let q = Tensor::cat(vec![signals(0, 26), signals(1, 22)], 0);
    let scores = op.scores(q, k, segments).unwrap();
    op.loss(scores, &[vec![2], vec![0]], segments).unwrap()
}

#[test]
fn a_layer_in_blocks_trains() {
    let Some(device) = device() else { return };
    let device = device.autodiff();
    let (segments, op) = (two(), BlockRank::new(Config::new()).unwrap());
    let x = || tensor(&normal(2 * 26 * WIDTH, 5), [2, 26, WIDTH], &device);
    let map = |device: &Device| LinearConfig::new(WIDTH, WIDTH).init(device);
    let mut model = seeded(&device, || Model { maps: [0; 5].map(|_| map(&device)) });
    let mut adam = AdamConfig::new().init();
    let mut losses = Vec::new();
    for _ in 0..15 {
        let loss = loss(&model, &op, x(), &segments);
        losses.push(read(loss.clone())[0]);
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        // Every map is trained, those below the attention as well.
        assert_eq!(grads.len(), 10);
        model = adam.step(2e-2, model, grads);
    }
    assert!(losses[14] < 0.3 * losses[0], "{losses:?}");
}

#[test]
fn what_does_not_fit_is_an_error() {
    let Some(device) = device() else { return };
    let (segments, op) = (two(), BlockRank::new(Config::new()).unwrap());
    let x = |shape: [usize; 4]| Tensor::<4>::ones(shape, &device);
    let right = || x([2, 2, 26, 8]);
    assert!(op.forward(right(), right(), right(), &segments).is_ok());
    assert!(op.forward(x([2, 2, 25, 8]), x([2, 2, 25, 8]), x([2, 2, 25, 8]), &segments).is_err());
    assert!(op.forward(x([2, 2, 2, 8]), right(), right(), &segments).is_err());
    assert!(op.scores(x([2, 2, 2, 8]), x([2, 2, 25, 8]), &segments).is_err());
    assert!(op.scores(x([1, 2, 2, 8]), right(), &segments).is_err());
    let heads = BlockRank::new(Config::new().with_heads(vec![2])).unwrap();
    assert!(heads.scores(x([2, 2, 2, 8]), right(), &segments).is_err());
    let scores = |documents| Tensor::<2>::ones([2, documents], &device);
    let loss =
        |documents, positives: [Vec<usize>; 2]| op.loss(scores(documents), &positives, &segments);
    assert!(loss(3, [vec![2], vec![0]]).is_ok());
    assert!(loss(2, [vec![2], vec![0]]).is_err());
    assert!(loss(3, [vec![2], vec![2]]).is_err());
    assert!(loss(3, [vec![2], vec![]]).is_err());
    assert!(BlockRank::new(Config::new().with_tau(0.0)).is_err());
}
