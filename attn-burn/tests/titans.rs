//! Titans through burn: the memory and the layers of its reference, with all gradients, and of golden files.

mod common;

use std::path::Path;

use attn_burn::attn_titans::ndarray::{Array3, Array4, Axis, concatenate};
use attn_burn::attn_titans::reference::{self, Cotangents, Inputs, State};
use attn_burn::attn_titans::{Combination, Config, LayerConfig};
use attn_burn::nn::{Titans, TitansConfig};
use attn_burn::ops::{self, MemoryInputs};
use attn_core::testing::golden::{GoldenFile, files};
use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Gradients, Tensor};
use common::{deviation, device, normal, read, seeded, tensor};

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

    let memory = || Config::linear(2, 8);
    let layer = |memory, combination| {
        TitansConfig::new(16).init(LayerConfig::new(memory, combination), &device)
    };
    assert!(layer(memory(), Combination::Gate { window: 0 }).is_err());
    assert!(layer(memory().with_dim_v(4), Combination::Context { segment: 4 }).is_err());
    assert!(layer(Config::linear(3, 8), Combination::Layer { window: 4 }).is_err());
    let alone = layer(memory(), Combination::Alone).unwrap();
    assert!(alone.forward(Tensor::ones([1, 4, 15], &device)).is_err());
}

/// Outputs and gradients over the largest element, by the paper's specification.
const OUT: f64 = 2e-5;
const GRAD: f64 = 1e-4;

fn golden(file: &GoldenFile, kind: &str, device: &Device) {
    let number = |key: &str| file.number(key).unwrap() as usize;
    let (heads, d_model) = (number("H"), number("d_model"));
    let memory = Config::deep(heads, d_model / heads, number("Dh"));
    let memory = memory.with_chunk(number("memory_chunk"));
    let memory = memory.with_coefficient(file.number("grad_coef").unwrap());
    let combination = match kind {
        "mac" => Combination::Context { segment: number("segment") },
        "mag" => Combination::Gate { window: number("window") },
        _ => Combination::Layer { window: number("window") },
    };
    let theta_max = file.number("theta_max").unwrap();
    let config = LayerConfig::new(memory, combination).with_theta_max(theta_max);
    let extents = TitansConfig::new(d_model).with_kernel(number("conv_kernel"));
    let extents = extents.with_persistent(number("persistent_tokens"));
    let module = extents.init(config.clone(), device).unwrap();
    let module = load(module, file, device);

    let x = values(file, "x");
    let shape: [usize; 3] = file.f32("x").unwrap().shape().try_into().unwrap();
    let x = tensor(&x, shape, device).require_grad();
    let (out, state) = module.forward_with_state(x.clone()).unwrap();
    close(file, "o", read(out.clone()), OUT);
    let [w, s] = module.memory.memory().layers(&state).unwrap();
    for (i, (w, s)) in w.into_iter().zip(s).enumerate() {
        close(file, &format!("w{i}_final"), read(w), OUT);
        close(file, &format!("s{i}_final"), read(s), OUT);
    }
    let grads = (out * tensor(&values(file, "d_o"), shape, device)).sum().backward();
    close(file, "d_x", read(x.grad(&grads).unwrap()), GRAD);
    gradients(&module, file, &grads);
    if file.contains("o_literal") {
        let mut literal = config;
        literal.combination = Combination::LiteralContext { segment: number("segment") };
        let module = load(extents.init(literal, device).unwrap(), file, device);
        close(file, "o_literal", read(module.forward(x).unwrap()), OUT);
    }
}

fn values(file: &GoldenFile, name: &str) -> Vec<f32> {
    file.f32(name).unwrap().iter().copied().collect()
}

fn close(file: &GoldenFile, name: &str, got: Vec<f32>, bound: f64) {
    let apart = deviation(&got, &values(file, name));
    assert!(apart < bound, "{}: {name}: {apart:e}", file.name);
}

