//! Attention in linear time through burn: the bits of our own backward passes, finite differences, burn's
//! autodiff of the definitions, and modules in training.

mod common;
#[path = "../examples/linear/plain.rs"]
mod plain;

use std::sync::{Mutex, MutexGuard, PoisonError};

use attn_burn::attn_aaren::{self, Config as Prefixes};
use attn_burn::attn_flowformer::{self, Config as Flow};
use attn_burn::attn_lightning::{Config as Decay, Slopes};
use attn_burn::attn_wgpu::Tensor as Ours;
use attn_burn::attn_wgpu::linear_attention::{self, LinearAttention};
use attn_burn::nn::{
    Aaren, AarenConfig, FlowAttention, FlowAttentionConfig, GatedLinearAttentionConfig,
    TransNormerLayer, TransNormerLayerConfig,
};
use attn_burn::{Gpu, Result, ops};
use burn::module::Module;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData};
use common::{deviation, device, normal, ours, read, tensor};

type Three = [Tensor<4>; 3];

/// Queries, keys, values, and a cotangent of the output; of Aaren the queries are a batch of one token.
struct Case {
    shapes: [[usize; 4]; 3],
    data: [Vec<f32>; 3],
    out: [usize; 4],
    weights: Vec<f32>,
}

impl Case {
    fn new(shapes: [[usize; 4]; 3], out: [usize; 4]) -> Case {
        let data = [0, 1, 2].map(|i| normal(shapes[i].iter().product(), 50 + i as u64));
        Case { shapes, data, out, weights: normal(out.iter().product(), 60) }
    }

    fn inputs(&self, device: &Device) -> Three {
        [0, 1, 2].map(|i| tensor(&self.data[i], self.shapes[i], device).require_grad())
    }

    /// Output and gradients by burn; a gradient that nobody has is empty.
    fn run(&self, device: &Device, f: impl Fn(&Three) -> Tensor<4>) -> [Vec<f32>; 4] {
        let inputs = self.inputs(device);
        let out = f(&inputs);
        let weights = tensor(&self.weights, self.out, device);
        let grads = (out.clone() * weights).sum().backward();
        let [q, k, v] = inputs.map(|x| x.grad(&grads).map(read).unwrap_or_default());
        [read(out), q, k, v]
    }

    fn differences(&self, device: &Device, got: &[Vec<f32>; 4], f: impl Fn(&Three) -> Tensor<4>) {
        const STEP: f32 = 1e-2;
        let loss = |data: &[Vec<f32>; 3]| -> f64 {
            let out = read(f(&[0, 1, 2].map(|i| tensor(&data[i], self.shapes[i], device))));
            out.iter().zip(&self.weights).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
        };
        for input in 0..3 {
            let most = got[input + 1].iter().fold(1.0f32, |most, x| most.max(x.abs()));
            let length = self.data[input].len();
            for at in [0, length / 2 + 1, length - 1] {
                let moved = |by: f32| {
                    let mut data = self.data.clone();
                    data[input][at] += by;
                    loss(&data)
                };
                let slope = (moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP);
                // The third derivative leaves some 1e-4, rounding of f32 some 1e-4 more.
                let error = (slope - f64::from(got[input + 1][at])).abs();
                assert!(error < 2e-3 * f64::from(most), "input {input}, {at}: {error:e}");
            }
        }
    }

    fn ours(&self, gpu: &Gpu) -> ([Ours; 3], Ours) {
        let inputs = [0, 1, 2].map(|i| ours(gpu, &self.data[i], &self.shapes[i]));
        (inputs, ours(gpu, &self.weights, &self.out))
    }
}

fn words(tensors: [&Ours; 4]) -> [Vec<f32>; 4] {
    tensors.map(|x| x.to_vec().unwrap())
}

fn agree(got: &[Vec<f32>; 4], want: &[Vec<f32>; 4], bound: f64) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(deviation(got, want) < bound, "{i}: {:e}", deviation(got, want));
    }
}

