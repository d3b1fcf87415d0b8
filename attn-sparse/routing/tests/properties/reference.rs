//! Laws of the reference.

use attn_core::{Mask, dense};
use attn_routing::Config;
use attn_routing::reference::{
    Centroids, Inputs, State, Uninitialised, attend, backward, commitment_loss, forward, route,
    update,
};
use ndarray::{Array2, Array4, s};
use proptest::prelude::*;

use crate::support::{centroids, close, normed, tensor};

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_window_that_covers_all_is_dense_attention(
        tokens in 1usize..30,
        clusters in 1usize..4,
        causal in any::<bool>(),
        shared in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let shape = [2, 2, tokens, 6];
        let [q, k, v] = [0, 1, 2].map(|stream| tensor(seed, stream, shape));
        let mut config = Config::new(clusters, tokens + 3).with_scale(0.7).with_shared_qk(shared);
        config.causal = causal;
        let inputs = Inputs::new(q.view(), k.view(), v.view());
        let output = forward(inputs, None, &centroids(seed, 2, clusters, 6), &config).unwrap();
        let q = normed(&q);
        let k = if shared { q.clone() } else { normed(&k) };
        let mask = if causal { Mask::Causal } else { Mask::Full };
        let exact = dense::Config::new().with_mask(mask).with_scale(0.7);
        let exact = dense::forward(Inputs::new(q.view(), k.view(), v.view()), &exact).unwrap();
        close("dense", &output.out, &exact.out, 1e-12);
    }

    #[test]
    fn every_centroid_takes_its_share(
        tokens in 0usize..40,
        clusters in 1usize..6,
        window in 1usize..12,
        padding in 0usize..10,
        seed in any::<u64>(),
    ) {
        let shape = [1, 3, tokens, 5];
        let [q, k, v] = [0, 1, 2].map(|stream| tensor(seed, stream, shape));
        let config = Config::new(clusters, window).bidirectional();
        let padding = padding.min(tokens);
        let valid = Array2::from_shape_fn((1, tokens), |(_, token)| token + padding < tokens);
        let inputs = Inputs::new(q.view(), k.view(), v.view());
        let means = centroids(seed, 3, clusters, 5);
        let routes = route(inputs, Some(valid.view()), &means, &config).unwrap();
        let share = window.min(tokens - padding);
        for members in routes.queries.iter().chain(&routes.keys).flatten() {
            prop_assert_eq!(members.len(), share);
            prop_assert!(members.is_sorted() && members.iter().all(|&token| token + padding < tokens));
        }
        prop_assert_eq!(routes.counts.sum(), 3 * clusters * share);
        for (place, assigned) in routes.assigned_q.indexed_iter() {
            prop_assert_eq!(assigned.is_some(), place.2 + padding < tokens);
        }
        // Values of 1 are averages of 1.
        let ones = Array4::ones(shape);
        let out = attend(Inputs::new(q.view(), k.view(), ones.view()), &routes, &config).unwrap();
        for (place, out) in out.indexed_iter() {
            let expected = if routes.counts[[0, place.1, place.2]] > 0 { 1.0 } else { 0.0 };
            prop_assert!((out - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn tokens_and_centroids_may_be_renumbered(seed in any::<u64>(), turn in 1usize..20) {
        let shape = [1, 2, 23, 6];
        let [q, k, v] = [0, 1, 2].map(|stream| tensor(seed, stream, shape));
        let config = Config::new(4, 5).bidirectional();
        let means = centroids(seed, 2, 4, 6);
        let inputs = Inputs::new(q.view(), k.view(), v.view());
        let plain = forward(inputs, None, &means, &config).unwrap().out;
        let rotate = |x: &Array4<f64>| {
            let order: Vec<usize> = (0..23).map(|token| (token + turn) % 23).collect();
            x.select(ndarray::Axis(2), &order)
        };
        let (q2, k2, v2) = (rotate(&q), rotate(&k), rotate(&v));
        let moved = Inputs::new(q2.view(), k2.view(), v2.view());
        let moved = forward(moved, None, &means, &config).unwrap().out;
        close("tokens", &moved, &rotate(&plain), 1e-12);
        let reversed = means.means.slice(s![.., ..;-1, ..]).to_owned();
        let reversed = Uninitialised::new(2, 4, 6).with_means(reversed.view()).unwrap();
        close("centroids", &forward(inputs, None, &reversed, &config).unwrap().out, &plain, 1e-12);
        // Normalisation takes away factors and offsets, up to the 1e-6 beside the variance, which may turn
        // a close choice.
        let (q2, k2) = (&q * 3.0 + 1.5, &k * 0.5 - 4.0);
        let moved = forward(Inputs::new(q2.view(), k2.view(), v.view()), None, &means, &config).unwrap();
        let before = route(inputs, None, &means, &config).unwrap();
        if (&moved.routes.queries, &moved.routes.keys) == (&before.queries, &before.keys) {
            close("affine", &moved.out, &plain, 1e-3);
        }
    }

    /// Token by token is the last row of every prefix, but not the row of the whole text.
    #[test]
    fn streams_are_prefixes(
        seed in any::<u64>(),
        shared in any::<bool>(),
        window in 1usize..6,
        cuts in prop::collection::vec(0usize..5, 1..8),
    ) {
        let tokens: usize = cuts.iter().sum();
        let shape = [2, 2, tokens, 5];
        let [q, k, v] = [0, 1, 2].map(|stream| tensor(seed, stream, shape));
        let config = Config::new(3, window).with_scale(0.5).with_shared_qk(shared);
        let means = centroids(seed, 2, 3, 5);
        let part = |x: &Array4<f64>, from: usize, to: usize| x.slice(s![.., .., from..to, ..]).to_owned();
        let mut state = State::new(2, &means);
        let mut start = 0;
        for len in cuts {
            let [a, b, c] = [&q, &k, &v].map(|x| part(x, start, start + len));
            let inputs = Inputs::new(a.view(), b.view(), c.view());
            let out = state.decode(inputs, &means, &config).unwrap();
            for new in 0..len {
                let end = start + new + 1;
                let [a, b, c] = [&q, &k, &v].map(|x| part(x, 0, end));
                let inputs = Inputs::new(a.view(), b.view(), c.view());
                let whole = forward(inputs, None, &means, &config).unwrap().out;
                close("prefix", &part(&out, new, new + 1), &part(&whole, end - 1, end), 1e-12);
            }
            start += len;
        }
        prop_assert_eq!(state.len(), tokens);
    }

    #[test]
    fn gradients_are_finite_differences(
        seed in any::<u64>(),
        causal in any::<bool>(),
        shared in any::<bool>(),
        epsilon in prop::sample::select(vec![0.0, 0.1]),
    ) {
        let shape = [1, 2, 11, 4];
        let [q, k, v, d_out] = [0, 1, 2, 3].map(|stream| tensor(seed, stream, shape));
        let mut config = Config::new(3, 4).with_scale(0.6).with_shared_qk(shared);
        (config.causal, config.epsilon) = (causal, epsilon);
        let means = centroids(seed, 2, 3, 4);
        let inputs = Inputs::new(q.view(), k.view(), v.view());
        let routes = route(inputs, None, &means, &config).unwrap();
        let grads = backward(inputs, &routes, &config, d_out.view()).unwrap();
        let (_, commit) = commitment_loss(inputs, &routes, &means, &config).unwrap();
        let loss = |q: &Array4<f64>, k: &Array4<f64>, v: &Array4<f64>| {
            let inputs = Inputs::new(q.view(), k.view(), v.view());
            let out = attend(inputs, &routes, &config).unwrap();
            let commit = commitment_loss(inputs, &routes, &means, &config).unwrap().0;
            ((&out * &d_out).sum(), commit)
        };
        let step = 1e-5;
        for (which, grad) in [&grads.dq, &grads.dk, &grads.dv].into_iter().enumerate() {
            for at in (0..88).step_by(7) {
                let place = [0, at / 44, at / 4 % 11, at % 4];
                let moved = |by: f64| {
                    let mut all = [q.clone(), k.clone(), v.clone()];
                    all[which][place] += by;
                    loss(&all[0], &all[1], &all[2])
                };
                let (up, down) = (moved(step), moved(-step));
                let slope = (up.0 - down.0) / (2.0 * step);
                prop_assert!((slope - grad[place]).abs() < 1e-6, "{}: {} {}", which, slope, grad[place]);
                if which < 2 {
                    let slope = (up.1 - down.1) / (2.0 * step);
                    prop_assert!((slope - commit[which][place]).abs() < 1e-9);
                }
            }
        }
        if shared {
            prop_assert!(grads.dk.iter().all(|x| *x == 0.0));
        }
    }

    #[test]
    fn averages_keep_their_weight(seed in any::<u64>(), decay in 0.0f64..1.0) {
        let shape = [2, 1, 13, 4];
        let q = tensor(seed, 0, shape);
        let inputs = Inputs::new(q.view(), q.view(), q.view());
        let config = Config::new(3, 5).with_decay(decay);
        let means = centroids(seed, 1, 3, 4);
        let routes = route(inputs, None, &means, &config).unwrap();
        let next = update(inputs, &routes, &means, &config).unwrap();
        let expected = decay * 3.0 + (1.0 - decay) * 26.0;
        prop_assert!((next.counts.sum() - expected).abs() < 1e-9);
        // One centroid is the mean of everything.
        let config = Config::new(1, 5).with_decay(0.0);
        let means = centroids(seed, 1, 1, 4);
        let routes = route(inputs, None, &means, &config).unwrap();
        let next = update(inputs, &routes, &means, &config).unwrap();
        let mean = normed(&q).sum_axis(ndarray::Axis(2)).sum_axis(ndarray::Axis(0)) / 26.0;
        let off = next.means.slice(s![0, 0, ..]).iter().zip(&mean).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        prop_assert!(off < 1e-5, "{}", off);
    }
}

/// The parallel form is not causal in what it chooses: a late token can push an earlier one out of its
/// cluster. With the choice fixed, it is causal.
#[test]
fn a_late_token_changes_earlier_outputs_unless_routes_are_fixed() {
    let config = Config::new(3, 6).with_scale(0.5);
    let mut changed = 0;
    for seed in 0..20 {
        let shape = [1, 1, 24, 6];
        let [q, v] = [0, 2].map(|stream| tensor(seed, stream, shape));
        let means = centroids(seed, 1, 3, 6);
        let mut other = q.clone();
        // It looks like the first centroid.
        other.slice_mut(s![0, 0, 23, ..]).assign(&means.means.slice(s![0, 0, ..]));
        let run = |q: &Array4<f64>| {
            let inputs = Inputs::new(q.view(), q.view(), v.view());
            forward(inputs, None, &means, &config).unwrap()
        };
        let (plain, moved) = (run(&q), run(&other));
        let early = |x: &Array4<f64>| x.slice(s![.., .., ..23, ..]).to_owned();
        changed += usize::from(early(&plain.out) != early(&moved.out));
        let inputs = Inputs::new(other.view(), other.view(), v.view());
        let fixed = attend(inputs, &plain.routes, &config).unwrap();
        assert_eq!(early(&fixed), early(&plain.out));
    }
    assert!(changed >= 15, "only {changed} of 20");
}

#[test]
fn what_does_not_fit_is_refused() {
    let q = tensor(0, 0, [1, 2, 9, 4]);
    let one = tensor(0, 0, [1, 1, 9, 4]);
    let short = tensor(0, 0, [1, 2, 8, 4]);
    let means = centroids(0, 2, 3, 4);
    let run = |k: &Array4<f64>, means: &Centroids, config: &Config| {
        let inputs = Inputs::new(q.view(), k.view(), k.view());
        forward(inputs, None, means, config).unwrap_err().to_string()
    };
    let config = Config::new(3, 4);
    for (message, part) in [
        (run(&one, &means, &config), "`k` has shape"),
        (run(&short, &means, &config), "`k` has shape"),
        (run(&q, &centroids(0, 2, 4, 4), &config), "`centroids` has shape"),
        (run(&q, &means, &Config::new(0, 4)), "`clusters` is 0"),
        (run(&q, &means, &Config::new(3, 0)), "`window` is 0"),
        (run(&q, &means, &config.clone().with_decay(1.5)), "`decay` is 1.5"),
        (run(&q, &means, &config.clone().with_scale(f64::NAN)), "`scale`"),
    ] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    let wrong = Uninitialised::new(2, 3, 5).with_means(means.means.view()).unwrap_err();
    assert!(wrong.to_string().contains("`means`"), "{wrong}");
}
