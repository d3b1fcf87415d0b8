//! The device against the reference, and laws in bits.

use attn_blockrank::{
    BlockRank, Config, Cotangents, DeviceSegments, Gpu, Inputs, Positives, QueryOffset,
    ScoreTargets, Segments, Tensor, reference,
};
use attn_core::dense;
use attn_wgpu::plan::DevicePlan;
use attn_wgpu::testing::gpu;
use attn_wgpu::{DType, ops};
use ndarray::{Array2, s};

use crate::support::{Qkv, far, floats, tensor, upload};

/// Tolerances of the golden files.
const OUT: f64 = 2e-5;
const SCORES: f64 = 1e-5;
const GRADIENTS: f64 = 1e-4;

fn method(gpu: &Gpu, config: &Config) -> BlockRank {
    BlockRank::new(gpu, config.clone()).unwrap()
}

/// Everything of one batch.
fn check(prompts: &[Vec<usize>], sizes: [usize; 3], config: &Config) {
    let Some(gpu) = gpu() else { return };
    let segments = Segments::packed(prompts).unwrap();
    let qkv = Qkv::new(prompts.len() as u64, &segments, sizes);
    let want = reference::forward(qkv.inputs(), &segments, config).unwrap();
    let [q, k, v] = [&qkv.q, &qkv.k, &qkv.v].map(|x| upload(&gpu, x));
    let method = method(&gpu, config);
    let device = method.segments(&segments).unwrap();
    let (output, saved) = method.forward_saved(Inputs::new(&q, &k, &v), &device).unwrap();
    assert!(far(&output.out, &want.out) <= OUT && far(&output.lse, &want.lse) <= OUT);

    let d_out = tensor(1, 7, segments_out(&segments, sizes));
    let cotangents = reference::Cotangents { out: d_out.view(), lse: None };
    let grads = reference::backward(qkv.inputs(), &segments, config, cotangents).unwrap();
    let d_out = upload(&gpu, &d_out);
    let got = method.backward(&saved, Cotangents { out: &d_out, lse: None }).unwrap();
    for (got, want) in [(&got.dq, &grads.dq), (&got.dk, &grads.dk), (&got.dv, &grads.dv)] {
        assert!(far(got, want) <= GRADIENTS);
    }

    let signal = reference::signal_queries(qkv.q.view(), &segments, config).unwrap();
    let want = reference::doc_scores(signal.view(), qkv.k.view(), &segments, config).unwrap();
    let own = method.signal_queries(&q, &device).unwrap();
    let (scores, saved) = method.doc_scores_saved(&own, &k, &device).unwrap();
    assert!(far(&scores, &want.scores) <= SCORES);
    let d = tensor(2, 8, [1, 1, segments.batch(), segments.most_documents()]);
    let d: Array2<f64> = d.slice(s![0, 0, .., ..]).to_owned();
    let grads =
        reference::doc_scores_backward(signal.view(), qkv.k.view(), &segments, config, d.view())
            .unwrap();
    let got = method.doc_scores_backward(&saved, &upload(&gpu, &d)).unwrap();
    assert!(far(&got.dq, &grads.dq) <= GRADIENTS && far(&got.dk, &grads.dk) <= GRADIENTS);
    // Padding and everything that is no document gets nothing at all.
    let zeros = |x: &ndarray::Array4<f64>| x.iter().filter(|x| **x == 0.0).count();
    let got = floats(&got.dk).iter().filter(|x| **x == 0.0).count();
    assert!(got >= zeros(&grads.dk));
}

fn segments_out(segments: &Segments, [heads, _, dim]: [usize; 3]) -> [usize; 4] {
    [segments.batch(), heads, segments.tokens(), dim]
}

#[test]
fn smoke_the_device_is_the_reference() {
    let plain = Config::new();
    check(&[vec![5, 7, 33, 8, 6, 9]], [6, 2, 16], &plain);
    // Prompts of different numbers of documents, of nothing, empty documents, odd dims, chosen heads.
    let prompts = [vec![3, 4, 0, 65, 5], vec![0, 1, 2], vec![9, 4], vec![2, 1, 1, 1, 1, 1, 1, 2]];
    check(&prompts, [4, 2, 6], &plain.clone().with_heads(vec![1, 2, 3]).with_scale(0.7));
    check(&[vec![17, 3], vec![6, 0, 0, 4]], [3, 1, 8], &plain.with_signal_rows(3));
}

