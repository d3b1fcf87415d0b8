//! Attention over sparse plans on the device against the f64 reference.

mod common;

use attn_core::plan::{self, Combine, SparsePlan};
use attn_core::testing::{HostInputs, plans::plan_problems};
use attn_core::dense::Config;
use attn_wgpu::Gpu;
use attn_wgpu::plan::{DevicePlan, PlanAttention};
use common::{Result32, Uploaded, gpu};

fn attend(gpu: &Gpu, inputs: &HostInputs, plan: &SparsePlan, config: &Config) -> Result32 {
    let uploaded = Uploaded::new(gpu, inputs).unwrap();
    let plan = DevicePlan::upload(gpu, plan).unwrap();
    let attention = PlanAttention::new(gpu, config.clone()).unwrap();
    let output = attention.forward(uploaded.view(), &plan).unwrap();
    Result32 { out: output.out.to_vec().unwrap(), lse: output.lse.to_vec().unwrap() }
}

#[test]
fn smoke_named_plans() {
    let Some(gpu) = gpu() else { return };
    for problem in plan_problems().unwrap() {
        if matches!(problem.plan.combine, Combine::Gate(_)) {
            continue;
        }
        let inputs = problem.inputs();
        let got = attend(&gpu, &inputs, &problem.plan, &problem.config);
        let arrays = inputs.to_f64().unwrap();
        let want = plan::forward(arrays.view(), &problem.plan, &problem.config).unwrap();
        let out: Vec<f64> = want.out.iter().copied().collect();
        let lse: Vec<f64> = want.lse.iter().copied().collect();
        let a = attn_core::testing::compare(&got.out, &out);
        let b = attn_core::testing::compare(&got.lse, &lse);
        println!("{} {:?} {:?}", problem.name, a, b);
    }
}
