//! The yardstick of plans is near the reference.

use attn_core::dense::Cotangents;
use attn_core::ndarray::{Array3, Array4};
use attn_core::plan::{self, Combine};
use attn_core::testing::plans::plan_case;
use attn_core::testing::{
    Budget, HostInputs, Values, compare, fill, simple_f32, simple_plan_f32,
    simple_plan_f32_backward,
};
use attn_core::{Mask, plan::SparsePlan};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn simple_results_are_near_the_reference(case in plan_case(60_000)) {
        let mut inputs = HostInputs::random(case.shape, case.seed, Values::Normal);
        if matches!(case.plan.combine, Combine::Single | Combine::Lse) && case.seed % 2 == 0 {
            inputs = inputs.with_random_sinks(case.seed);
        }
        let arrays = inputs.to_f64().unwrap();
        let want = plan::forward(arrays.view(), &case.plan, &case.config).unwrap();
        let got = simple_plan_f32(&inputs, &case.plan, &case.config).unwrap();
        // Rounding of a logit in f32, which moves a weight by as much.
        let rounding = 1e-5 * (1.0 + Budget::for_output(&want).logits);
        prop_assert!(compare(&got.lse, want.lse.as_slice().unwrap()).max_abs <= rounding);
        prop_assert!(compare(&got.out, want.out.as_slice().unwrap()).max_abs <= 10.0 * rounding);

        let d_out = fill(3, 3, Values::Normal, want.out.len());
        let d_lse = fill(3, 4, Values::Normal, want.lse.len());
        let wide = |data: &[f32]| data.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let out = Array4::from_shape_vec(want.out.dim(), wide(&d_out)).unwrap();
        let lse = Array3::from_shape_vec(want.lse.dim(), wide(&d_lse)).unwrap();
        let cotangents = Cotangents { out: out.view(), lse: Some(lse.view()) };
        let want = plan::backward(arrays.view(), &case.plan, &case.config, cotangents).unwrap();
        let got = simple_plan_f32_backward(&inputs, &case.plan, &case.config, &d_out, Some(&d_lse)).unwrap();
        for (got, want) in [(&got.dq, &want.dq), (&got.dk, &want.dk), (&got.dv, &want.dv)] {
            prop_assert!(compare(got, want.as_slice().unwrap()).max_abs <= 1e-2 * rounding.max(0.1));
        }
        if let (Some(got), Some(want)) = (&got.d_sinks, &want.d_sinks) {
            prop_assert!(compare(got, want.as_slice().unwrap()).max_abs <= 1e-3);
        }
    }
}

#[test]
fn a_full_plan_has_the_yardstick_of_dense_attention() {
    let shape = attn_core::AttentionShape {
        batch: 2,
        heads: 6,
        heads_kv: 2,
        queries: 19,
        keys: 19,
        dim_qk: 24,
        dim_v: 40,
    };
    let inputs = HostInputs::random(shape, 1, Values::Normal);
    let config = attn_core::dense::Config::new().with_mask(Mask::Causal);
    let plan = SparsePlan::full((&shape).into(), true, 8).unwrap();
    let (got, want) = (simple_plan_f32(&inputs, &plan, &config), simple_f32(&inputs, &config));
    assert_eq!(got.unwrap(), want.unwrap());
}
