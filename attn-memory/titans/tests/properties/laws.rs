//! What memories must do by the paper's equations.

use attn_titans::Config;
use attn_titans::reference::{State, forward, forward_chunked, read};
use ndarray::{Array2, Array3, Array4, Axis, s};
use proptest::prelude::*;

use crate::support::{Data, array, bits, close, close_layers, config, tokens};

const ROUNDING: f64 = 1e-12;

/// A linear memory token by token, at rest at 0, with `c theta = 1` and neither momentum nor forgetting.
fn delta_rule(tokens: usize, dim: usize, seed: u64) -> (Data, Config) {
    let config = Config::linear(2, dim).with_chunk(1);
    let mut data = Data::new(1, tokens, &config, seed);
    data.theta.fill(1.0 / config.coefficient);
    data.eta.fill(0.0);
    data.alpha.fill(0.0);
    data.w[0].fill(0.0);
    data.s[0].fill(0.0);
    (data, config)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// The delta rule: a value is read back right after it was stored, whatever was before.
    #[test]
    fn what_was_stored_last_is_read(tokens in 1..20_usize, seed in any::<u64>()) {
        let (mut data, config) = delta_rule(tokens, 5, seed);
        data.q.assign(&data.k);
        let output = forward(data.inputs(), &data.state(&config), &config).unwrap();
        close("y", &output.y, &data.v, ROUNDING);
    }

    /// Of orthonormal keys, every value is read back at the end.
    #[test]
    fn orthonormal_keys_are_remembered(seed in any::<u64>()) {
        let dim = 6;
        let (mut data, config) = delta_rule(dim, dim, seed);
        for h in 0..2 {
            data.k.slice_mut(s![0, h, .., ..]).assign(&orthonormal(dim, seed));
        }
        let output = forward(data.inputs(), &data.state(&config), &config).unwrap();
        let y = read(data.k.view(), &output.state, &config).unwrap();
        close("y", &y, &data.v, ROUNDING);
    }

    /// A chunk of a linear memory at rest at 0, without momentum, is linear attention with decay.
    #[test]
    fn a_chunk_without_momentum_is_linear_attention(
        tokens in tokens(),
        keep in 0.5..=1.0_f64,
        seed in any::<u64>(),
    ) {
        let config = Config::linear(2, 4).with_chunk(64);
        let mut data = Data::new(2, tokens, &config, seed);
        data.eta.fill(0.0);
        data.alpha.fill(1.0 - keep);
        data.w[0].fill(0.0);
        data.s[0].fill(0.0);
        let mut want = Array4::<f64>::zeros(data.v.dim());
        for ((b, h, t), _) in data.theta.indexed_iter() {
            for i in 0..=t {
                let product = data.q.slice(s![b, h, t, ..]).dot(&data.k.slice(s![b, h, i, ..]));
                let weight = config.coefficient
                    * (1.0 - (1.0 - keep)).powi((t - i) as i32)
                    * data.theta[[b, h, i]]
                    * product;
                want.slice_mut(s![b, h, t, ..]).scaled_add(weight, &data.v.slice(s![b, h, i, ..]));
            }
        }
        for form in [forward, forward_chunked] {
            let output = form(data.inputs(), &data.state(&config), &config).unwrap();
            close("y", &output.y, &want, ROUNDING);
        }
    }

    /// Gates at their ends.
    #[test]
    fn gates_at_their_ends(config in config(), tokens in 1..12_usize, seed in any::<u64>()) {
        let data = Data::new(2, tokens, &config, seed);
        for form in [forward, forward_chunked] {
            // Without steps and momentum the weights decay.
            let mut still = data.clone();
            still.theta.fill(0.0);
            still.s.iter_mut().for_each(|s| s.fill(0.0));
            let last = form(still.inputs(), &still.state(&config), &config).unwrap().state;
            let left = still.alpha.map_axis(Axis(2), |alpha| alpha.map(|x| 1.0 - x).product());
            let left = left.insert_axis(Axis(2)).insert_axis(Axis(3));
            let want: Vec<_> = still.w.iter().map(|w| w * &left).collect();
            close_layers("decayed", last.w(), &want, ROUNDING);

            // Nothing stored and nothing forgotten.
            still.alpha.fill(0.0);
            let output = form(still.inputs(), &still.state(&config), &config).unwrap();
            close_layers("constant", output.state.w(), &still.w, 0.0);
            let want = read(still.q.view(), &still.state(&config), &config).unwrap();
            close("constant", &output.y, &want, ROUNDING);

            // All forgotten: the weights are the momentum.
            let mut forgetful = data.clone();
            forgetful.alpha.fill(1.0);
            let last = form(forgetful.inputs(), &forgetful.state(&config), &config).unwrap().state;
            close_layers("forgotten", last.w(), last.s(), ROUNDING);

            // Without momentum S is the last step, whatever S was before.
            let mut plain = data.clone();
            plain.eta.fill(0.0);
            let with = form(plain.inputs(), &plain.state(&config), &config).unwrap();
            plain.s.iter_mut().for_each(|s| s.fill(0.0));
            let without = form(plain.inputs(), &plain.state(&config), &config).unwrap();
            close_layers("no momentum", with.state.s(), without.state.s(), ROUNDING);
            close("no momentum", &with.y, &without.y, ROUNDING);
        }
    }

    /// A small step on a pair lowers its loss.
    #[test]
    fn a_step_lowers_the_loss(config in config(), seed in any::<u64>()) {
        let mut data = Data::new(1, 1, &config, seed);
        data.theta.fill(1e-4);
        data.alpha.fill(0.0);
        data.s.iter_mut().for_each(|s| s.fill(0.0));
        let first = data.state(&config);
        let loss = |state: &State| {
            let y = read(data.k.view(), state, &config).unwrap();
            (y - &data.v).mapv(|e| e * e).sum()
        };
        let last = forward(data.inputs(), &first, &config).unwrap().state;
        prop_assert!(loss(&last) < loss(&first));
    }

    /// Not one bit of an output or state depends on later tokens, nor on other heads and batch entries;
    /// not even NaN goes back or aside.
    #[test]
    fn damage_goes_forward_only(
        config in config(),
        tokens in 1..20_usize,
        at in 0.0..1.0_f64,
        which in 0..6_usize,
        seed in any::<u64>(),
    ) {
        let data = Data::new(2, tokens, &config, seed);
        let at = (at * tokens as f64) as usize;
        let mut damaged = data.clone();
        match which {
            0 => damaged.q[[1, 0, at, 0]] = f64::NAN,
            1 => damaged.k[[1, 0, at, 0]] = f64::NAN,
            2 => damaged.v[[1, 0, at, 0]] = f64::NAN,
            3 => damaged.theta[[1, 0, at]] = f64::NAN,
            4 => damaged.eta[[1, 0, at]] = f64::NAN,
            _ => damaged.alpha[[1, 0, at]] = f64::NAN,
        }
        for form in [forward, forward_chunked] {
            let [got, want] = [&damaged, &data]
                .map(|data| form(data.inputs(), &data.state(&config), &config).unwrap().y);
            for ((b, h, t, e), y) in got.indexed_iter() {
                if (b, h) != (1, 0) || t < at {
                    prop_assert_eq!(y.to_bits(), want[[b, h, t, e]].to_bits());
                }
            }
            prop_assert!(got.slice(s![1, 0, at, ..]).iter().any(|y| y.is_nan()));
        }
    }

    /// Heads and batch entries in another order give results in that order.
    #[test]
    fn order_of_heads_does_not_matter(config in config(), tokens in tokens(), seed in any::<u64>()) {
        let data = Data::new(2, tokens, &config, seed);
        let mut turned = data.clone();
        for x in [&mut turned.q, &mut turned.k, &mut turned.v] {
            x.invert_axis(Axis(0));
            x.invert_axis(Axis(1));
        }
        for x in [&mut turned.theta, &mut turned.eta, &mut turned.alpha] {
            x.invert_axis(Axis(0));
            x.invert_axis(Axis(1));
        }
        for x in turned.w.iter_mut().chain(&mut turned.s) {
            x.invert_axis(Axis(0));
            x.invert_axis(Axis(1));
        }
        let [mut got, want] = [&turned, &data]
            .map(|data| forward_chunked(data.inputs(), &data.state(&config), &config).unwrap().y);
        got.invert_axis(Axis(0));
        got.invert_axis(Axis(1));
        prop_assert_eq!(bits(&got.as_standard_layout().to_owned()), bits(&want));
    }

    /// A bound of norms holds, and a bound far above the gradients changes nothing.
    #[test]
    fn gradients_keep_within_the_bound(config in config(), bound in 0.01..1.0_f64, seed in any::<u64>()) {
        let mut data = Data::new(1, 1, &config, seed);
        data.theta.fill(1.0);
        data.eta.fill(0.0);
        data.v *= 100.0;
        let bounded = config.clone().with_max_grad_norm(bound);
        let step = |config: &Config| forward(data.inputs(), &data.state(config), config).unwrap().state;
        for layer in step(&bounded).s() {
            for gradient in layer.outer_iter().flat_map(|entry| norms(entry.to_owned())) {
                prop_assert!(gradient <= bound * (1.0 + 1e-12), "{} above {}", gradient, bound);
            }
        }
        let mut free = config.clone();
        free.max_grad_norm = None;
        let loose = config.clone().with_max_grad_norm(1e9);
        close_layers("loose", step(&loose).s(), step(&free).s(), 1e-9);
    }
}

