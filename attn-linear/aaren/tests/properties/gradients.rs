//! Gradients against finite differences, and their laws.

use attn_aaren::Config;
use attn_aaren::reference::{Cotangents, Layer, State, backward};
use ndarray::{Array1, Array2, Array3, s};
use proptest::prelude::*;

use crate::support::{Data, Shape, array, close, shape};

const STEP: f64 = 1e-5;

/// Cotangents of everything that a call returns.
struct All {
    out: ndarray::Array4<f64>,
    lse: Array3<f64>,
    state_out: Array3<f64>,
    state_lse: Array2<f64>,
}

impl All {
    fn new(shape: Shape, seed: u64) -> Self {
        let Shape { batch, heads, tokens, dim_v, .. } = shape;
        All {
            out: array(seed, 10, (batch, heads, tokens, dim_v)),
            lse: array(seed, 11, (batch, heads, tokens)),
            state_out: array(seed, 12, (batch, heads, dim_v)),
            state_lse: array(seed, 13, (batch, heads)),
        }
    }

    fn cotangents(&self) -> Cotangents<'_> {
        let mut cotangents = Cotangents::new(self.out.view());
        cotangents.lse = Some(self.lse.view());
        cotangents.state_out = Some(self.state_out.view());
        cotangents.state_lse = Some(self.state_lse.view());
        cotangents
    }

    fn loss(&self, data: &Data, state: &State, config: &Config) -> f64 {
        let output = data.run(Some(state), config);
        // Where nothing counts yet, the log-sum-exp is -inf and has no derivative.
        let product = |a: f64, b: f64| if b.is_finite() { a * b } else { 0.0 };
        let lse: f64 = self.lse.iter().zip(&output.lse).map(|(&a, &b)| product(a, b)).sum();
        let last = output.state.lse();
        let state_lse: f64 = self.state_lse.iter().zip(&last).map(|(&a, &b)| product(a, b)).sum();
        (&self.out * &output.out).sum()
            + lse
            + (&self.state_out * &output.state.out()).sum()
            + state_lse
    }
}

