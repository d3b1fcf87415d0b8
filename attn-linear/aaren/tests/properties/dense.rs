//! The outputs are those of causal softmax attention whose queries are all the same.

use attn_aaren::Config;
use attn_aaren::reference::{Cotangents, Inputs, backward, forward};
use attn_core::{BitMask, Mask, dense};
use ndarray::{Array2, Array4, Axis, s};
use proptest::prelude::*;

use crate::support::{Data, array, close, numbers, shape};

/// The queries `[batch, heads, tokens, dim_qk]` of dense attention.
fn repeated(data: &Data) -> Array4<f64> {
    let (batch, _, tokens, _) = data.k.dim();
    let (entries, heads, dim) = data.q.dim();
    let entry = |b| if entries == 1 { 0 } else { b };
    Array4::from_shape_fn((batch, heads, tokens, dim), |(b, h, _, d)| data.q[[entry(b), h, d]])
}

/// What dense attention sees of one batch entry.
fn mask(data: &Data, b: usize) -> Mask {
    let tokens = data.tokens();
    let Some(valid) = &data.valid else { return Mask::Causal };
    Mask::Bits(BitMask::from_fn(tokens, tokens, |i, t| t <= i && valid[[b, t]]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn outputs_and_gradients_are_those_of_dense_attention(
        shape in shape(),
        shared in any::<bool>(),
        masked in any::<bool>(),
        scale in prop::sample::select(vec![None, Some(1.0), Some(6.0)]),
        seed in any::<u64>(),
    ) {
        let data = Data::new(shape, shared, masked, seed);
        let config = match scale {
            None => Config::new(),
            Some(scale) => Config::new().with_scale(scale),
        };
        let output = data.run(None, &config);
        let d_out = array(seed, 7, output.out.dim());
        let d_lse = array(seed, 8, output.lse.dim());
        let mut cotangents = Cotangents::new(d_out.view());
        cotangents.lse = Some(d_lse.view());
        let grads = backward(data.inputs(), None, &config, cotangents).unwrap();

        let q = repeated(&data);
        let mut dq = q.sum_axis(Axis(2)) * 0.0;
        for b in 0..shape.batch {
            let entry = |x: &Array4<f64>| x.slice(s![b..=b, .., .., ..]).to_owned();
            let (q, k, v) = (entry(&q), entry(&data.k), entry(&data.v));
            let mut exact = dense::Config::new().with_mask(mask(&data, b));
            if let Some(scale) = scale {
                exact = exact.with_scale(scale);
            }
            let inputs = dense::Inputs::new(q.view(), k.view(), v.view());
            let want = dense::forward(inputs, &exact).unwrap();
            close("out", &entry(&output.out), &want.out, 1e-13);
            close("lse", &output.lse.slice(s![b..=b, .., ..]).to_owned(), &want.lse, 1e-13);
            let d_out = entry(&d_out);
            let d_lse = d_lse.slice(s![b..=b, .., ..]);
            let cotangents = dense::Cotangents { out: d_out.view(), lse: Some(d_lse) };
            let want = dense::backward(inputs, &exact, &want, cotangents).unwrap();
            close("dk", &entry(&grads.dk), &want.dk, 1e-11);
            close("dv", &entry(&grads.dv), &want.dv, 1e-11);
            dq.slice_mut(s![b, .., ..]).assign(&want.dq.sum_axis(Axis(2)).index_axis(Axis(0), 0));
        }
        if shared {
            dq = dq.sum_axis(Axis(0)).insert_axis(Axis(0));
        }
        close("dq", &grads.dq, &dq, 1e-11);
    }
}

/// A stream of 100,000 tokens is softmax attention over all of them: within 1e-5 by the specification, and
/// within rounding here, because the sums keep what rounding took from them.
#[test]
fn a_hundred_thousand_tokens_are_still_exact() {
    const TOKENS: usize = 100_000;
    let (dim, heads) = (4, 2);
    let tensor = |stream, dim| {
        let data = numbers(3, stream, heads * TOKENS * dim);
        Array4::from_shape_vec((1, heads, TOKENS, dim), data).unwrap()
    };
    let (k, v) = (tensor(1, dim), tensor(2, 3));
    // Scores have a standard deviation of about 5.
    let q = Array2::from_elem((heads, dim), 2.5);
    let config = Config::new().with_scale(1.0);
    let inputs = |from: usize, to: usize| {
        let part = s![.., .., from..to, ..];
        Inputs::shared(q.view(), k.slice(part), v.slice(part))
    };
    let mut by_token = attn_aaren::reference::State::new(1, heads, 3);
    let mut by_block = by_token.clone();
    let bytes = by_token.bytes();
    for token in 0..TOKENS {
        by_token.decode(inputs(token, token + 1), &config).unwrap();
    }
    for start in (0..TOKENS).step_by(997) {
        by_block.fold(inputs(start, TOKENS.min(start + 997)), &config).unwrap();
    }
    assert_eq!((by_token.bytes(), by_block.bytes()), (bytes, bytes));
    let whole = forward(inputs(0, TOKENS), None, &config).unwrap();

    for h in 0..heads {
        let scores: Vec<f64> =
            (0..TOKENS).map(|t| q.row(h).dot(&k.slice(s![0, h, t, ..]))).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let total = exact_sum(weights.iter().copied());
        for e in 0..3 {
            let products = weights.iter().enumerate().map(|(t, weight)| weight * v[[0, h, t, e]]);
            let want = exact_sum(products) / total;
            for (what, got) in [
                ("token by token", by_token.out()[[0, h, e]]),
                ("block by block", by_block.out()[[0, h, e]]),
                ("parallel", whole.out[[0, h, TOKENS - 1, e]]),
            ] {
                assert!((got - want).abs() <= 1e-15 + 4e-15 * want.abs(), "{what}: {got} {want}");
            }
        }
    }
}

/// Adding small numbers first, in pairs, loses next to nothing.
fn exact_sum(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut numbers: Vec<f64> = numbers.collect();
    while numbers.len() > 1 {
        numbers = numbers.chunks(2).map(|pair| pair.iter().sum()).collect();
    }
    numbers.first().copied().unwrap_or(0.0)
}
