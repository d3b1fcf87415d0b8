//! Laws of the paper, on the reference.

use attn_blockrank::reference::{
    doc_scores, doc_scores_backward, forward, loss, rank, signal_queries,
};
use attn_blockrank::{Config, QueryOffset, Segments};
use attn_core::{Mask, dense};
use ndarray::{Array2, Array3, Array4, s};
use proptest::prelude::*;

use crate::support::{Qkv, apart, lengths, tensor, tokens};

fn config() -> Config {
    Config::new().with_query_offset(QueryOffset::At(100))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// The plan is the rule, pair by pair, and counts them.
    #[test]
    fn the_plan_is_the_mask(a in lengths(), b in lengths(), cut in 0.0f64..1.0) {
        let segments = Segments::packed(&[a, b]).unwrap();
        let plan = segments.plan(4, 2).unwrap();
        plan.validate().unwrap();
        let all = segments.tokens();
        let mut pairs = 0;
        for prompt in 0..2 {
            let mask = plan.to_dense_mask(prompt, 3).unwrap();
            for (i, j) in (0..all).flat_map(|i| (0..all).map(move |j| (i, j))) {
                prop_assert_eq!(mask.get(i, j), segments.allows(prompt, i, j), "{} {}", i, j);
                pairs += u64::from(mask.get(i, j));
            }
            // A part of the prompt, cut anywhere, has those rows of it.
            let end = segments.prompts()[prompt].last().unwrap().range().end;
            let from = (cut * end as f64) as usize;
            let part = segments.plan_part(prompt, from..end, 4, 2).unwrap();
            let part = part.to_dense_mask(0, 0).unwrap();
            for (i, j) in (from..end).flat_map(|i| (0..end).map(move |j| (i, j))) {
                prop_assert_eq!(part.get(i - from, j), segments.allows(prompt, i, j));
            }
        }
        prop_assert_eq!(pairs, segments.pairs());
    }

    /// Documents in another order: their rows move with them, nothing else changes, as all share their positions.
    #[test]
    fn the_order_of_documents_does_not_matter(seed in any::<u64>(), turn in 1usize..4) {
        let lengths = [5, 7, 3, 9, 4, 6];
        let segments = Segments::one(&lengths).unwrap();
        let positions: Vec<u32> =
            segments.positions(QueryOffset::At(40)).unwrap().into_iter().collect();
        let plain = Qkv::new(seed, &segments, [4, 2, 8]);
        // Documents turned by `turn`.
        let mut order = vec![1, 2, 3, 4];
        order.rotate_left(turn);
        let numbers = [vec![0], order.clone(), vec![5]].concat();
        let all = &segments.prompts()[0];
        let moved: Vec<usize> = numbers.iter().flat_map(|&number| all[number].range()).collect();
        let other: Vec<usize> = numbers.iter().map(|&number| lengths[number]).collect();
        let other = Segments::one(&other).unwrap();
        let other_positions: Vec<u32> =
            other.positions(QueryOffset::At(40)).unwrap().into_iter().collect();
        let scores = |qkv: &Qkv, segments: &Segments| {
            let signal = signal_queries(qkv.q.view(), segments, &config()).unwrap();
            doc_scores(signal.view(), qkv.k.view(), segments, &config()).unwrap().scores
        };
        let own = plain.rotated(&positions);
        let turned = plain.picked(&moved).rotated(&other_positions);
        let out = forward(own.inputs(), &segments, &config()).unwrap().out;
        let got = forward(turned.inputs(), &other, &config()).unwrap().out;
        prop_assert!(apart(out.select(ndarray::Axis(2), &moved).view(), got.view()) < 1e-12);
        let (a, b) = (scores(&own, &segments), scores(&turned, &other));
        for (place, number) in order.iter().enumerate() {
            prop_assert!((b[[0, place]] - a[[0, number - 1]]).abs() < 1e-12);
        }
        // With positions one behind the other this fails.
        let sequential: Vec<u32> = (0..positions.len() as u32).collect();
        let out = forward(plain.rotated(&sequential).inputs(), &segments, &config()).unwrap().out;
        let turned = plain.picked(&moved).rotated(&sequential);
        let got = forward(turned.inputs(), &other, &config()).unwrap().out;
        let query = segments.prompts()[0][5].range();
        prop_assert!(apart(tokens(&out, query.clone()), tokens(&got, query)) > 1e-4);
    }

    #[test]
    fn scores_are_shares_and_gradients_of_a_row_add_to_nothing(
        a in lengths(),
        b in lengths(),
        seed in any::<u64>(),
        factor in prop::sample::select(vec![1.0, 60.0]),
    ) {
        let segments = Segments::packed(&[a, b]).unwrap();
        let mut qkv = Qkv::new(seed, &segments, [4, 2, 6]);
        qkv.q *= factor;
        let config = config().with_heads(vec![0, 3]);
        let signal = signal_queries(qkv.q.view(), &segments, &config).unwrap();
        let found = doc_scores(signal.view(), qkv.k.view(), &segments, &config).unwrap();
        for (prompt, scores) in found.scores.outer_iter().enumerate() {
            let any = segments.documents(prompt).iter().any(|document| document.len > 0);
            prop_assert!((scores.sum() - f64::from(u8::from(any))).abs() < 1e-12);
            for (number, score) in scores.iter().enumerate() {
                let len = segments.documents(prompt).get(number).map_or(0, |d| d.len);
                prop_assert!(*score >= 0.0 && (len > 0 || *score == 0.0));
            }
        }
        let d = tensor(seed, 5, [1, 1, segments.batch(), segments.most_documents()]);
        let d = d.slice(s![0, 0, .., ..]);
        let grads =
            doc_scores_backward(signal.view(), qkv.k.view(), &segments, &config, d).unwrap();
        for row in grads.dz.lanes(ndarray::Axis(3)) {
            prop_assert!(row.sum().abs() < 1e-12);
        }
        // Heads that were not chosen get nothing, and nothing outside of documents does.
        prop_assert!(grads.dq.slice(s![.., 1..3, .., ..]).iter().all(|x| *x == 0.0));
        for prompt in 0..2 {
            let documents = 1..segments.prompts()[prompt].len() - 1;
            for token in 0..segments.tokens() {
                let inside = segments.segment_of(prompt, token).is_some_and(|s| documents.contains(&s));
                let own = grads.dk.slice(s![prompt, .., token, ..]);
                prop_assert!(inside || own.iter().all(|x| *x == 0.0));
            }
        }
    }

    #[test]
    fn the_loss_is_not_negative_and_vanishes_where_all_are_positive(seed in any::<u64>()) {
        let segments = Segments::packed(&[vec![1, 2, 2, 2, 2], vec![1, 2, 2, 2]]).unwrap();
        let scores = tensor(seed, 0, [1, 1, 2, 3]).mapv(|x| x.abs() / 3.0);
        let scores = scores.slice(s![0, 0, .., ..]);
        let some = loss(scores, &[vec![1], vec![0, 1]], &segments, &config()).unwrap();
        prop_assert!(some.loss >= 0.0);
        prop_assert!(some.d_scores.row(0).sum().abs() < 1e-9);
        prop_assert_eq!(some.d_scores[[1, 2]], 0.0);
        let all = loss(scores, &[vec![2, 0, 1], vec![0, 1]], &segments, &config()).unwrap();
        prop_assert!(all.loss.abs() < 1e-12 && all.d_scores.iter().all(|d| d.abs() < 1e-9));
    }
}