/// A state of this log-sum-exp and output.
fn state(lse: &Array2<f64>, out: &Array3<f64>) -> State {
    let ones = lse.mapv(|lse| if lse == f64::NEG_INFINITY { 0.0 } else { 1.0 });
    State::from_parts(lse.view(), ones.view(), out.view()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn gradients_are_finite_differences(
        shape in shape(),
        shared in any::<bool>(),
        masked in any::<bool>(),
        carried in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let data = Data::new(shape, shared, masked, seed);
        let config = Config::new().with_scale(0.8);
        let all = All::new(shape, seed);
        let (mut lse, mut out) = (
            array(seed, 20, (shape.batch, shape.heads)),
            array(seed, 21, (shape.batch, shape.heads, shape.dim_v)),
        );
        if !carried {
            lse.fill(f64::NEG_INFINITY);
            out.fill(0.0);
        }
        let first = state(&lse, &out);
        let grads = backward(data.inputs(), Some(&first), &config, all.cotangents()).unwrap();
        let check = |what: &str, grad: f64, loss: &dyn Fn(f64) -> f64| {
            let slope = (loss(STEP) - loss(-STEP)) / (2.0 * STEP);
            let close = (slope - grad).abs() <= 1e-7 * (1.0 + grad.abs());
            prop_assert!(close, "{}: {} {}", what, slope, grad);
            Ok(())
        };
        for at in (0..data.q.len()).step_by(3) {
            check("q", grads.dq.as_slice().unwrap()[at], &|by| {
                let mut moved = data.clone();
                moved.q.as_slice_mut().unwrap()[at] += by;
                all.loss(&moved, &first, &config)
            })?;
        }
        for at in (0..data.k.len()).step_by(7) {
            check("k", grads.dk.as_slice().unwrap()[at], &|by| {
                let mut moved = data.clone();
                moved.k.as_slice_mut().unwrap()[at] += by;
                all.loss(&moved, &first, &config)
            })?;
        }
        for at in (0..data.v.len()).step_by(7) {
            check("v", grads.dv.as_slice().unwrap()[at], &|by| {
                let mut moved = data.clone();
                moved.v.as_slice_mut().unwrap()[at] += by;
                all.loss(&moved, &first, &config)
            })?;
        }
        if carried {
            for at in 0..lse.len() {
                check("state lse", grads.d_state_lse.as_slice().unwrap()[at], &|by| {
                    let mut moved = lse.clone();
                    moved.as_slice_mut().unwrap()[at] += by;
                    all.loss(&data, &state(&moved, &out), &config)
                })?;
            }
            for at in 0..out.len() {
                check("state out", grads.d_state_out.as_slice().unwrap()[at], &|by| {
                    let mut moved = out.clone();
                    moved.as_slice_mut().unwrap()[at] += by;
                    all.loss(&data, &state(&lse, &moved), &config)
                })?;
            }
        }
    }

    /// A constant added to all scores changes no output: derivatives by the scores sum to that of the final
    /// log-sum-exp. With a key of one element and a query of 1, they are those by the keys.
    #[test]
    fn derivatives_by_the_scores_sum_to_nothing(
        tokens in 1usize..40,
        carried in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let shape = Shape { batch: 2, heads: 2, heads_kv: 2, tokens, dim_qk: 1, dim_v: 3 };
        let mut data = Data::new(shape, true, true, seed);
        data.q.fill(1.0);
        let config = Config::new().with_scale(1.0);
        let all = All::new(shape, seed);
        let mut cotangents = all.cotangents();
        cotangents.lse = None;
        let first = carried.then(|| state(&array(seed, 20, (2, 2)), &array(seed, 21, (2, 2, 3))));
        if !carried {
            cotangents.state_lse = None;
        }
        let grads = backward(data.inputs(), first.as_ref(), &config, cotangents).unwrap();
        for b in 0..2 {
            for h in 0..2 {
                let by_scores = grads.dk.slice(s![b, h, .., 0]).sum() + grads.d_state_lse[[b, h]];
                let expected = cotangents.state_lse.map_or(0.0, |lse| lse[[b, h]]);
                prop_assert!((by_scores - expected).abs() < 1e-12, "{} {}", by_scores, expected);
            }
        }
    }

    /// Gradients of two parts, the second's by its first state handed on to the first part.
    #[test]
    fn gradients_go_through_a_cut(shape in shape(), masked in any::<bool>(), seed in any::<u64>()) {
        let data = Data::new(shape, false, masked, seed);
        let config = Config::new().with_scale(2.0);
        let all = All::new(shape, seed);
        let whole = backward(data.inputs(), None, &config, all.cotangents()).unwrap();
        let cut = shape.tokens / 2;
        let (early, late) = (data.part(0, cut), data.part(cut, shape.tokens));
        let middle = early.run(None, &config).state;
        let mut cotangents = all.cotangents();
        let rows = |from: usize, to: usize| s![.., .., from..to, ..];
        cotangents.out = all.out.slice(rows(cut, shape.tokens));
        cotangents.lse = Some(all.lse.slice(s![.., .., cut..]));
        let second = backward(late.inputs(), Some(&middle), &config, cotangents).unwrap();
        cotangents.out = all.out.slice(rows(0, cut));
        cotangents.lse = Some(all.lse.slice(s![.., .., ..cut]));
        cotangents.state_out = Some(second.d_state_out.view());
        cotangents.state_lse = Some(second.d_state_lse.view());
        let first = backward(early.inputs(), None, &config, cotangents).unwrap();
        close("dq", &(&first.dq + &second.dq), &whole.dq, 1e-12);
        close("dk", &first.dk, &whole.dk.slice(rows(0, cut)).to_owned(), 1e-12);
        close("dv", &first.dv, &whole.dv.slice(rows(0, cut)).to_owned(), 1e-12);
        close("dk", &second.dk, &whole.dk.slice(rows(cut, shape.tokens)).to_owned(), 1e-12);
    }

    #[test]
    fn gradients_of_layers_are_finite_differences(tokens in 0usize..9, seed in any::<u64>()) {
        let (heads, heads_kv, dim_qk, dim_v, d_query, d_in, d_out) = (4, 2, 3, 2, 5, 6, 7);
        let query = Array1::from_vec(crate::support::numbers(seed, 0, d_query));
        let weights = [
            array(seed, 1, (heads * dim_qk, d_query)),
            array(seed, 2, (heads_kv * dim_qk, d_in)),
            array(seed, 3, (heads_kv * dim_v, d_in)),
            array(seed, 4, (d_out, heads * dim_v)),
        ];
        let x = array(seed, 5, (2, tokens, d_in));
        let d_y = array(seed, 6, (2, tokens, d_out));
        let valid = array(seed, 7, (2, tokens)).mapv(|x| x > -0.5);
        let config = Config::new();
        let layer = |query: &Array1<f64>, weights: &[Array2<f64>; 4], x: &Array3<f64>, loss: bool| {
            let [w_q, w_k, w_v, w_o] = weights.each_ref().map(|weight| weight.view());
            let layer = Layer { heads, heads_kv, query: query.view(), w_q, w_k, w_v, w_o };
            let valid = Some(valid.view());
            match loss {
                true => (Some((layer.forward(x.view(), valid, &config).unwrap() * &d_y).sum()), None),
                false => (None, Some(layer.backward(x.view(), valid, &config, d_y.view()).unwrap())),
            }
        };
        let grads = layer(&query, &weights, &x, false).1.unwrap();
        let by_weight = [&grads.d_w_q, &grads.d_w_k, &grads.d_w_v, &grads.d_w_o];
        let slope = |loss: &dyn Fn(f64) -> f64| (loss(STEP) - loss(-STEP)) / (2.0 * STEP);
        for at in 0..d_query {
            let slope = slope(&|by| {
                let mut moved = query.clone();
                moved[at] += by;
                layer(&moved, &weights, &x, true).0.unwrap()
            });
            prop_assert!((slope - grads.d_query[at]).abs() < 1e-6);
        }
        for (which, grad) in by_weight.into_iter().enumerate() {
            for at in (0..grad.len()).step_by(5) {
                let slope = slope(&|by| {
                    let mut moved = weights.clone();
                    moved[which].as_slice_mut().unwrap()[at] += by;
                    layer(&query, &moved, &x, true).0.unwrap()
                });
                let place = (at / grad.ncols(), at % grad.ncols());
                prop_assert!((slope - grad[place]).abs() < 1e-6, "{}: {} {}", which, slope, grad[place]);
            }
        }
        for at in (0..x.len()).step_by(5) {
            let slope = slope(&|by| {
                let mut moved = x.clone();
                moved.as_slice_mut().unwrap()[at] += by;
                layer(&query, &weights, &moved, true).0.unwrap()
            });
            prop_assert!((slope - grads.d_x.iter().nth(at).unwrap()).abs() < 1e-6);
        }
    }
}

/// Long sequences and scores far apart: no overflow, no NaN.
#[test]
fn gradients_of_long_sequences_are_finite() {
    let shape = Shape { batch: 1, heads: 1, heads_kv: 1, tokens: 4096, dim_qk: 4, dim_v: 4 };
    let data = Data::new(shape, true, false, 5);
    let all = All::new(shape, 5);
    for scale in [2.0, 10.0, 5e3] {
        let config = Config::new().with_scale(scale);
        let grads = backward(data.inputs(), None, &config, all.cotangents()).unwrap();
        for x in grads.dq.iter().chain(&grads.dk).chain(&grads.dv) {
            assert!(x.is_finite(), "scale {scale}");
        }
    }
}
