//! The memory against its reference in f64.

use attn_burn::attn_titans::Config;
use attn_burn::attn_titans::ndarray::{Array3, Array4, Axis, concatenate};
use attn_burn::attn_titans::reference::{self, Cotangents, Inputs, State};
use attn_burn::ops::{self, MemoryInputs};
use burn::tensor::{Device, Tensor};

use crate::common::{deviation, device, normal, read, tensor};

const BATCH: usize = 2;
const HEADS: usize = 2;
/// Not a multiple of the chunk.
const TOKENS: usize = 11;

/// A memory of odd extents.
fn config(depth: usize, chunk: usize) -> Config {
    let config = match depth {
        1 => Config::linear(HEADS, 5),
        _ => Config::deep(HEADS, 5, 7),
    };
    config.with_dim_v(6).with_chunk(chunk)
}

/// Queries, keys of about norm 1, values, gates that are stable, and a state.
struct Data {
    rows: [Vec<f32>; 3],
    gates: [Vec<f32>; 3],
    state: Vec<f32>,
    config: Config,
}

impl Data {
    fn new(config: Config) -> Data {
        let rows = [config.dim_qk, config.dim_qk, config.dim_v];
        let rows = [0, 1, 2].map(|i| {
            let scale = (rows[i] as f32).sqrt().recip();
            let all = normal(BATCH * HEADS * TOKENS * rows[i], 30 + i as u64);
            all.into_iter().map(|x| x * scale).collect()
        });
        let most = [0.5 / config.chunk as f32, 0.9, 0.1];
        let gates = [0, 1, 2].map(|i| {
            let all = normal(BATCH * HEADS * TOKENS, 40 + i as u64);
            all.into_iter().map(|x| most[i] / (1.0 + (-x).exp())).collect()
        });
        let state = normal(BATCH * HEADS * width(&config), 50);
        let state = state.into_iter().map(|x| 0.3 * x).collect();
        Data { rows, gates, state, config }
    }

    fn tensors(&self, device: &Device) -> (MemoryInputs, Tensor<3>) {
        let row = |i: usize, dim| {
            tensor(&self.rows[i], [BATCH, HEADS, TOKENS, dim], device).require_grad()
        };
        let gate = |i: usize| tensor(&self.gates[i], [BATCH, HEADS, TOKENS], device).require_grad();
        let (dim_qk, dim_v) = (self.config.dim_qk, self.config.dim_v);
        let inputs = MemoryInputs {
            q: row(0, dim_qk),
            k: row(1, dim_qk),
            v: row(2, dim_v),
            theta: gate(0),
            eta: gate(1),
            alpha: gate(2),
        };
        let state = tensor(&self.state, [BATCH, HEADS, width(&self.config)], device);
        (inputs, state.require_grad())
    }
}

/// Elements of a memory's state.
fn width(config: &Config) -> usize {
    2 * config.layers().iter().map(|[rows, columns]| rows * columns).sum::<usize>()
}

fn rows(data: &[f32], dim: usize) -> Array4<f64> {
    let data = data.iter().map(|&x| f64::from(x)).collect();
    Array4::from_shape_vec((BATCH, HEADS, TOKENS, dim), data).unwrap()
}

fn gates(data: &[f32]) -> Array3<f64> {
    let data = data.iter().map(|&x| f64::from(x)).collect();
    Array3::from_shape_vec((BATCH, HEADS, TOKENS), data).unwrap()
}

/// Weights and momentum by layer of a state, cut here once more.
fn layers(state: &[f32], config: &Config) -> [Vec<Array4<f64>>; 2] {
    let mut parts = [Vec::new(), Vec::new()];
    let mut start = 0;
    for part in &mut parts {
        for [m, n] in config.layers() {
            part.push(Array4::from_shape_fn((BATCH, HEADS, m, n), |(b, h, i, j)| {
                let memory = (b * HEADS + h) * width(config);
                f64::from(state[memory + start + i * n + j])
            }));
            start += m * n;
        }
    }
    parts
}

