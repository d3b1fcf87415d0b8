//! Layers in training: losses fall, runs repeat themselves to the bit, records come back, nothing leaks.

use attn_burn::attn_titans::ndarray::{Array, Dimension, Ix1, Ix2, Ix3};
use attn_burn::attn_titans::reference::layer::{self, Attention, Gate, Readout, Weights};
use attn_burn::attn_titans::{Combination, Config, LayerConfig};
use attn_burn::nn::{Titans, TitansConfig};
use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Tensor};

use crate::common::{deviation, device, normal, read, seeded, tensor};

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

#[test]
fn extents_that_do_not_fit_are_errors() {
    let Some(device) = device() else { return };
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

/// And a batch of none.
#[test]
fn no_token_is_no_output() {
    let Some(device) = device() else { return };
    let model = Model::new(&device);
    for shape in [[2, 0, WIDTH], [0, 3, WIDTH]] {
        for layer in model.each() {
            let (out, state) = layer.forward_with_state(Tensor::zeros(shape, &device)).unwrap();
            assert_eq!(out.dims(), shape);
            assert_eq!(state.dims()[0], shape[0]);
        }
    }
}

fn array<const D: usize, I: Dimension>(x: Tensor<D>) -> Array<f64, I> {
    let shape = x.dims().to_vec();
    let data = read(x).into_iter().map(f64::from).collect();
    Array::from_shape_vec(shape, data).unwrap().into_dimensionality().unwrap()
}

/// What a module has learned, in f64.
fn weights(module: &Titans) -> Weights {
    let map = |map: &Linear| array::<2, Ix2>(map.weight.val().transpose());
    let vector = |vector: &Param<Tensor<1>>| array::<1, Ix1>(vector.val());
    let matrix = |matrix: &Param<Tensor<2>>| array::<2, Ix2>(matrix.val());
    let gate = |gate: &Linear| Gate { g: map(gate), b: vector(gate.bias.as_ref().unwrap()) };
    let memory = &module.memory;
    let kernels = [&memory.conv_q, &memory.conv_k, &memory.conv_v];
    let layers = [Some(&memory.m_w0), memory.m_w1.as_ref()].into_iter().flatten();
    Weights {
        projections: [&memory.w_q, &memory.w_k, &memory.w_v].map(map),
        conv: Some(kernels.map(|kernel| matrix(kernel.as_ref().unwrap()))),
        gates: [&memory.g_theta, &memory.g_eta, &memory.g_alpha].map(gate),
        memory: layers.map(|layer| array::<3, Ix3>(layer.val())).collect(),
        persistent: module.persist.as_ref().map_or(Array::zeros((0, WIDTH)), matrix),
        attention: module.attention.as_ref().map(|attention| {
            let [q, k, v] = [&attention.query, &attention.key, &attention.value].map(map);
            Attention { q, k, v, o: map(&attention.output) }
        }),
        readout: module.readout.as_ref().map(|readout| Readout {
            gate: map(&readout.w_gate),
            out: map(&readout.w_out),
            gain: vector(&readout.g_out.gamma),
        }),
        norms: module
            .gate
            .as_ref()
            .map(|gate| [&gate.gam_y, &gate.gam_m].map(|norm| vector(&norm.gamma))),
    }
}

/// Golden files have no context with convolutions, which reach across segments, and no memory alone.
#[test]
fn layers_are_their_references() {
    let Some(device) = device() else { return };
    let device = device.autodiff();
    let model = Model::new(&device);
    let literal = Combination::LiteralContext { segment: 4 };
    let literal = LayerConfig::new(Config::linear(2, 8).with_chunk(3), literal);
    let literal =
        seeded(&device, || TitansConfig::new(WIDTH).with_kernel(4).init(literal, &device).unwrap());
    let [x, by] = data(&device);
    for layer in model.each().into_iter().chain([&literal]) {
        let weights = weights(layer);
        let [host, host_by] = [&x, &by].map(|x| array::<3, Ix3>(x.clone()));
        let want = layer::forward(host.view(), &weights, layer.config()).unwrap().out;
        let d_x =
            layer::backward(host.view(), &weights, host_by.view(), layer.config()).unwrap().dx;

        let x = x.clone().require_grad();
        let out = layer.forward(x.clone()).unwrap();
        let grads = (out.clone() * by.clone()).sum().backward();
        let got = [read(out), read(x.grad(&grads).unwrap())];
        // The bounds of golden files.
        for ((got, want), bound) in got.iter().zip([want, d_x]).zip([2e-5, 1e-4]) {
            let want: Vec<f32> = want.iter().map(|&x| x as f32).collect();
            let apart = deviation(got, &want);
            assert!(apart < bound, "{:?}: {apart:e}", layer.config().combination);
        }
    }
}
