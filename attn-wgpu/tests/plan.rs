//! Attention over sparse plans on the device against the f64 reference.

mod common;

use attn_core::dense::Config;
use attn_core::plan::{self, Combine, Entries, Near, Part, PlanShape, Rows, Share, SparsePlan};
use attn_core::testing::plans::{PlanCase, canonical_plan, plan_case, plan_problems};
use attn_core::testing::{Budget, HostInputs, Values, plant, simple_plan_f32};
use attn_core::{AttentionShape, Mask};
use attn_wgpu::plan::{DevicePlan, PlanAttention};
use attn_wgpu::{DType, Gpu, Tensor};
use common::{Result32, Uploaded, cases, gpu, normal, rounded, shape};
use proptest::prelude::*;

fn run(gpu: &Gpu, inputs: &HostInputs, plan: &SparsePlan, config: &Config) -> Result32 {
    run_as(gpu, inputs, plan, config, DType::F32)
}

fn run_as(
    gpu: &Gpu,
    inputs: &HostInputs,
    plan: &SparsePlan,
    config: &Config,
    dtype: DType,
) -> Result32 {
    let uploaded = Uploaded::as_type(gpu, inputs, dtype).unwrap();
    let plan = DevicePlan::upload(gpu, plan).unwrap();
    let attention = PlanAttention::new(gpu, config.clone()).unwrap();
    let output = attention.forward(uploaded.view(), &plan).unwrap();
    Result32 { out: common::download(&output.out).unwrap(), lse: output.lse.to_vec().unwrap() }
}

fn judge(
    inputs: &HostInputs,
    plan: &SparsePlan,
    config: &Config,
    got: &Result32,
) -> Result<(), String> {
    let arrays = inputs.to_f64().map_err(|error| error.to_string())?;
    let want = plan::forward(arrays.view(), plan, config).map_err(|error| error.to_string())?;
    let simple = simple_plan_f32(inputs, plan, config).map_err(|error| error.to_string())?;
    let budget = Budget::for_output(&want);
    let out: Vec<f64> = want.out.iter().copied().collect();
    let lse: Vec<f64> = want.lse.iter().copied().collect();
    budget.check("out", &got.out, &simple.out, &out)?;
    budget.check("lse", &got.lse, &simple.lse, &lse)?;
    Ok(())
}

fn check(gpu: &Gpu, name: &str, inputs: &HostInputs, plan: &SparsePlan, config: &Config) {
    let got = run(gpu, inputs, plan, config);
    judge(inputs, plan, config, &got).unwrap_or_else(|message| panic!("{name}: {message}"));
}

fn masked(plan: &SparsePlan) -> Config {
    Config::new().with_mask(if plan.causal { Mask::Causal } else { Mask::Full })
}

#[test]
fn smoke_named_plans() {
    let Some(gpu) = gpu() else { return };
    for problem in plan_problems().unwrap() {
        check(&gpu, problem.name, &problem.inputs(), &problem.plan, &problem.config);
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn any_plan_equals_the_reference(case in plan_case(40_000)) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let PlanCase { shape, mut config, plan, values, .. } = case.clone();
        if shape.dim_qk > 128 || shape.dim_v > 128 { return Ok(()); }
        let Ok(plan) = plan.canonicalise() else { return Ok(()) };
        config.mask = masked(&plan).mask;
        let _ = values;
        let inputs = case.inputs();
        let got = run(&gpu, &inputs, &plan, &config);
        judge(&inputs, &plan, &config, &got).map_err(TestCaseError::fail)?;
    }
}
