//! Laws of layers.

use attn_core::{Mask, dense};
use attn_titans::Combination;
use attn_titans::reference::{State, layer};
use ndarray::{Array2, Array3, Array4, Axis, concatenate, s};
use proptest::prelude::*;

use crate::support::{array, bits, close, combinations, layer};

const ROUNDING: f64 = 1e-12;

/// Dense causal attention by hand, of rows `[batch, tokens, d_model]` with two heads.
fn causal(x: &Array3<f64>, weights: &layer::Attention) -> Array3<f64> {
    let (batch, tokens, d_model) = x.dim();
    let (heads, dim) = (2, d_model / 2);
    let project = |w: &Array2<f64>| {
        Array4::from_shape_fn((batch, heads, tokens, dim), |(b, h, t, d)| {
            w.row(h * dim + d).dot(&x.slice(s![b, t, ..]))
        })
    };
    let (q, k, v) = (project(&weights.q), project(&weights.k), project(&weights.v));
    let config = dense::Config::new().with_mask(Mask::Causal);
    let out =
        dense::forward(dense::Inputs::new(q.view(), k.view(), v.view()), &config).unwrap().out;
    Array3::from_shape_fn(x.dim(), |(b, t, j)| {
        (0..d_model).map(|i| weights.o[[j, i]] * out[[b, i / dim, t, i % dim]]).sum()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Not one bit of an output depends on later tokens, save in the literal form of memory as context.
    #[test]
    fn layers_are_causal(
        which in 0..5_usize,
        size in 1..6_usize,
        kernel in 0..4_usize,
        persistent in 0..3_usize,
        tokens in 1..14_usize,
        at in 0.0..1.0_f64,
        seed in any::<u64>(),
    ) {
        let combination = combinations(size)[which].clone();
        if matches!(combination, Combination::LiteralContext { .. }) {
            return Ok(());
        }
        let (weights, config) = layer(combination, kernel, persistent, Some(4), seed);
        let x: Array3<f64> = array(seed, 0, (1, tokens, weights.d_model()));
        let at = (at * tokens as f64) as usize;
        let mut edited = x.clone();
        edited.slice_mut(s![0, at.., ..]).fill(3.0);
        let [got, want] = [&edited, &x].map(|x| {
            layer::forward(x.view(), &weights, &config).unwrap().out.slice(s![.., ..at, ..]).to_owned()
        });
        prop_assert_eq!(bits(&got), bits(&want));
    }

    /// Batch entries do not know of each other.
    #[test]
    fn sequences_are_alone(which in 0..5_usize, tokens in 0..9_usize, seed in any::<u64>()) {
        let (weights, config) = layer(combinations(4)[which].clone(), 2, 2, None, seed);
        let x: Array3<f64> = array(seed, 0, (3, tokens, weights.d_model()));
        let all = layer::forward(x.view(), &weights, &config).unwrap();
        for b in 0..3 {
            let one = layer::forward(x.slice(s![b..=b, .., ..]), &weights, &config).unwrap();
            prop_assert_eq!(bits(&one.out), bits(&all.out.slice(s![b..=b, .., ..]).to_owned()));
            for (one, all) in one.state.w().iter().zip(all.state.w()) {
                prop_assert_eq!(bits(one), bits(&all.slice(s![b..=b, .., .., ..]).to_owned()));
            }
        }
    }

    /// A window as long as the sequence is full causal attention, over persistent tokens too.
    #[test]
    fn a_long_window_is_full_attention(persistent in 0..3_usize, tokens in 0..9_usize, seed in any::<u64>()) {
        let window = tokens + persistent + 1;
        let (weights, config) = layer(Combination::Layer { window }, 2, persistent, None, seed);
        let attention = weights.attention.as_ref().unwrap();
        let x: Array3<f64> = array(seed, 0, (2, tokens, weights.d_model()));
        // What the memory alone answers to persistent tokens and sequence, from a layer without attention.
        let (mut alone, mut config_alone) = (weights.clone(), config.clone());
        (alone.attention, config_alone.combination) = (None, Combination::Alone);
        alone.persistent = Array2::zeros((0, weights.d_model()));
        let p = weights.persistent.view().insert_axis(Axis(0));
        let p = p.broadcast((2, persistent, weights.d_model())).unwrap();
        let rows = concatenate(Axis(1), &[p, x.view()]).unwrap();
        let m = layer::forward(rows.view(), &alone, &config_alone).unwrap().out;
        let want = causal(&m, attention).slice(s![.., persistent.., ..]).to_owned();
        let got = layer::forward(x.view(), &weights, &config).unwrap();
        close("layer", &got.out, &want, ROUNDING);

        let (weights, config) = layer(Combination::Gate { window }, 2, persistent, None, seed);
        let want = causal(&rows, weights.attention.as_ref().unwrap());
        let got = layer::forward(x.view(), &weights, &config).unwrap();
        let want = want.slice(s![.., persistent.., ..]).to_owned();
        close("gate", got.attention.as_ref().unwrap(), &want, ROUNDING);
    }

    /// Memory as context over segments of one token, where nothing is left to leak.
    #[test]
    fn segments_of_one_token_do_not_leak(tokens in 0..9_usize, kernel in 0..3_usize, seed in any::<u64>()) {
        let [_, causal, literal, ..] = combinations(1);
        let (weights, config) = layer(causal, kernel, 1, Some(4), seed);
        let mut other = config.clone();
        other.combination = literal;
        let x: Array3<f64> = array(seed, 0, (1, tokens, weights.d_model()));
        let [got, want] =
            [&other, &config].map(|config| layer::forward(x.view(), &weights, config).unwrap());
        close("out", &got.out, &want.out, ROUNDING);
    }

    /// Weights that went through a file are the same bit for bit.
    #[test]
    fn weights_may_go_through_a_file(which in 0..5_usize, kernel in 0..3_usize, persistent in 0..2_usize, seed in any::<u64>()) {
        let (weights, _) = layer(combinations(4)[which].clone(), kernel, persistent, Some(4), seed);
        let path = std::env::temp_dir()
            .join(format!("attn-titans-weights-{}-{seed}.safetensors", std::process::id()));
        weights.save(&path).unwrap();
        let read = layer::Weights::load(&path, "").unwrap();
        std::fs::remove_file(&path).unwrap();
        prop_assert_eq!(read, weights);
    }
}

/// The literal form of memory as context lets a later token change earlier outputs of its segment, and no
/// others.
#[test]
fn the_literal_form_leaks() {
    let (weights, config) = layer(Combination::LiteralContext { segment: 4 }, 0, 1, Some(4), 5);
    let x: Array3<f64> = array(5, 0, (1, 8, weights.d_model()));
    let mut edited = x.clone();
    edited.slice_mut(s![0, 7, ..]).fill(3.0);
    let [got, want] =
        [&edited, &x].map(|x| layer::forward(x.view(), &weights, &config).unwrap().out);
    let change = |t: usize| {
        let difference = &got.slice(s![0, t, ..]) - &want.slice(s![0, t, ..]);
        difference.iter().fold(0.0_f64, |most, x| most.max(x.abs()))
    };
    for t in 0..4 {
        assert_eq!(change(t), 0.0, "token {t}");
    }
    for t in 4..7 {
        assert!(change(t) > 1e-4, "token {t}: {}", change(t));
    }
}

/// Without tokens or sequences there is nothing to compute, and memories are as learned.
#[test]
fn layers_without_tokens() {
    for combination in combinations(3) {
        let (weights, config) = layer(combination, 2, 0, Some(4), 1);
        for (batch, tokens) in [(0, 4), (2, 0), (0, 0)] {
            let x = Array3::zeros((batch, tokens, weights.d_model()));
            let output = layer::forward(x.view(), &weights, &config).unwrap();
            assert_eq!(output.out.dim(), x.dim());
            if tokens == 0 {
                let learned: Vec<_> = weights.memory.iter().map(|layer| layer.view()).collect();
                let first = State::new(&learned, batch, &config.memory).unwrap();
                assert_eq!(output.state, first);
            }
            let grads = layer::backward(x.view(), &weights, x.view(), &config).unwrap();
            assert!(grads.weights.named().iter().all(|(_, d)| d.iter().all(|&d| d == 0.0)));
        }
    }
}