#[test]
fn the_loss_on_the_device_is_that_of_the_reference() {
    let Some(gpu) = gpu() else { return };
    let segments = Segments::packed(&[vec![1; 9], vec![1; 5], vec![1; 3]]).unwrap();
    let positives = [vec![2, 5], vec![0, 1, 2], vec![0]];
    let scores = tensor(4, 0, [1, 1, 3, 7]).mapv(|x| x.abs() / 4.0);
    let scores: Array2<f64> = scores.slice(s![0, 0, .., ..]).to_owned();
    let config = Config::new();
    let want = reference::loss(scores.view(), &positives, &segments, &config).unwrap();
    let method = method(&gpu, &config);
    let kinds = Positives::new(&gpu, &segments, &positives).unwrap();
    let scores = upload(&gpu, &scores);
    let got = method.loss(&scores, &kinds).unwrap();
    assert!((f64::from(floats(&got.loss)[0]) - want.loss).abs() <= 1e-4 * (1.0 + want.loss));
    assert!(far(&got.d_scores, &want.d_scores) <= GRADIENTS);
    // Times a cotangent, into a caller's tensor of a half type.
    let d_loss = Tensor::from_slice(&gpu, &[-0.5f32], &[1]).unwrap();
    let half = Tensor::zeros(&gpu, &[3, 7], DType::F16).unwrap();
    method.loss_backward_into(&scores, &kinds, Some(&d_loss), &half).unwrap();
    let wide = ops::convert(&half, DType::F32).unwrap();
    assert!(far(&wide, &(&want.d_scores * -0.5)) <= 2e-2);
    // Where all documents are positive there is nothing to learn, to the bit.
    let all = Positives::new(&gpu, &segments, &[vec![0, 1, 2, 3, 4, 5, 6], vec![2, 0, 1], vec![0]]);
    let none = method.loss(&scores, &all.unwrap()).unwrap();
    assert_eq!(floats(&none.loss), [0.0]);
    assert!(floats(&none.d_scores).iter().all(|d| *d == 0.0));
}

struct Run {
    out: Tensor,
    scores: Tensor,
    dq: Tensor,
    dk: Tensor,
}

fn run(gpu: &Gpu, qkv: [&Tensor; 3], segments: &DeviceSegments) -> Run {
    let method = method(gpu, &Config::new());
    let [q, k, v] = qkv;
    let out = method.forward(Inputs::new(q, k, v), segments).unwrap().out;
    let signal = method.signal_queries(q, segments).unwrap();
    let (scores, saved) = method.doc_scores_saved(&signal, k, segments).unwrap();
    let d: Vec<f32> = (0..scores.len()).map(|i| (i as f32 * 0.7).sin()).collect();
    let d = Tensor::from_slice(gpu, &d, scores.shape()).unwrap();
    let grads = method.doc_scores_backward(&saved, &d).unwrap();
    Run { out, scores, dq: grads.dq, dk: grads.dk }
}

/// A prompt has the same bits alone and beside others, and every run has them.
#[test]
fn neighbours_and_runs_change_no_bit() {
    let Some(gpu) = gpu() else { return };
    let segments = Segments::packed(&[vec![5, 40, 3, 7, 4], vec![5, 20, 11, 19, 4]]).unwrap();
    let qkv = Qkv::new(1, &segments, [4, 2, 8]);
    let all = [&qkv.q, &qkv.k, &qkv.v].map(|x| upload(&gpu, x));
    let device = DeviceSegments::new(&gpu, &segments).unwrap();
    let both = run(&gpu, all.each_ref(), &device);
    let again = run(&gpu, all.each_ref(), &device);
    for (a, b) in [
        (&both.out, &again.out),
        (&both.scores, &again.scores),
        (&both.dq, &again.dq),
        (&both.dk, &again.dk),
    ] {
        assert_eq!(floats(a), floats(b));
    }
    for (number, lengths) in [[5, 40, 3, 7, 4], [5, 20, 11, 19, 4]].iter().enumerate() {
        let own = DeviceSegments::new(&gpu, &Segments::one(lengths).unwrap()).unwrap();
        let alone = all.each_ref().map(|x| x.narrow(0, number, 1).unwrap());
        let got = run(&gpu, alone.each_ref(), &own);
        assert_eq!(floats(&got.out), floats(&both.out.narrow(0, number, 1).unwrap()));
        assert_eq!(floats(&got.scores), floats(&both.scores.narrow(0, number, 1).unwrap()));
    }
}