/// Maps and vectors of a module with their names in files.
fn named(
    module: &mut Titans,
) -> (Vec<(&'static str, &mut Linear)>, Vec<(&'static str, &mut Param<Tensor<1>>)>) {
    let memory = &mut module.memory;
    let mut maps =
        vec![("w_q", &mut memory.w_q), ("w_k", &mut memory.w_k), ("w_v", &mut memory.w_v)];
    maps.extend([
        ("g_theta", &mut memory.g_theta),
        ("g_eta", &mut memory.g_eta),
        ("g_alpha", &mut memory.g_alpha),
    ]);
    let mut vectors = Vec::new();
    if let Some(attention) = &mut module.attention {
        maps.extend([
            ("a_q", &mut attention.query),
            ("a_k", &mut attention.key),
            ("a_v", &mut attention.value),
            ("a_o", &mut attention.output),
        ]);
    }
    if let Some(readout) = &mut module.readout {
        maps.extend([("w_gate", &mut readout.w_gate), ("w_out", &mut readout.w_out)]);
        vectors.push(("g_out", &mut readout.g_out.gamma));
    }
    if let Some(gate) = &mut module.gate {
        vectors.extend([("gam_y", &mut gate.gam_y.gamma), ("gam_m", &mut gate.gam_m.gamma)]);
    }
    (maps, vectors)
}

fn load(mut module: Titans, file: &GoldenFile, device: &Device) -> Titans {
    fn one<const D: usize>(file: &GoldenFile, name: &str, device: &Device) -> Tensor<D> {
        let shape = file.f32(name).unwrap().shape().try_into().unwrap();
        tensor(&values(file, name), shape, device)
    }
    let (maps, vectors) = named(&mut module);
    for (name, map) in maps {
        // Files have rows for what comes out, burn for what goes in.
        map.weight = Param::from_tensor(one::<2>(file, name, device).transpose());
        if let Some(bias) = &mut map.bias {
            *bias = Param::from_tensor(one(file, &name.replace("g_", "gb_"), device));
        }
    }
    for (name, vector) in vectors {
        *vector = Param::from_tensor(one(file, name, device));
    }
    let memory = &mut module.memory;
    memory.m_w0 = Param::from_tensor(one(file, "m_w0", device));
    memory.m_w1 = Some(Param::from_tensor(one(file, "m_w1", device)));
    for (name, kernel) in [
        ("conv_q", &mut memory.conv_q),
        ("conv_k", &mut memory.conv_k),
        ("conv_v", &mut memory.conv_v),
    ] {
        if let Some(kernel) = kernel {
            *kernel = Param::from_tensor(one(file, name, device));
        }
    }
    if let Some(persist) = &mut module.persist {
        *persist = Param::from_tensor(one(file, "persist", device));
    }
    module
}

/// Every `d_*` of the file, and no other.
fn gradients(module: &Titans, file: &GoldenFile, grads: &Gradients) {
    let mut checked = vec!["d_o".to_owned(), "d_x".to_owned()];
    let mut check = |name: &str, got: Vec<f32>| {
        let name = format!("d_{name}");
        close(file, &name, got, GRAD);
        checked.push(name);
    };
    let mut copy = module.clone();
    let (maps, vectors) = named(&mut copy);
    for (name, map) in maps {
        check(name, read(map.weight.val().grad(grads).unwrap().transpose()));
        if let Some(bias) = &map.bias {
            check(&name.replace("g_", "gb_"), read(bias.val().grad(grads).unwrap()));
        }
    }
    for (name, vector) in vectors {
        check(name, read(vector.val().grad(grads).unwrap()));
    }
    let memory = &module.memory;
    for (name, w) in [("m_w0", Some(&memory.m_w0)), ("m_w1", memory.m_w1.as_ref())] {
        check(name, read(w.unwrap().val().grad(grads).unwrap()));
    }
    let kernels = [
        ("conv_q", &memory.conv_q),
        ("conv_k", &memory.conv_k),
        ("conv_v", &memory.conv_v),
        ("persist", &module.persist),
    ];
    for (name, kernel) in kernels {
        if let Some(kernel) = kernel {
            check(name, read(kernel.val().grad(grads).unwrap()));
        }
    }
    let all = file.names().filter(|name| name.starts_with("d_"));
    let missing: Vec<_> = all.filter(|name| !checked.iter().any(|own| own == name)).collect();
    assert!(missing.is_empty(), "{}: {missing:?}", file.name);
}