fn packed(w: &[Array4<f64>], s: &[Array4<f64>]) -> Vec<f32> {
    let flat = |layer: &Array4<f64>| {
        let (batch, heads, m, n) = layer.dim();
        layer.to_shape((batch, heads, m * n)).unwrap().to_owned()
    };
    let all: Vec<_> = w.iter().chain(s).map(flat).collect();
    let views: Vec<_> = all.iter().map(|layer| layer.view()).collect();
    concatenate(Axis(2), &views).unwrap().iter().map(|&x| x as f32).collect()
}

fn flat<'a>(all: impl IntoIterator<Item = &'a f64>) -> Vec<f32> {
    all.into_iter().map(|&x| x as f32).collect()
}

/// What is read, the last state, and the gradients by queries, keys, values, gates and the first state, in f64.
fn wanted(data: &Data, by_y: &[f32], by_state: &[f32]) -> Vec<Vec<f32>> {
    let config = &data.config;
    let [q, k, v] =
        [0, 1, 2].map(|i| rows(&data.rows[i], data.rows[i].len() / (BATCH * HEADS * TOKENS)));
    let [theta, eta, alpha] = [0, 1, 2].map(|i| gates(&data.gates[i]));
    let inputs = Inputs {
        q: q.view(),
        k: k.view(),
        v: v.view(),
        theta: theta.view(),
        eta: eta.view(),
        alpha: alpha.view(),
    };
    let [w, s] = layers(&data.state, config);
    let state = State::from_parts(w, s, config).unwrap();
    let output = reference::forward(inputs, &state, config).unwrap();
    let [d_w, d_s] = layers(by_state, config);
    let d_y = rows(by_y, config.dim_v);
    let cotangents = Cotangents::new(d_y.view()).with_state(&d_w, &d_s);
    let grads = reference::backward(inputs, &state, config, cotangents).unwrap();
    vec![
        flat(&output.y),
        packed(output.state.w(), output.state.s()),
        flat(&grads.dq),
        flat(&grads.dk),
        flat(&grads.dv),
        flat(&grads.d_theta),
        flat(&grads.d_eta),
        flat(&grads.d_alpha),
        packed(&grads.d_w, &grads.d_s),
    ]
}

/// The same by burn.
fn got(data: &Data, by_y: &[f32], by_state: &[f32], device: &Device) -> Vec<Vec<f32>> {
    let op = ops::Titans::new(data.config.clone()).unwrap();
    let (inputs, first) = data.tensors(device);
    let read_by = op.forward_with_state(inputs.clone(), first.clone()).unwrap();
    let loss = (read_by.y.clone() * tensor(by_y, read_by.y.dims(), device)).sum()
        + (read_by.state.clone() * tensor(by_state, read_by.state.dims(), device)).sum();
    let grads = loss.backward();
    let MemoryInputs { q, k, v, theta, eta, alpha } = inputs;
    let mut all = vec![read(read_by.y), read(read_by.state)];
    all.extend([q, k, v].map(|x| read(x.grad(&grads).unwrap())));
    all.extend([theta, eta, alpha, first].map(|x| read(x.grad(&grads).unwrap())));
    all
}

#[test]
fn the_memory_is_its_reference_with_all_gradients() {
    let Some(device) = device() else { return };
    let device = device.autodiff();
    for (depth, chunk) in [(1, 1), (1, 4), (2, 1), (2, 4)] {
        let data = Data::new(config(depth, chunk));
        let by_y = normal(BATCH * HEADS * TOKENS * data.config.dim_v, 60);
        let by_state = normal(data.state.len(), 61);
        let want = wanted(&data, &by_y, &by_state);
        let own = got(&data, &by_y, &by_state, &device);
        for (i, (got, want)) in own.iter().zip(&want).enumerate() {
            // Sums in f32 over 11 tokens, each of which multiplies the rounding of those before by about 1.
            let apart = deviation(got, want);
            assert!(apart < 1e-5, "depth {depth}, chunk {chunk}, {i}: {apart:e}");
        }
        assert!(own == got(&data, &by_y, &by_state, &device));
    }
}

