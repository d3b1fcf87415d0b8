//! Derivatives against finite differences.

use attn_titans::Config;
use attn_titans::reference::layer;
use attn_titans::reference::{
    Cotangents, State, backward, backward_chunked, forward, read, read_backward,
};
use ndarray::{Array3, Array4};
use proptest::prelude::*;

use crate::support::{Data, array, combinations, config, layer};

const STEP: f64 = 1e-5;

fn slope(loss: &dyn Fn(f64) -> f64) -> f64 {
    (loss(STEP) - loss(-STEP)) / (2.0 * STEP)
}

/// Cotangents of everything that a call returns.
struct All {
    y: Array4<f64>,
    w: Vec<Array4<f64>>,
    s: Vec<Array4<f64>>,
    start: Vec<Array4<f64>>,
}

impl All {
    fn new(data: &Data, seed: u64) -> Self {
        let like = |layers: &[Array4<f64>], stream| -> Vec<Array4<f64>> {
            layers.iter().map(|layer| array(seed, stream, layer.dim())).collect()
        };
        All {
            y: array(seed, 20, data.v.dim()),
            w: like(&data.w, 21),
            s: like(&data.w, 22),
            start: like(&data.w, 23),
        }
    }

    fn cotangents(&self) -> Cotangents<'_> {
        Cotangents::new(self.y.view()).with_state(&self.w, &self.s).with_chunk_start(&self.start)
    }

    fn loss(&self, data: &Data, state: &State, config: &Config) -> f64 {
        let output = forward(data.inputs(), state, config).unwrap();
        let state = &output.state;
        let parts =
            [(&self.w[..], state.w()), (&self.s, state.s()), (&self.start, state.chunk_start())];
        let layers = parts.iter().flat_map(|(d, layers)| d.iter().zip(*layers));
        (&self.y * &output.y).sum() + layers.map(|(d, layer)| (d * layer).sum()).sum::<f64>()
    }
}

