//! Gradients of attention over sparse plans on the device against the f64 reference.

mod common;

use attn_core::plan::Near;
use attn_core::testing::HostInputs;
use attn_core::testing::plans::{plan_case, plan_problems};
use attn_core::dense::Config;
use attn_core::plan::{PlanShape, Share, SparsePlan};
use attn_wgpu::Gpu;
use common::plans::{blocks, config, gradients, judge_gradients};
use common::{cases, cotangents, gpu, normal, shape};
use proptest::prelude::*;

fn check(gpu: &Gpu, name: &str, inputs: &HostInputs, plan: &SparsePlan, config: &Config) {
    let (d_out, d_lse) = cotangents(&inputs.shape, 99);
    for d_lse in [None, Some(d_lse.as_slice())] {
        let got = gradients(gpu, inputs, plan, config, (&d_out, d_lse));
        judge_gradients(inputs, plan, config, (&d_out, d_lse), &got)
            .unwrap_or_else(|message| panic!("{name} lse {}: {message}", d_lse.is_some()));
    }
}

#[test]
fn named_plans() {
    let Some(gpu) = gpu() else { return };
    for problem in plan_problems().unwrap() {
        check(&gpu, problem.name, &problem.inputs(), &problem.plan, &problem.config);
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn any_plan_equals_the_reference(case in plan_case(40_000)) {
        let Some(gpu) = gpu() else { return Ok(()) };
        // Few head sizes, since every one is compiled; heads and lengths are what plans are about.
        let mut case = case;
        (case.shape.dim_qk, case.shape.dim_v) = (16, 16);
        let plan = case.plan.canonicalise().unwrap();
        let config = case.config.clone().with_mask(config(&plan).mask);
        let inputs = case.inputs();
        let (d_out, d_lse) = cotangents(&case.shape, case.seed);
        let cotangents = (d_out.as_slice(), Some(d_lse.as_slice()));
        let got = gradients(&gpu, &inputs, &plan, &config, cotangents);
        judge_gradients(&inputs, &plan, &config, cotangents, &got).map_err(TestCaseError::fail)?;
    }
}

/// Lengths around tiles and blocks, ratios of heads, and every share.
#[test]
fn lengths_ratios_and_shares() {
    let Some(gpu) = gpu() else { return };
    for (m, n) in [(1, 1), (2, 67), (65, 130), (130, 65), (97, 97)] {
        for (group, share) in
            [(1, Share::PerHead), (3, Share::PerHead), (3, Share::PerKvHead), (4, Share::AllHeads)]
        {
            let inputs = normal(shape([2, 2 * group, 2, m, n, 16, 16]), 1);
            let near = Near { sink: 3, window: 9, grow: false };
            for (causal, tile, near) in
                [(true, [16, 16], near), (false, [64, 7], Near::default())]
            {
                let plan = blocks(PlanShape::from(&inputs.shape), share, causal, tile, 40);
                let plan = plan.with_near(near).canonicalise().unwrap();
                let name = format!("{m} {n} {group} {share:?} {causal}");
                check(&gpu, &name, &inputs, &plan, &config(&plan));
            }
        }
    }
}
