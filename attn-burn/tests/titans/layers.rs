//! Layers in training: losses fall, runs repeat themselves to the bit, records come back, nothing leaks.

use attn_burn::attn_titans::{Combination, Config, LayerConfig};
use attn_burn::nn::{Titans, TitansConfig};
use burn::module::Module;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Tensor};

use crate::common::{device, normal, read, seeded, tensor};

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