/// Without documents, and with an instruction alone, attention is causal.
#[test]
fn without_documents_attention_is_causal() {
    for lengths in [&[11, 13][..], &[9], &[0, 5], &[7, 0]] {
        let segments = Segments::one(lengths).unwrap();
        let qkv = Qkv::new(3, &segments, [2, 1, 4]);
        let got = forward(qkv.inputs(), &segments, &config()).unwrap();
        let causal = dense::Config::new().with_mask(Mask::Causal);
        let want = dense::forward(qkv.inputs(), &causal).unwrap();
        assert!(apart(got.out.view(), want.out.view()) < 1e-12, "{lengths:?}");
        assert!(apart(got.lse.view(), want.lse.view()) < 1e-12, "{lengths:?}");
    }
}

#[test]
fn equal_documents_have_equal_scores_and_ties_go_by_number() {
    let segments = Segments::one(&[3, 4, 4, 4, 5]).unwrap();
    let mut qkv = Qkv::new(7, &segments, [2, 1, 4]);
    let first = qkv.k.slice(s![.., .., 3..7, ..]).to_owned();
    qkv.k.slice_mut(s![.., .., 11..15, ..]).assign(&first);
    let signal = signal_queries(qkv.q.view(), &segments, &config()).unwrap();
    let scores = doc_scores(signal.view(), qkv.k.view(), &segments, &config()).unwrap().scores;
    assert!((scores[[0, 0]] - scores[[0, 2]]).abs() < 1e-15);
    assert_eq!(rank(ndarray::arr1(&[0.2, 0.4, 0.2, 0.4]).view()), [1, 3, 0, 2]);
}

