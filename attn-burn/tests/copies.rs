//! Outputs and gradients are written into burn's memory by the kernels that compute them. A program of its own, as
//! a profile has the kernels of all threads.

mod common;

use attn_burn::attn_core::Mask;
use attn_burn::attn_core::plan::{PlanShape, Share, SparsePlan};
use attn_burn::attn_lightning::Config as Decay;
use attn_burn::dense::Config;
use attn_burn::ops::{Attention, Lightning, Plan, PlanAttention};
use burn::tensor::Tensor;
use common::{device, normal, tensor};

const SHAPE: [usize; 4] = [1, 2, 40, 16];

type Mechanism = Box<dyn Fn([Tensor<4>; 3]) -> Tensor<4>>;

#[test]
fn nothing_is_copied() {
    let Some(device) = device() else { return };
    let gpu = attn_burn::gpu(&device).unwrap();
    let device = device.autodiff();
    let dense = Attention::new(Config::new().with_mask(Mask::Causal)).unwrap();
    let lightning = Lightning::new(Decay::new(2).with_block(16)).unwrap();
    let on_plan = PlanAttention::new(Config::new().with_mask(Mask::Causal)).unwrap();
    let shape = PlanShape::new(1, 2, 2, 40, 40);
    let allows = |_, query, key| key <= query;
    let plan = SparsePlan::covering(shape, Share::AllHeads, true, [4, 2], allows).unwrap();
    let plan = Plan::from(plan);
    let mechanisms: [(&str, Mechanism); 3] = [
        ("dense", Box::new(move |[q, k, v]| dense.forward(q, k, v).unwrap())),
        ("lightning", Box::new(move |[q, k, v]| lightning.forward(q, k, v).unwrap())),
        ("plan", Box::new(move |[q, k, v]| on_plan.forward(q, k, v, &plan).unwrap())),
    ];
    let count = SHAPE.iter().product();
    let weights = tensor(&normal(count, 9), SHAPE, &device);
    for (name, run) in mechanisms {
        let inputs =
            [1, 2, 3].map(|seed| tensor(&normal(count, seed), SHAPE, &device).require_grad());
        let once = || {
            let loss = (run(inputs.clone()) * weights.clone()).sum();
            let gradients = loss.backward();
            let found = inputs.each_ref().map(|x| x.grad(&gradients).is_some());
            device.sync().unwrap();
            found
        };
        let (found, ran) = gpu.profile(|| Ok(once())).unwrap();
        assert_eq!(found, [true; 3]);
        let kernels: Vec<&str> = ran.kernels.iter().map(|ran| ran.kernel.as_ref()).collect();
        assert!(kernels.len() > 3, "{name}: {kernels:?}");
        // Tensors of whole groups of four elements are copied by this one; plans copy words by another.
        let copied = kernels.iter().any(|kernel| kernel.starts_with("copy_chunks"));
        assert!(!copied, "{name}: {kernels:?}");
    }
}