/// What comes before attention in a model: views of several kinds, inputs that need no gradient, and a loss
/// whose gradient is one expanded number.
fn views(case: &Case, device: &Device, f: impl Fn(Three) -> Result<Tensor<4>>) {
    let straight = |x: &Three| f(x.clone()).unwrap();
    let all = case.run(device, straight);
    let turned = |x: &Tensor<4>| (x.clone().swap_dims(2, 3) * 1.0).swap_dims(2, 3);
    let moved = |x: &Tensor<4>| (x.clone().swap_dims(1, 2) * 1.0).swap_dims(1, 2);
    assert!(all == case.run(device, |x| f(x.each_ref().map(turned)).unwrap()));
    assert!(all == case.run(device, |x| f(x.each_ref().map(moved)).unwrap()));
    let constant = |x: &Three| {
        let [q, k, v] = x.clone();
        f([q, k.detach(), v]).unwrap()
    };
    let some = case.run(device, constant);
    assert!(some[2].is_empty() && all[0] == some[0] && all[1] == some[1] && all[3] == some[3]);

    let ones = Case { weights: vec![1.0; case.weights.len()], ..Case::new(case.shapes, case.out) };
    let want = ones.run(device, straight);
    let inputs = case.inputs(device);
    let grads = f(inputs.clone()).unwrap().sum().backward();
    let got = inputs.map(|x| read(x.grad(&grads).unwrap()));
    assert!(got == want[1..]);
}

#[test]
fn lightning_has_the_bits_of_its_own_gradients() {
    let Some(device) = device() else { return };
    let gpu = attn_burn::gpu(&device).unwrap();
    let tracked = device.clone().autodiff();
    let slopes = vec![0.25, 0.0];
    let config = Decay::new(2).with_slopes(Slopes::Given(slopes.clone())).with_block(16);
    let op = ops::Lightning::new(config).unwrap();
    let case = Case::new([[2, 2, 37, 8], [2, 1, 37, 8], [2, 1, 37, 12]], [2, 2, 37, 12]);
    let f = |x: &Three| op.forward(x[0].clone(), x[1].clone(), x[2].clone()).unwrap();
    let got = case.run(&tracked, f);
    case.differences(&device, &got, f);
    views(&case, &tracked, |[q, k, v]| op.forward(q, k, v));
    let want = case.run(&tracked, |x| {
        let [k, v] = [&x[1], &x[2]].map(|x| x.clone().repeat_dim(1, 2));
        plain::lightning(x[0].clone(), k, v, &slopes)
    });
    // Two orders of summation in f32 over 37 tokens.
    agree(&got, &want, 1e-5);

    let own = LinearAttention::new(&gpu, &slopes).unwrap().with_block(16).unwrap();
    let ([q, k, v], weights) = case.ours(&gpu);
    let (output, saved) = own.forward_saved(linear_attention::Inputs::new(&q, &k, &v)).unwrap();
    let grads = own.backward(&saved, linear_attention::Cotangents::new(&weights)).unwrap();
    assert!(got == words([&output.out, &grads.dq, &grads.dk, &grads.dv]));
}

#[test]
fn states_carry_outputs_and_gradients_across_a_cut() {
    let Some(device) = device() else { return };
    let device = device.autodiff();
    let op = ops::Lightning::new(Decay::new(2)).unwrap();
    let case = Case::new([[2, 2, 24, 8]; 3], [2, 2, 24, 8]);
    let start = normal(2 * 2 * 8 * 8, 70);
    let by_state = normal(2 * 2 * 8 * 8, 71);
    let run = |cuts: &[usize]| {
        let [q, k, v] = case.inputs(&device);
        let first = tensor(&start, [2, 2, 8, 8], &device).require_grad();
        let (mut kv, mut outs) = (first.clone(), Vec::new());
        for part in cuts.windows(2) {
            let cut = |x: &Tensor<4>| x.clone().narrow(2, part[0], part[1] - part[0]);
            let continued = op.forward_with_state(cut(&q), cut(&k), cut(&v), Some(kv)).unwrap();
            kv = continued.kv;
            outs.push(continued.out);
        }
        let out = Tensor::cat(outs, 2);
        let weights = tensor(&case.weights, case.out, &device);
        let loss = (out.clone() * weights).sum()
            + (kv.clone() * tensor(&by_state, [2, 2, 8, 8], &device)).sum();
        let grads = loss.backward();
        let mut all = vec![read(out), read(kv)];
        all.extend([q, k, v, first].map(|x| read(x.grad(&grads).unwrap())));
        all
    };
    let (whole, cut) = (run(&[0, 24]), run(&[0, 7, 24]));
    for (a, b) in whole.iter().zip(&cut) {
        assert!(deviation(a, b) < 1e-5);
    }
}