/// Gradients of scores and loss against differences of the loss.
#[test]
fn gradients_are_those_of_the_loss() {
    let segments = Segments::packed(&[vec![2, 3, 0, 4, 3], vec![1, 2, 3]]).unwrap();
    let config = config().with_tau(0.3).with_heads(vec![1, 2]);
    let qkv = Qkv::new(5, &segments, [4, 2, 3]);
    let signal = signal_queries(qkv.q.view(), &segments, &config).unwrap();
    let positives = [vec![0, 2], vec![0]];
    let value = |q: &Array4<f64>, k: &Array4<f64>| {
        let scores = doc_scores(q.view(), k.view(), &segments, &config).unwrap().scores;
        loss(scores.view(), &positives, &segments, &config).unwrap()
    };
    let d = value(&signal, &qkv.k).d_scores;
    let grads =
        doc_scores_backward(signal.view(), qkv.k.view(), &segments, &config, d.view()).unwrap();
    let step = 1e-5;
    for (got, of_q) in [(&grads.dq, true), (&grads.dk, false)] {
        for at in ndarray::indices(got.dim()) {
            let moved = |by: f64| {
                let (mut q, mut k) = (signal.clone(), qkv.k.clone());
                if of_q {
                    q[at] += by
                } else {
                    k[at] += by
                }
                value(&q, &k).loss
            };
            let want = (moved(step) - moved(-step)) / (2.0 * step);
            assert!((got[at] - want).abs() < 1e-7, "{of_q} {at:?}: {} {want}", got[at]);
        }
    }
}

/// The authors' layout and ours agree on real tokens, and more padding changes nothing.
#[test]
fn padded_and_packed_prompts_agree() {
    let prompts = [vec![3, 5, 1, 4], vec![2, 4, 5, 3]];
    let packed = Segments::packed(&prompts).unwrap();
    let qkv = Qkv::new(9, &packed, [2, 1, 4]);
    let want = forward(qkv.inputs(), &packed, &config()).unwrap();
    let signal = signal_queries(qkv.q.view(), &packed, &config()).unwrap();
    let scores = doc_scores(signal.view(), qkv.k.view(), &packed, &config()).unwrap().scores;
    for length in [5, 8] {
        let real = |(b, m, t): (usize, usize, usize)| t >= length - prompts[b][m];
        let padded = Segments::padded(Array3::from_shape_fn((2, 4, length), real).view()).unwrap();
        assert_eq!(padded.tokens(), 4 * length);
        let spread = |x: &Array4<f64>| {
            let mut out = Array4::from_elem((2, x.dim().1, 4 * length, 4), f64::NAN);
            for (b, segment, place) in pairs(&packed, &padded) {
                let own = x.slice(s![b, .., segment, ..]);
                out.slice_mut(s![b, .., place, ..]).assign(&own);
            }
            out
        };
        let wide = Qkv { q: spread(&qkv.q), k: spread(&qkv.k), v: spread(&qkv.v) };
        let got = forward(wide.inputs(), &padded, &config()).unwrap();
        for (b, segment, place) in pairs(&packed, &padded) {
            let (a, b) =
                (want.out.slice(s![b, .., segment, ..]), got.out.slice(s![b, .., place, ..]));
            assert!(apart(a, b) < 1e-12);
        }
        assert!(got.out.iter().filter(|x| **x == 0.0).count() >= 2 * 2 * 4);
        let signal = signal_queries(wide.q.view(), &padded, &config()).unwrap();
        let own = doc_scores(signal.view(), wide.k.view(), &padded, &config()).unwrap().scores;
        assert!(apart(own.view(), scores.view()) < 1e-12);
        let [a, b] = [&packed, &padded].map(|of| of.positions(QueryOffset::AfterLongest).unwrap());
        for (prompt, segment, place) in pairs(&packed, &padded) {
            assert_eq!(a.slice(s![prompt, segment]), b.slice(s![prompt, place]));
        }
    }
}

/// Places of the same segments in two layouts.
fn pairs(
    a: &Segments,
    b: &Segments,
) -> Vec<(usize, std::ops::Range<usize>, std::ops::Range<usize>)> {
    let of = |prompt: usize| a.prompts()[prompt].iter().zip(&b.prompts()[prompt]);
    let prompt = |b: usize| of(b).map(move |(x, y)| (b, x.range(), y.range()));
    (0..a.batch()).flat_map(prompt).collect()
}

#[test]
fn positions_are_shared_by_documents() {
    let segments = Segments::packed(&[vec![2, 3, 1, 2], vec![1, 2]]).unwrap();
    let at = segments.positions(QueryOffset::At(9)).unwrap();
    let want = ndarray::arr2(&[[0, 1, 2, 3, 4, 2, 9, 10], [0, 9, 10, 0, 0, 0, 0, 0]]);
    assert_eq!(at, want);
    let near = segments.positions(QueryOffset::AfterLongest).unwrap();
    assert_eq!(near.row(0).to_vec(), [0, 1, 2, 3, 4, 2, 5, 6]);
    assert_eq!(near.row(1).to_vec()[..3], [0, 1, 2]);
    assert_eq!(segments.signal_rows(2).unwrap(), Array2::from(vec![[6, 7], [1, 2]]));
}