/// Without a use of the last state, and with inputs that need no gradient.
#[test]
fn gradients_that_nobody_wants_change_no_bit_of_the_others() {
    let Some(device) = device() else { return };
    let device = device.autodiff();
    let data = Data::new(config(2, 4));
    let by_y = normal(BATCH * HEADS * TOKENS * data.config.dim_v, 60);
    let want = got(&data, &by_y, &vec![0.0; data.state.len()], &device);
    let op = ops::Titans::new(data.config.clone()).unwrap();
    let (inputs, state) = data.tensors(&device);
    let some = MemoryInputs {
        k: inputs.k.clone().detach(),
        eta: inputs.eta.clone().detach(),
        ..inputs.clone()
    };
    let y = op.forward(some, state.clone()).unwrap();
    let grads = (y.clone() * tensor(&by_y, y.dims(), &device)).sum().backward();
    assert!(inputs.k.grad(&grads).is_none() && inputs.eta.grad(&grads).is_none());
    assert_eq!(read(y), want[0]);
    let [q, v] = [inputs.q, inputs.v].map(|x| read(x.grad(&grads).unwrap()));
    let [theta, alpha, state] =
        [inputs.theta, inputs.alpha, state].map(|x| read(x.grad(&grads).unwrap()));
    assert!([q, v, theta, alpha, state] == [2, 4, 5, 7, 8].map(|i| want[i].clone()));
}

/// A state goes in and comes out by layer, and a call on it reads what its weights say.
#[test]
fn states_are_packed_by_layer() {
    let Some(device) = device() else { return };
    let device = device.autodiff();
    let data = Data::new(config(2, 4));
    let op = ops::Titans::new(data.config.clone()).unwrap();
    let (inputs, first) = data.tensors(&device);
    let [w, s] = op.layers(&first).unwrap();
    let want = layers(&data.state, &data.config);
    for (layer, want) in w.iter().chain(&s).zip(want.iter().flatten()) {
        assert_eq!(read(layer.clone()), flat(want));
    }
    assert_eq!(read(op.state(&w, &s).unwrap()), data.state);
    let state = State::from_parts(want[0].clone(), want[1].clone(), &data.config).unwrap();
    let q = rows(&data.rows[0], data.config.dim_qk);
    let asked = reference::read(q.view(), &state, &data.config).unwrap();
    assert!(deviation(&read(op.read(inputs.q.clone(), &first).unwrap()), &flat(&asked)) < 1e-5);

    let learned = w.iter().map(|layer| layer.clone().narrow(0, 0, 1).squeeze::<3>());
    let learned: Vec<_> = learned.collect();
    let [w, s] = op.layers(&op.first_state(&learned, 3).unwrap()).unwrap();
    for (layer, learned) in w.into_iter().zip(&learned) {
        assert_eq!(read(layer), read(learned.clone()).repeat(3));
    }
    assert!(s.into_iter().all(|layer| read(layer).iter().all(|x| *x == 0.0)));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let Some(device) = device() else { return };
    let device = device.autodiff();
    let data = Data::new(config(2, 4));
    let op = ops::Titans::new(data.config.clone()).unwrap();
    let (inputs, state) = data.tensors(&device);
    assert!(ops::Titans::new(Config::linear(0, 5)).is_err());
    let run = |inputs: MemoryInputs, state: Tensor<3>| op.forward(inputs, state).is_err();
    assert!(run(inputs.clone(), state.clone().narrow(2, 0, 10)));
    assert!(run(inputs.clone(), state.clone().narrow(0, 0, 1)));
    assert!(run(MemoryInputs { q: inputs.v.clone(), ..inputs.clone() }, state.clone()));
    let eta = inputs.eta.clone().narrow(2, 0, 3);
    assert!(run(MemoryInputs { eta, ..inputs.clone() }, state.clone()));
    assert!(op.read(inputs.v, &state).is_err());
    assert!(op.state(&[], &[]).is_err());
    assert!(op.first_state(&[Tensor::ones([2, 5, 7], &device)], 1).is_err());
    assert!(op.layers(&state.narrow(1, 0, 1)).is_err());
}