#[test]
fn flows_have_the_bits_of_their_own_gradients() {
    let Some(device) = device() else { return };
    let gpu = attn_burn::gpu(&device).unwrap();
    let tracked = device.clone().autodiff();
    let cases = [
        (Flow::causal(), 21),
        (Flow::causal().with_clamp(1.02), 21),
        (Flow::new(), 13),
        (Flow::new().with_clamp(5.0), 13),
    ];
    for (config, keys) in cases {
        let case = Case::new([[2, 2, 21, 8], [2, 2, keys, 8], [2, 2, keys, 12]], [2, 2, 21, 12]);
        let op = ops::Flowformer::new(config.clone()).unwrap();
        let f = |x: &Three| op.forward(x[0].clone(), x[1].clone(), x[2].clone()).unwrap();
        let got = case.run(&tracked, f);
        // A step across the bound of a clamp has no derivative.
        if config.clamp.is_none_or(|clamp| clamp > 2.0) {
            case.differences(&device, &got, f);
        }
        views(&case, &tracked, |[q, k, v]| op.forward(q, k, v));
        if config == Flow::causal() {
            let want =
                case.run(&tracked, |x| plain::flow(x[0].clone(), x[1].clone(), x[2].clone()));
            // Three sums in a row in f32, each over 21 tokens.
            agree(&got, &want, 3e-5);
        }
        let own = attn_flowformer::Flowformer::new(&gpu, config).unwrap();
        let ([q, k, v], weights) = case.ours(&gpu);
        let inputs = attn_flowformer::Inputs::new(&q, &k, &v);
        let (output, saved) = own.forward_saved(inputs).unwrap();
        let cotangents = attn_flowformer::Cotangents { out: &weights };
        let grads = own.backward(&saved, cotangents).unwrap();
        assert!(got == words([&output.out, &grads.dq, &grads.dk, &grads.dv]));
    }
}

#[test]
fn prefixes_have_the_bits_of_their_own_gradients() {
    let Some(device) = device() else { return };
    let gpu = attn_burn::gpu(&device).unwrap();
    let tracked = device.clone().autodiff();
    let op = ops::Aaren::new(Prefixes::new()).unwrap();
    let case = Case::new([[1, 1, 2, 8], [3, 2, 21, 8], [3, 2, 21, 12]], [3, 2, 21, 12]);
    let query = |x: &Tensor<4>| x.clone().reshape([2, 8]);
    let f = |x: &Three| op.forward::<2>(query(&x[0]), x[1].clone(), x[2].clone()).unwrap();
    let got = case.run(&tracked, f);
    case.differences(&device, &got, f);
    views(&case, &tracked, |[q, k, v]| op.forward::<2>(query(&q), k, v));
    let want = case.run(&tracked, |x| plain::prefixes(query(&x[0]), x[1].clone(), x[2].clone()));
    agree(&got, &want, 1e-5);

    let own = attn_aaren::Aaren::new(&gpu, Prefixes::new()).unwrap();
    let ([q, k, v], weights) = case.ours(&gpu);
    let q = q.reshape(&[2, 8]).unwrap();
    let (output, saved) = own.forward_saved(attn_aaren::Inputs::new(&q, &k, &v)).unwrap();
    let grads = own.backward(&saved, attn_aaren::Cotangents::new(&weights)).unwrap();
    assert!(got == words([&output.out, &grads.dq, &grads.dk, &grads.dv]));
}

fn marks(tokens: usize, device: &Device) -> Tensor<2, Int> {
    let marks: Vec<i32> = (0..2 * tokens).map(|i| i32::from(i % 5 != 1)).collect();
    Tensor::from_data(TensorData::new(marks, [2, tokens]), device)
}