/// Norm of every head's matrix.
fn norms(heads: Array3<f64>) -> Vec<f64> {
    heads.outer_iter().map(|head| head.iter().map(|x| x * x).sum::<f64>().sqrt()).collect()
}

/// Rows of norm 1 at right angles.
fn orthonormal(dim: usize, seed: u64) -> Array2<f64> {
    let mut rows: Array2<f64> = array(seed, 30, (dim, dim));
    for i in 0..dim {
        // Twice, as once leaves rounding of the length of the row.
        for j in (0..i).chain(0..i) {
            let along = rows.row(i).dot(&rows.row(j));
            let other = rows.row(j).to_owned();
            rows.row_mut(i).scaled_add(-along, &other);
        }
        let norm = rows.row(i).dot(&rows.row(i)).sqrt();
        rows.row_mut(i).mapv_inplace(|x| x / norm);
    }
    rows
}

/// How well random pairs are recalled without training, with keys of norm 1 at d = 64: the relative
/// error of all values, near that of a simulation with other random numbers. One chunk is the Hebbian sum.
#[test]
fn recall_of_random_pairs() {
    let error = |pairs: usize, chunk: usize| {
        let config = Config::linear(8, 64).with_chunk(chunk);
        let mut data = Data::new(1, pairs, &config, 7);
        data.theta.fill(1.0 / config.coefficient);
        data.eta.fill(0.0);
        data.alpha.fill(0.0);
        data.w[0].fill(0.0);
        data.s[0].fill(0.0);
        let state = forward_chunked(data.inputs(), &data.state(&config), &config).unwrap().state;
        let y = read(data.k.view(), &state, &config).unwrap();
        let norm = |x: &Array4<f64>| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        norm(&(y - &data.v)) / norm(&data.v)
    };
    for (pairs, chunk, want) in
        [(16, 1, 0.37), (32, 1, 0.52), (64, 1, 0.77), (32, 16, 0.62), (32, 32, 0.69)]
    {
        let got = error(pairs, chunk);
        println!("{pairs} pairs, chunks of {chunk}: {got:.3}");
        assert!((got / want - 1.0).abs() < 0.1, "{pairs} pairs, chunks of {chunk}: {got} {want}");
    }
}