#[test]
fn layers_are_those_of_golden_files() {
    let Some(device) = device() else { return };
    let device = device.autodiff();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../attn-memory/titans/tests/data");
    let mut seen = Vec::new();
    for file in files(&folder, "titans").unwrap() {
        if let Some(kind @ ("mac" | "mag" | "mal")) = file.kind() {
            golden(&file, kind, &device);
            println!("checked {}", file.name);
            seen.push(kind.to_owned());
        }
    }
    for kind in ["mac", "mag", "mal"] {
        assert!(seen.iter().any(|seen| seen == kind), "{kind}");
    }
}

const WIDTH: usize = 16;

#[derive(Module, Debug)]
struct Model {
    alone: Titans,
    context: Titans,
    gate: Titans,
    layer: Titans,
}

impl Model {
    fn new(device: &Device) -> Model {
        let memory = Config::deep(2, 8, 12).with_chunk(3);
        let extents = TitansConfig::new(WIDTH).with_kernel(3).with_persistent(2);
        let layer = |combination| {
            extents.init(LayerConfig::new(memory.clone(), combination), device).unwrap()
        };
        seeded(device, || Model {
            alone: layer(Combination::Alone),
            context: layer(Combination::Context { segment: 3 }),
            gate: layer(Combination::Gate { window: 3 }),
            layer: layer(Combination::Layer { window: 3 }),
        })
    }

    fn each(&self) -> [&Titans; 4] {
        [&self.alone, &self.context, &self.gate, &self.layer]
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.each().into_iter().fold(x, |x, layer| x.clone() + layer.forward(x).unwrap())
    }
}

fn data(device: &Device) -> [Tensor<3>; 2] {
    [1, 2].map(|seed| tensor(&normal(2 * 6 * WIDTH, seed), [2, 6, WIDTH], device))
}

fn train(device: &Device) -> (Model, Vec<f32>) {
    let [x, target] = data(device);
    let mut model = Model::new(device);
    let mut adam = AdamConfig::new().init();
    let mut losses = Vec::new();
    for _ in 0..2 {
        let loss = (model.forward(x.clone()) - target.clone()).square().mean();
        losses.push(read(loss.clone())[0]);
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        model = adam.step(1e-2, model, grads);
    }
    (model, losses)
}

#[test]
fn training_repeats_itself_to_the_bit_and_records_bring_everything_back() {
    let Some(device) = device() else { return };
    let tracked = device.clone().autodiff();
    let (model, losses) = train(&tracked);
    assert!(losses[1] < losses[0], "{losses:?}");
    assert_eq!(losses, train(&tracked).1);

    let [x, _] = data(&device);
    let trained = model.valid();
    let want = read(trained.forward(x.clone()));
    let path = std::env::temp_dir().join(format!("attn-burn-titans-{}", std::process::id()));
    trained.save_file(&path).unwrap();
    let fresh = Model::new(&device);
    let other = read(fresh.forward(x.clone()));
    let loaded = fresh.load_file(&path);
    assert!(other != want);
    assert_eq!(read(loaded.forward(x)), want);
    // Records are read when they are needed, so the file stays until here.
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        if entry.path().to_string_lossy().starts_with(&*path.to_string_lossy()) {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
}

/// To the bit, also within a chunk and a segment; the literal context leaks, as it says.
#[test]
fn later_tokens_change_nothing_earlier() {
    let Some(device) = device() else { return };
    let model = Model::new(&device);
    let memory = Config::deep(2, 8, 12).with_chunk(3);
    let literal = LayerConfig::new(memory, Combination::LiteralContext { segment: 3 });
    let literal = seeded(&device, || TitansConfig::new(WIDTH).init(literal, &device).unwrap());
    let [x, other] = data(&device);
    let edited = Tensor::cat(vec![x.clone().narrow(1, 0, 2), other.narrow(1, 2, 4)], 1);
    let same = |layer: &Titans| {
        let [a, b] = [&x, &edited].map(|x| {
            let out = layer.forward(x.clone()).unwrap();
            assert_eq!(out.dims(), [2, 6, WIDTH]);
            read(out.narrow(1, 0, 2))
        });
        a == b
    };
    assert!(model.each().into_iter().all(same));
    assert!(!same(&literal));
}