/// Padding may hold anything, and changes nothing.
#[test]
fn padding_does_not_count() {
    let Some(device) = device() else { return };
    let device = device.autodiff();
    let shape = [2, 2, 15, 8];
    let [mut data, mut other] = [normal(480, 80), normal(480, 80)];
    let place = |i: usize| (i / 240) * 15 + i / 8 % 15;
    for i in 0..480 {
        if place(i) % 5 == 1 {
            (data[i], other[i]) = (9.0, -7.0);
        }
    }
    let valid = marks(15, &device);
    let counted = tensor::<4>(
        &(0..480).map(|i| f32::from(u8::from(place(i) % 5 != 1))).collect::<Vec<_>>(),
        shape,
        &device,
    );
    let query = tensor(&normal(16, 81), [2, 8], &device);
    let aaren = ops::Aaren::new(Prefixes::new()).unwrap();
    let by_aaren = |x: &Tensor<4>| {
        aaren.forward_valid(query.clone(), x.clone(), x.clone(), Some(valid.clone())).unwrap()
    };
    let run = |config: &Flow, x: &Tensor<4>| {
        let [q, k] = [0, 1].map(|_| Some(valid.clone()));
        let op = ops::Flowformer::new(config.clone()).unwrap();
        op.forward_valid(x.clone(), x.clone(), x.clone(), q, k).unwrap()
    };
    let by_flow = |x: &Tensor<4>| run(&Flow::new(), x);
    let by_causal = |x: &Tensor<4>| run(&Flow::causal(), x);
    let each: [&dyn Fn(&Tensor<4>) -> Tensor<4>; 3] = [&by_aaren, &by_flow, &by_causal];
    for f in each {
        let [a, b] = [&data, &other].map(|data| {
            let x = tensor(data, shape, &device).require_grad();
            let out = f(&x) * counted.clone();
            let grads = out.clone().square().sum().backward();
            (read(out), read(x.grad(&grads).unwrap()))
        });
        assert!(a == b && a.1.iter().any(|x| *x != 0.0));
    }
}

const WIDTH: usize = 16;

/// Tests that draw weights run one by one: the seed is one for all threads.
fn alone() -> MutexGuard<'static, ()> {
    static SEED: Mutex<()> = Mutex::new(());
    SEED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Module, Debug)]
struct Model {
    lightning: TransNormerLayer,
    flow: FlowAttention,
    aaren: Aaren,
}

impl Model {
    fn new(device: &Device) -> Model {
        device.seed(7);
        let gated = GatedLinearAttentionConfig::new(WIDTH, 4).with_lrpe(true);
        Model {
            lightning: TransNormerLayerConfig::new(gated, 24).init(device).unwrap(),
            flow: FlowAttentionConfig::new(WIDTH, 2).init(device).unwrap(),
            aaren: AarenConfig::new(WIDTH, 2).init(device).unwrap(),
        }
        .materialize()
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = self.lightning.forward(x).unwrap();
        let x = x.clone() + self.flow.forward(x).unwrap();
        x.clone() + self.aaren.forward(x).unwrap()
    }
}

fn data(device: &Device) -> [Tensor<3>; 2] {
    [1, 2].map(|seed| tensor(&normal(2 * 24 * WIDTH, seed), [2, 24, WIDTH], device))
}

fn train(device: &Device, steps: usize) -> (Model, Vec<f32>) {
    let [x, target] = data(device);
    let mut model = Model::new(device);
    let mut adam = AdamConfig::new().init();
    let mut losses = Vec::new();
    for _ in 0..steps {
        let loss = (model.forward(x.clone()) - target.clone()).square().mean();
        losses.push(read(loss.clone())[0]);
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        model = adam.step(1e-2, model, grads);
    }
    (model, losses)
}

#[test]
fn two_runs_from_one_seed_are_equal_to_the_bit() {
    let Some(device) = device() else { return };
    let _alone = alone();
    let device = device.autodiff();
    let (model, losses) = train(&device, 10);
    assert!(losses[9] < 0.9 * losses[0], "{losses:?}");
    let (again, same) = train(&device, 10);
    assert_eq!(losses, same);
    let [x, _] = data(&device);
    assert_eq!(read(model.forward(x.clone())), read(again.forward(x)));
}

