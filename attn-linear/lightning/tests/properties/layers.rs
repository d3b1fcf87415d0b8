//! The layer as a whole.

use attn_lightning::Config;
use attn_lightning::reference::layer::{Weights, backward, decode, forward};
use attn_lightning::reference::{State, initial_theta};
use ndarray::{Array2, Array3, Axis, concatenate, s};
use proptest::prelude::*;

use crate::gradients::differences;
use crate::support::{distance, matrix, tensor};

const HEADS: usize = 3;
const D_MODEL: usize = 6;
const DIM: usize = 4;

fn weights(seed: u64, with_positions: bool) -> Weights {
    let hidden = HEADS * DIM;
    let part = |stream, rows: usize, columns: usize| {
        matrix(seed, stream, rows, columns) / (columns as f64).sqrt()
    };
    Weights {
        w_qkvu: part(10, 4 * hidden, D_MODEL),
        w_out: part(11, D_MODEL, hidden),
        w_v: part(12, 7, D_MODEL),
        w_u: part(13, 7, D_MODEL),
        w_o: part(14, D_MODEL, 7),
        theta: with_positions.then(|| initial_theta(HEADS, DIM)),
    }
}

fn tokens(seed: u64, stream: u64, batch: usize, count: usize) -> Array3<f64> {
    tensor(seed, stream, (1, batch, count, D_MODEL)).remove_axis(Axis(0))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_sequence_may_be_cut_anywhere(
        seed in any::<u64>(),
        with_positions in any::<bool>(),
        steps in prop::collection::vec(0..9_usize, 1..6),
        block in 1..20_usize,
    ) {
        let (weights, config) = (weights(seed, with_positions), Config::new(HEADS));
        let x = tokens(seed, 0, 2, steps.iter().sum());
        let whole = forward(x.view(), None, &weights, &config).unwrap();
        let dim_qk = if with_positions { 2 * DIM } else { DIM };
        let mut state = State::new(2, HEADS, dim_qk, DIM);
        let mut out = Array3::zeros((2, 0, D_MODEL));
        let config = config.with_block(block);
        for step in steps {
            let at = state.position();
            let part = x.slice(s![.., at..at + step, ..]);
            let new = decode(&mut state, part, &weights, &config).unwrap();
            out = concatenate(Axis(1), &[out.view(), new.view()]).unwrap();
        }
        prop_assert_eq!(state.position(), whole.state.position());
        prop_assert!(distance(&out, &whole.out) < 1e-9);
        prop_assert!(distance(&state.kv().to_owned(), &whole.state.kv().to_owned()) < 1e-9);
    }

    #[test]
    fn a_token_never_changes_earlier_ones(seed in any::<u64>(), at in 0..17_usize) {
        let (weights, config) = (weights(seed, true), Config::new(HEADS).with_block(5));
        let x = tokens(seed, 0, 2, 17);
        let mut other = x.clone();
        other.slice_mut(s![.., at.., ..]).fill(f64::NAN);
        let [plain, moved] = [&x, &other].map(|x| {
            let out = forward(x.view(), None, &weights, &config).unwrap().out;
            out.slice(s![.., ..at, ..]).to_owned()
        });
        prop_assert_eq!(plain, moved);
    }

    #[test]
    fn gradients_by_differences(seed in any::<u64>(), with_positions in any::<bool>()) {
        let (weights, config) = (weights(seed, with_positions), Config::new(HEADS).with_block(4));
        // Behind other tokens, so that positions and state count.
        let before = tokens(seed, 2, 2, 5);
        let state = forward(before.view(), None, &weights, &config).unwrap().state;
        let (x, d_out) = (tokens(seed, 0, 2, 7), tokens(seed, 1, 2, 7));
        let grads = backward(x.view(), Some(&state), &weights, d_out.view(), &config).unwrap();
        let loss = |x: &Array3<f64>, weights: &Weights| {
            (&forward(x.view(), Some(&state), weights, &config).unwrap().out * &d_out).sum()
        };
        differences("x", &x, &grads.dx, |x| loss(x, &weights));
        let part = |set: fn(&mut Weights) -> &mut Array2<f64>, name: &str| {
            let mut by = grads.weights.clone();
            let at = set(&mut weights.clone()).clone();
            differences(name, &at, set(&mut by), |w| {
                let mut weights = weights.clone();
                set(&mut weights).assign(w);
                loss(&x, &weights)
            });
        };
        part(|w| &mut w.w_qkvu, "w_qkvu");
        part(|w| &mut w.w_out, "w_out");
        part(|w| &mut w.w_v, "w_v");
        part(|w| &mut w.w_u, "w_u");
        part(|w| &mut w.w_o, "w_o");
        prop_assert_eq!(grads.weights.theta.is_some(), with_positions);
        if with_positions {
            part(|w| w.theta.as_mut().unwrap(), "theta");
        }
    }
}

/// Zero weights behind attention and unit leave the tokens.
#[test]
fn the_layer_is_residual() {
    let mut weights = weights(3, true);
    weights.w_out.fill(0.0);
    weights.w_o.fill(0.0);
    let x = tokens(3, 0, 2, 9);
    let output = forward(x.view(), None, &weights, &Config::new(HEADS)).unwrap();
    assert_eq!(output.out, x);
    assert_eq!(output.after_attention, x);
}

/// Attention does not see the scale of tokens, up to the epsilon of the norm.
#[test]
fn attention_sees_normalised_tokens() {
    let (weights, mut config) = (weights(4, true), Config::new(HEADS));
    config.epsilon = 1e-30;
    let x = tokens(4, 0, 1, 8);
    let [one, two] = [1.0, 37.0]
        .map(|factor| forward((&x * factor).view(), None, &weights, &config).unwrap().attention);
    assert!(distance(&two, &one) < 1e-12);
}