type Pick<D> = for<'a> fn(&'a mut Data) -> &'a mut ndarray::Array<f64, D>;

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn derivatives_of_a_memory(
        config in config(),
        tokens in 1..8_usize,
        seed in any::<u64>(),
    ) {
        let data = Data::new(2, tokens, &config, seed);
        let all = All::new(&data, seed);
        let first = data.state(&config);
        for form in [backward, backward_chunked] {
            let grads = form(data.inputs(), &first, &config, all.cotangents()).unwrap();
            let check = |what: &str, grad: f64, loss: &dyn Fn(f64) -> f64| {
                let slope = slope(loss);
                let close = (slope - grad).abs() <= 1e-6 * (1.0 + grad.abs());
                prop_assert!(close, "{}: {} {}", what, slope, grad);
                Ok(())
            };
            let rows: [(&str, &Array4<f64>, Pick<ndarray::Ix4>); 3] = [
                ("q", &grads.dq, |data| &mut data.q),
                ("k", &grads.dk, |data| &mut data.k),
                ("v", &grads.dv, |data| &mut data.v),
            ];
            for (what, grad, pick) in rows {
                for at in (0..grad.len()).step_by(7) {
                    check(what, grad.as_slice().unwrap()[at], &|by| {
                        let mut moved = data.clone();
                        pick(&mut moved).as_slice_mut().unwrap()[at] += by;
                        all.loss(&moved, &first, &config)
                    })?;
                }
            }
            let gates: [(&str, &Array3<f64>, Pick<ndarray::Ix3>); 3] = [
                ("theta", &grads.d_theta, |data| &mut data.theta),
                ("eta", &grads.d_eta, |data| &mut data.eta),
                ("alpha", &grads.d_alpha, |data| &mut data.alpha),
            ];
            for (what, grad, pick) in gates {
                for at in (0..grad.len()).step_by(3) {
                    check(what, grad.as_slice().unwrap()[at], &|by| {
                        let mut moved = data.clone();
                        pick(&mut moved).as_slice_mut().unwrap()[at] += by;
                        all.loss(&moved, &first, &config)
                    })?;
                }
            }
            for i in 0..config.depth() {
                for at in (0..grads.d_w[i].len()).step_by(11) {
                    check("w", grads.d_w[i].as_slice().unwrap()[at], &|by| {
                        let mut moved = data.clone();
                        moved.w[i].as_slice_mut().unwrap()[at] += by;
                        all.loss(&data, &moved.state(&config), &config)
                    })?;
                    check("s", grads.d_s[i].as_slice().unwrap()[at], &|by| {
                        let mut moved = data.clone();
                        moved.s[i].as_slice_mut().unwrap()[at] += by;
                        all.loss(&data, &moved.state(&config), &config)
                    })?;
                }
            }
        }
    }

    #[test]
    fn derivatives_of_reading(config in config(), tokens in 0..5_usize, seed in any::<u64>()) {
        let data = Data::new(2, tokens, &config, seed);
        let d_y: Array4<f64> = array(seed, 20, data.v.dim());
        let state = data.state(&config);
        let loss = |data: &Data| {
            (read(data.q.view(), &data.state(&config), &config).unwrap() * &d_y).sum()
        };
        let (dq, d_w) = read_backward(data.q.view(), &state, &config, d_y.view()).unwrap();
        for at in (0..dq.len()).step_by(3) {
            let slope = slope(&|by| {
                let mut moved = data.clone();
                moved.q.as_slice_mut().unwrap()[at] += by;
                loss(&moved)
            });
            let grad = dq.as_slice().unwrap()[at];
            prop_assert!((slope - grad).abs() <= 1e-7 * (1.0 + grad.abs()), "{} {}", slope, grad);
        }
        for (i, d_w) in d_w.iter().enumerate() {
            for at in (0..d_w.len()).step_by(5) {
                let slope = slope(&|by| {
                    let mut moved = data.clone();
                    moved.w[i].as_slice_mut().unwrap()[at] += by;
                    loss(&moved)
                });
                let grad = d_w.as_slice().unwrap()[at];
                prop_assert!((slope - grad).abs() <= 1e-7 * (1.0 + grad.abs()), "{} {}", slope, grad);
            }
        }
    }

    /// By tokens and by every weight of every kind of layer.
    #[test]
    fn derivatives_of_layers(
        which in 0..5_usize,
        size in 1..6_usize,
        kernel in 0..4_usize,
        persistent in 0..3_usize,
        hidden in prop_oneof![Just(None), Just(Some(4))],
        tokens in 0..9_usize,
        seed in any::<u64>(),
    ) {
        let combination = combinations(size)[which].clone();
        let (weights, config) = layer(combination, kernel, persistent, hidden, seed);
        let x: Array3<f64> = array(seed, 0, (2, tokens, weights.d_model()));
        let d_out: Array3<f64> = array(seed, 1, x.dim());
        let grads = layer::backward(x.view(), &weights, d_out.view(), &config).unwrap();
        let loss = |x: &Array3<f64>, weights: &layer::Weights| {
            (layer::forward(x.view(), weights, &config).unwrap().out * &d_out).sum()
        };
        for at in (0..x.len()).step_by(5) {
            let slope = slope(&|by| {
                let mut moved = x.clone();
                moved.as_slice_mut().unwrap()[at] += by;
                loss(&moved, &weights)
            });
            let grad = grads.dx.as_slice().unwrap()[at];
            prop_assert!((slope - grad).abs() <= 1e-6 * (1.0 + grad.abs()), "x: {} {}", slope, grad);
        }
        for (i, (name, grad)) in grads.weights.named().into_iter().enumerate() {
            for at in (0..grad.len()).step_by(7) {
                let slope = slope(&|by| {
                    let mut moved = weights.clone();
                    if let Some(weight) = moved.named_mut()[i].1.iter_mut().nth(at) {
                        *weight += by;
                    }
                    loss(&x, &moved)
                });
                let grad = grad.iter().nth(at).copied().unwrap();
                let close = (slope - grad).abs() <= 1e-6 * (1.0 + grad.abs());
                prop_assert!(close, "{}: {} {}", name, slope, grad);
            }
        }
    }
}

/// Gates of exactly 0 and 1, where products of gates cannot be divided.
#[test]
fn derivatives_at_the_ends_of_gates() {
    let config = Config::deep(1, 3, 4).with_chunk(5);
    for (eta, alpha) in [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1.0, 1.0)] {
        let mut data = Data::new(1, 7, &config, 3);
        data.eta.fill(eta);
        data.alpha.fill(alpha);
        let (all, first) = (All::new(&data, 3), data.state(&config));
        let grads = backward_chunked(data.inputs(), &first, &config, all.cotangents()).unwrap();
        for t in 0..7 {
            let by_eta = slope(&|by| {
                let mut moved = data.clone();
                moved.eta[[0, 0, t]] += by;
                all.loss(&moved, &first, &config)
            });
            let by_alpha = slope(&|by| {
                let mut moved = data.clone();
                moved.alpha[[0, 0, t]] += by;
                all.loss(&moved, &first, &config)
            });
            let (d_eta, d_alpha) = (grads.d_eta[[0, 0, t]], grads.d_alpha[[0, 0, t]]);
            assert!((by_eta - d_eta).abs() <= 1e-6 * (1.0 + d_eta.abs()), "{by_eta} {d_eta}");
            assert!(
                (by_alpha - d_alpha).abs() <= 1e-6 * (1.0 + d_alpha.abs()),
                "{by_alpha} {d_alpha}"
            );
        }
    }
}