#[test]
fn modules_are_their_definitions() {
    let Some(device) = device() else { return };
    let _alone = alone();
    let (model, _) = train(&device.clone().autodiff(), 2);
    let model = model.valid();
    let [x, _] = data(&device);
    let close = |got: Tensor<3>, want: Tensor<3>| {
        let apart = deviation(&read(got), &read(want));
        assert!(apart < 1e-5, "{apart:e}");
    };
    let slopes = Decay::new(4).head_slopes().unwrap();
    let gated = &model.lightning.attention;
    close(gated.forward(x.clone()).unwrap(), plain::gated(gated, x.clone(), &slopes));
    close(model.flow.forward(x.clone()).unwrap(), plain::flowing(&model.flow, x.clone(), 2));
    close(model.aaren.forward(x.clone()).unwrap(), plain::recurrent(&model.aaren, x.clone(), 2));
    // In two pieces, positions included.
    let (first, state) =
        model.lightning.forward_with_state(x.clone().narrow(1, 0, 9), None).unwrap();
    let rest = x.clone().narrow(1, 9, 15);
    let (second, state) = model.lightning.forward_with_state(rest, Some(state)).unwrap();
    assert_eq!(state.tokens, 24);
    close(Tensor::cat(vec![first, second], 1), model.lightning.forward(x).unwrap());
}

#[test]
fn records_bring_everything_back() {
    let Some(device) = device() else { return };
    let _alone = alone();
    let (model, _) = train(&device.clone().autodiff(), 2);
    let trained = model.valid();
    let [x, _] = data(&device);
    let fresh = Model::new(&device);
    let folder = std::env::temp_dir().join(format!("attn-burn-linear-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    trained.clone().save_file(folder.join("model")).unwrap();
    let other = read(fresh.forward(x.clone()));
    let loaded = read(fresh.load_file(folder.join("model")).forward(x.clone()));
    // A file is read when its weights are first used.
    std::fs::remove_dir_all(&folder).unwrap();
    let want = read(trained.forward(x));
    assert!(other != want);
    assert_eq!(loaded, want);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let Some(device) = device() else { return };
    let _alone = alone();
    assert!(ops::Lightning::new(Decay::new(0)).is_err());
    assert!(ops::Flowformer::new(Flow::new().with_clamp(-1.0)).is_err());
    assert!(ops::Aaren::new(Prefixes::new().with_scale(f64::NAN)).is_err());
    assert!(GatedLinearAttentionConfig::new(16, 3).init(&device).is_err());
    let gated = GatedLinearAttentionConfig::new(16, 4);
    assert!(gated.init_with(Decay::new(2), &device).is_err());
    assert!(FlowAttentionConfig::new(16, 3).init(&device).is_err());
    assert!(AarenConfig::new(16, 0).init(&device).is_err());
    let model = Model::new(&device);
    let wrong = Tensor::<3>::ones([2, 24, 8], &device);
    assert!(model.lightning.forward(wrong.clone()).is_err());
    assert!(model.flow.forward(wrong.clone()).is_err());
    assert!(model.aaren.forward(wrong.clone()).is_err());
    let x = Tensor::<3>::ones([2, 24, WIDTH], &device);
    let short = Tensor::<3>::ones([2, 23, WIDTH], &device);
    assert!(model.flow.forward_cross(x.clone(), short, None).is_err());
    assert!(model.flow.forward_cross(x.clone(), x.clone(), Some(marks(24, &device))).is_err());
    assert!(model.aaren.forward_valid(x.clone(), Some(marks(23, &device))).is_err());
    assert!(model.flow.forward_valid(x, Some(marks(23, &device))).is_err());
    let op = ops::Lightning::new(Decay::new(2)).unwrap();
    let [q, kv] = [[1, 2, 4, 8], [1, 2, 8, 7]].map(|shape| Tensor::<4>::ones(shape, &device));
    assert!(op.forward_with_state(q.clone(), q.clone(), q.clone(), Some(kv)).is_err());
    let three = Tensor::<4>::ones([1, 3, 4, 8], &device);
    assert!(op.forward(three.clone(), three.clone(), three).is_err());
}
