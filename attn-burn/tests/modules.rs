//! Modules in training: losses fall, runs repeat themselves to the bit, records come back.

mod common;

use attn_burn::attn_core::plan::{PlanShape, SparsePlan};
use attn_burn::attn_lightning::Config as Decay;
use attn_burn::nn::{
    Aaren, AarenConfig, Attention, AttentionConfig, FlowAttention, FlowAttentionConfig,
    GatedLinearAttentionConfig, PlanAttention, PlanAttentionConfig, RoutingAttention,
    RoutingAttentionConfig, TransNormerLayer, TransNormerLayerConfig,
};
use attn_burn::ops::Plan;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Tensor};
use common::{deviation, device, normal, read, seeded, tensor};

const WIDTH: usize = 16;

#[derive(Module, Debug)]
struct Model {
    dense: Attention,
    plan: PlanAttention,
    routing: RoutingAttention,
    lightning: TransNormerLayer,
    flow: FlowAttention,
    aaren: Aaren,
    last: Linear,
    #[module(skip)]
    given: Plan,
}

impl Model {
    fn new(device: &Device) -> Model {
        let plan = SparsePlan::full(PlanShape::new(2, 2, 2, 24, 24), true, 8).unwrap();
        let dense = AttentionConfig::new(WIDTH, 4).with_heads_kv(Some(2));
        let routing = RoutingAttentionConfig::new(WIDTH, 2, 4, 6).with_decay(0.9);
        let routing = routing.with_scale(0.3).with_commitment(0.1);
        let gated = GatedLinearAttentionConfig::new(WIDTH, 4).with_lrpe(true);
        seeded(device, || Model {
            dense: dense.init(device).unwrap(),
            plan: PlanAttentionConfig::new(WIDTH, 2).init(device).unwrap(),
            routing: routing.init(device).unwrap(),
            lightning: TransNormerLayerConfig::new(gated, 24).init(device).unwrap(),
            flow: FlowAttentionConfig::new(WIDTH, 2).init(device).unwrap(),
            aaren: AarenConfig::new(WIDTH, 2).init(device).unwrap(),
            last: LinearConfig::new(WIDTH, WIDTH).init(device),
            given: plan.into(),
        })
    }

    /// Output and commitment loss.
    fn forward(&self, x: Tensor<3>) -> (Tensor<3>, Option<Tensor<1>>) {
        let x = x.clone() + self.dense.forward(x).unwrap();
        let x = x.clone() + self.plan.forward(x, &self.given).unwrap();
        let routed = self.routing.forward(x.clone(), None).unwrap();
        let x = self.lightning.forward(x + routed.out).unwrap();
        let x = x.clone() + self.flow.forward(x).unwrap();
        let x = x.clone() + self.aaren.forward(x).unwrap();
        (self.last.forward(x), routed.commitment)
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
        let (out, commitment) = model.forward(x.clone());
        let error = (out - target.clone()).square().mean();
        let loss = error + commitment.unwrap();
        losses.push(read(loss.clone())[0]);
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        model = adam.step(1e-2, model, grads);
    }
    (model, losses)
}

#[test]
fn two_runs_from_one_seed_are_equal_to_the_bit() {
    let Some(device) = device() else { return };
    let device = device.autodiff();
    let (model, losses) = train(&device, 12);
    assert!(losses[11] < 0.9 * losses[0], "{losses:?}");
    let (again, same) = train(&device, 12);
    assert_eq!(losses, same);
    let [x, _] = data(&device);
    assert_eq!(read(model.forward(x.clone()).0), read(again.forward(x).0));
}

/// Burn then computes cheap activations again for the backward pass. What it fuses them with may round them
/// otherwise.
#[test]
fn gradient_checkpointing_changes_nothing() {
    let Some(device) = device() else { return };
    let device = device.autodiff();
    let (_, losses) = train(&device, 3);
    let (_, same) = train(&device.gradient_checkpointing(), 3);
    let bound = if cfg!(feature = "fusion") { 1e-6 } else { 0.0 };
    assert!(deviation(&losses, &same) <= bound, "{losses:?} {same:?}");
}

#[test]
fn records_bring_everything_back() {
    let Some(device) = device() else { return };
    let (model, _) = train(&device.clone().autodiff(), 3);
    let [x, _] = data(&device);
    let trained = model.valid();
    let (want, commitment) = trained.forward(x.clone());
    assert!(commitment.is_none());
    let path = std::env::temp_dir().join(format!("attn-burn-{}", std::process::id()));
    trained.clone().save_file(&path).unwrap();
    let fresh = Model::new(&device);
    let (other, _) = fresh.forward(x.clone());
    let loaded = fresh.load_file(&path);
    let want = read(want);
    assert!(read(other) != want);
    assert_eq!(read(loaded.forward(x).0), want);
    // Centroids are part of it.
    assert_eq!(read(loaded.routing.means.value()), read(trained.routing.means.value()));
    // Records are read when they are needed, so the file stays until here.
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        if entry.path().to_string_lossy().starts_with(&*path.to_string_lossy()) {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
}

#[test]
fn centroids_follow_in_training_only() {
    let Some(device) = device() else { return };
    let [x, _] = data(&device);
    let model = Model::new(&device.clone().autodiff());
    let means = |model: &Model| read(model.routing.means.value_sync());
    let before = means(&model);
    model.valid().forward(x.clone());
    assert_eq!(means(&model), before);
    model.forward(Tensor::from_inner(x.clone()));
    let after = means(&model);
    assert!(after != before);
    let frozen = model.freeze();
    frozen.forward(Tensor::from_inner(x));
    assert_eq!(means(&frozen), after);
}

#[test]
fn extents_that_do_not_fit_are_errors() {
    let Some(device) = device() else { return };
    let gated = GatedLinearAttentionConfig::new(16, 4);
    assert!(AttentionConfig::new(16, 3).init(&device).is_err());
    assert!(AttentionConfig::new(16, 4).with_heads_kv(Some(3)).init(&device).is_err());
    assert!(PlanAttentionConfig::new(16, 0).init(&device).is_err());
    assert!(RoutingAttentionConfig::new(16, 2, 0, 4).init(&device).is_err());
    assert!(GatedLinearAttentionConfig::new(16, 3).init(&device).is_err());
    assert!(gated.init_with(Decay::new(2), &device).is_err());
    assert!(FlowAttentionConfig::new(16, 3).init(&device).is_err());
    assert!(AarenConfig::new(16, 0).init(&device).is_err());
    let model = Model::new(&device);
    let wrong = || Tensor::<3>::ones([2, 24, 8], &device);
    assert!(model.dense.forward(wrong()).is_err());
    assert!(model.plan.forward(wrong(), &model.given).is_err());
    assert!(model.routing.forward(wrong(), None).is_err());
    assert!(model.lightning.forward(wrong()).is_err());
    assert!(model.flow.forward(wrong()).is_err());
    assert!(model.aaren.forward(wrong()).is_err());
    let other = Tensor::<3>::ones([2, 23, WIDTH], &device);
    assert!(model.plan.forward(other, &model.given).is_err());
}