/// Another document, the query and what is outside of documents change no bit of a document's output, and of
/// scores nothing that only instruction keys could change, not even where they are no numbers.
#[test]
fn what_is_not_seen_changes_no_bit() {
    let Some(gpu) = gpu() else { return };
    let segments = Segments::one(&[6, 35, 9, 12, 7]).unwrap();
    let device = DeviceSegments::new(&gpu, &segments).unwrap();
    let qkv = Qkv::new(2, &segments, [4, 2, 8]);
    let upload_all = |qkv: &Qkv| [&qkv.q, &qkv.k, &qkv.v].map(|x| upload(&gpu, x));
    let before = run(&gpu, upload_all(&qkv).each_ref(), &device);

    let mut other = Qkv::new(2, &segments, [4, 2, 8]);
    for x in [&mut other.q, &mut other.k, &mut other.v] {
        // The first document stays.
        x.slice_mut(s![.., .., 41.., ..]).mapv_inplace(|x| x * -3.0 + 1.0);
    }
    let after = run(&gpu, upload_all(&other).each_ref(), &device);
    let rows = |run: &Run| floats(&run.out.narrow(2, 0, 41).unwrap());
    assert_eq!(rows(&before), rows(&after));

    let mut wild = Qkv::new(2, &segments, [4, 2, 8]);
    wild.k.slice_mut(s![.., .., ..6, ..]).fill(f64::NAN);
    wild.k.slice_mut(s![.., .., 62.., ..]).fill(f64::INFINITY);
    let after = run(&gpu, upload_all(&wild).each_ref(), &device);
    for (a, b) in
        [(&before.scores, &after.scores), (&before.dq, &after.dq), (&before.dk, &after.dk)]
    {
        assert_eq!(floats(a), floats(b));
    }
}

/// Row by row, as in decoding, the query segment is what it is at once.
#[test]
fn rows_of_the_query_segment_one_by_one() {
    let Some(gpu) = gpu() else { return };
    let segments = Segments::one(&[4, 6, 5, 5]).unwrap();
    let qkv = Qkv::new(8, &segments, [4, 2, 8]);
    let want = reference::forward(qkv.inputs(), &segments, &Config::new()).unwrap();
    let [q, k, v] = [&qkv.q, &qkv.k, &qkv.v].map(|x| upload(&gpu, x));
    let method = method(&gpu, &Config::new());
    for token in 15..20 {
        let plan = segments.plan_part(0, token..token + 1, 4, 2).unwrap();
        let plan = DevicePlan::upload(&gpu, &plan).unwrap();
        let q = q.narrow(2, token, 1).unwrap();
        let [k, v] = [&k, &v].map(|x| x.narrow(2, 0, token + 1).unwrap());
        let got = method.attention().forward(Inputs::new(&q, &k, &v), &plan).unwrap();
        let want = want.out.slice(s![.., .., token..token + 1, ..]).to_owned();
        assert!(far(&got.out, &want) <= OUT);
    }
}

/// Logits of some hundreds, half types, layouts of other strides, and targets of callers.
#[test]
fn extremes_half_types_and_strides() {
    let Some(gpu) = gpu() else { return };
    let segments = Segments::one(&[3, 30, 7, 33, 4]).unwrap();
    let mut qkv = Qkv::new(6, &segments, [4, 2, 8]);
    let config = Config::new();
    let device = DeviceSegments::new(&gpu, &segments).unwrap();
    let method = method(&gpu, &config);
    // f16 holds these numbers.
    for x in [&mut qkv.q, &mut qkv.k] {
        x.mapv_inplace(|x| (x * 64.0).round() / 64.0);
    }
    let signal = reference::signal_queries(qkv.q.view(), &segments, &config).unwrap();
    let want = reference::doc_scores(signal.view(), qkv.k.view(), &segments, &config).unwrap();
    let (q, k) = (upload(&gpu, &signal), upload(&gpu, &qkv.k));
    let halves = [&q, &k].map(|x| ops::convert(x, DType::F16).unwrap());
    let half = Tensor::zeros(&gpu, &[1, 3], DType::F32).unwrap();
    let saved = method.doc_scores_into(&halves[0], &halves[1], &device, &half).unwrap();
    assert!(far(&half, &want.scores) <= SCORES);
    let d = Tensor::from_slice(&gpu, &[1.0f32, -1.0, 0.5], &[1, 3]).unwrap();
    let grads = method.doc_scores_backward(&saved, &d).unwrap();
    assert_eq!([grads.dq.dtype(), grads.dk.dtype()], [DType::F16; 2]);

    // Tokens outermost, and one half of a wider tensor.
    let wide = ndarray::concatenate![ndarray::Axis(3), qkv.k, qkv.k];
    let turned = wide.permuted_axes([0, 2, 1, 3]).as_standard_layout().to_owned();
    let turned = upload(&gpu, &turned).permute(&[0, 2, 1, 3]).unwrap();
    let turned = turned.narrow(3, 8, 8).unwrap();
    let (scores, saved) = method.doc_scores_saved(&q, &turned, &device).unwrap();
    assert!(far(&scores, &want.scores) <= SCORES);
    let saved = saved.with_inputs(&q, &k).unwrap();
    let only = Tensor::zeros(&gpu, k.shape(), DType::F32).unwrap();
    let targets = ScoreTargets { dq: None, dk: Some(&only) };
    method.doc_scores_backward_into(&saved, &d, targets).unwrap();
    let narrow = ops::convert(&grads.dk, DType::F32).unwrap();
    let off = floats(&only).into_iter().zip(floats(&narrow)).map(|(a, b)| (a - b).abs());
    assert!(off.fold(0.0, f32::max) <= 1e-2);

    // Logits of several hundred: a document takes it all, and nothing overflows.
    let large = signal.mapv(|x| x * 400.0);
    let want = reference::doc_scores(large.view(), qkv.k.view(), &segments, &config).unwrap();
    let (scores, saved) = method.doc_scores_saved(&upload(&gpu, &large), &k, &device).unwrap();
    // Rounding of logits of this size: k = 4 of the error budget.
    let logits = 400.0 * 4.0 * 8f64.sqrt();
    assert!(far(&scores, &want.scores) <= 4.0 * logits * 6e-8 + SCORES);
    let grads = method.doc_scores_backward(&saved, &d).unwrap();
    assert!(floats(&grads.dk).iter().chain(&floats(&grads.dq)).all(|x| x.is_finite()));
}

/// Fewer documents than the paper's, in long pieces: more than one part of items.
#[test]
fn documents_of_many_pieces() {
    let Some(gpu) = gpu() else { return };
    let segments = Segments::one(&[2, 700, 1, 420, 3]).unwrap();
    let config = Config::new().with_query_offset(QueryOffset::AfterLongest);
    let q = tensor(3, 0, [1, 2, 2, 4]);
    let k = tensor(3, 1, [1, 1, segments.tokens(), 4]);
    let want = reference::doc_scores(q.view(), k.view(), &segments, &config).unwrap();
    let method = method(&gpu, &config);
    let device = method.segments(&segments).unwrap();
    let (q_device, k_device) = (upload(&gpu, &q), upload(&gpu, &k));
    let (scores, saved) = method.doc_scores_saved(&q_device, &k_device, &device).unwrap();
    assert!(far(&scores, &want.scores) <= SCORES);
    let d = ndarray::arr2(&[[1.0, 2.0, -1.0]]);
    let want =
        reference::doc_scores_backward(q.view(), k.view(), &segments, &config, d.view()).unwrap();
    let got = method.doc_scores_backward(&saved, &upload(&gpu, &d)).unwrap();
    assert!(far(&got.dq, &want.dq) <= GRADIENTS && far(&got.dk, &want.dk) <= GRADIENTS);
}

/// A soft-cap is the attention's.
#[test]
fn attention_with_a_soft_cap() {
    let Some(gpu) = gpu() else { return };
    let segments = Segments::one(&[3, 9, 8, 4]).unwrap();
    let qkv = Qkv::new(3, &segments, [2, 1, 8]);
    let bits = attn_core::BitMask::from_fn(24, 24, |i, j| segments.allows(0, i, j));
    let capped = dense::Config::new().with_scale(0.9).with_soft_cap(1.5);
    let host = capped.clone().with_mask(attn_core::Mask::Bits(bits));
    let want = dense::forward(qkv.inputs(), &host).unwrap();
    let causal = capped.with_mask(attn_core::Mask::Causal);
    let method = BlockRank::with_attention(&gpu, Config::new(), causal).unwrap();
    assert_eq!(method.config().scale, Some(0.9));
    let [q, k, v] = [&qkv.q, &qkv.k, &qkv.v].map(|x| upload(&gpu, x));
    let device = method.segments(&segments).unwrap();
    let out = Tensor::zeros(&gpu, q.shape(), DType::F32).unwrap();
    method.forward_into(Inputs::new(&q, &k, &v), &device, &out, None).unwrap();
    assert!(far(&out, &want.out) <= OUT);
}
