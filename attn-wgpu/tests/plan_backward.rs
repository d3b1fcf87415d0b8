//! Gradients of attention over sparse plans on the device against the f64 reference.

mod common;

use attn_core::dense::Config;
use attn_core::plan::{Combine, Near, Part, PlanShape, Rows, Share, SparsePlan};
use attn_core::testing::plans::{plan_case, plan_problems};
use attn_core::testing::{HostInputs, compare, plant};
use attn_core::{Mask, Modifier, alibi_slopes};
use attn_wgpu::attention::Cotangents;
use attn_wgpu::plan::{DevicePlan, PlanAttention, Targets};
use attn_wgpu::{DType, Error, Gpu, Tensor, wgpu};
use common::plans::{
    blocks, config, gradients, gradients_with, judge, judge_gradients, ranges, run, run_with,
};
use common::{Uploaded, cases, cotangents, download, gpu, normal, open, rounded, shape, upload};
use proptest::prelude::*;

fn check(gpu: &Gpu, name: &str, inputs: &HostInputs, plan: &SparsePlan, config: &Config) {
    let (d_out, d_lse) = cotangents(&inputs.shape, 99);
    let cotangents = (d_out.as_slice(), Some(d_lse.as_slice()));
    let got = gradients(gpu, inputs, plan, config, cotangents);
    judge_gradients(inputs, plan, config, cotangents, &got)
        .unwrap_or_else(|message| panic!("{name}: {message}"));
}

const NEAR: Near = Near { sink: 3, window: 9, grow: false };

/// Some blocks and a near part.
fn near_blocks(inputs: &HostInputs, share: Share, tile: [u32; 2]) -> SparsePlan {
    let plan = blocks(PlanShape::from(&inputs.shape), share, true, tile, 40);
    plan.with_near(NEAR).canonicalise().unwrap()
}

/// The named plans with one head size, so that few kernels are compiled.
#[test]
fn named_plans() {
    let Some(gpu) = gpu() else { return };
    for problem in plan_problems().unwrap() {
        let mut shape = problem.shape;
        (shape.dim_qk, shape.dim_v) = (16, 16);
        check(&gpu, problem.name, &normal(shape, 1), &problem.plan, &problem.config);
    }
}

#[test]
fn head_dims() {
    let Some(gpu) = gpu() else { return };
    for (dim_qk, dim_v) in [(64, 64), (7, 50), (130, 16)] {
        let inputs = normal(shape([1, 2, 1, 40, 70, dim_qk, dim_v]), 2);
        let plan = near_blocks(&inputs, Share::PerHead, [32, 8]);
        check(&gpu, &format!("{dim_qk} {dim_v}"), &inputs, &plan, &config(&plan));
    }
}

proptest! {
    #![proptest_config(cases(6))]

    #[test]
    fn any_plan_equals_the_reference(case in plan_case(40_000)) {
        let Some(gpu) = gpu() else { return Ok(()) };
        // Few head sizes, since every one is compiled; heads and lengths are what plans are about.
        let mut case = case;
        (case.shape.dim_qk, case.shape.dim_v) = (16, 16);
        let plan = case.plan.canonicalise().unwrap();
        let config = config(&plan);
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
    for (m, n) in [(1, 1), (2, 67), (130, 65), (97, 97)] {
        for (group, share) in
            [(1, Share::PerHead), (3, Share::PerHead), (3, Share::PerKvHead), (4, Share::AllHeads)]
        {
            let inputs = normal(shape([2, 2 * group, 2, m, n, 16, 16]), 1);
            let extents = PlanShape::from(&inputs.shape);
            let plans =
                [near_blocks(&inputs, share, [16, 16]), blocks(extents, share, false, [64, 7], 40)];
            for plan in plans {
                let name = format!("{m} {n} {group} {share:?} {}", plan.causal);
                check(&gpu, &name, &inputs, &plan, &config(&plan));
            }
        }
    }
}

/// Many chunks of keys, and many queries of one group.
#[test]
fn long_keys_and_long_groups() {
    let Some(gpu) = gpu() else { return };
    let inputs = normal(shape([1, 2, 1, 300, 1500, 16, 16]), 3);
    let extents = PlanShape::from(&inputs.shape);
    let plan = blocks(extents, Share::PerKvHead, true, [300, 64], 60).with_near(NEAR);
    let plan = plan.canonicalise().unwrap();
    for plan in [plan.clone(), plan.to_bits(64, 0).unwrap()] {
        check(&gpu, "long", &inputs, &plan, &config(&plan));
    }
}

#[test]
fn chunks_of_any_length() {
    let Some(gpu) = gpu() else { return };
    let inputs = normal(shape([1, 4, 2, 60, 90, 16, 16]), 4);
    let plan = near_blocks(&inputs, Share::PerHead, [16, 4]);
    let (d_out, _) = cotangents(&inputs.shape, 1);
    let uploaded = DevicePlan::upload(&gpu, &plan).unwrap();
    for chunk in [1, 7, 10_000] {
        let attention = PlanAttention::new(&gpu, config(&plan)).unwrap().with_chunk(chunk);
        let got = gradients_with(&attention, &gpu, &inputs, &uploaded, (&d_out, None));
        judge_gradients(&inputs, &plan, &config(&plan), (&d_out, None), &got).unwrap();
    }
}

#[test]
fn biases_modifiers_and_soft_cap() {
    let Some(gpu) = gpu() else { return };
    let inputs = normal(shape([2, 4, 2, 50, 130, 16, 16]), 8);
    let mut plan = near_blocks(&inputs, Share::PerKvHead, [32, 8]);
    let bias = |i: usize| if i % 9 == 4 { -1e30 } else { (i % 7) as f32 - 3.0 };
    plan.parts[0].bias = Some((0..plan.parts[0].entries.nnz()).map(bias).collect());
    let plan = plan.canonicalise().unwrap();
    let capped = config(&plan).with_soft_cap(2.0);
    let modified = capped.clone().with_modifier(Modifier::alibi(&alibi_slopes(4)));
    let keep = Modifier::mask("odd", "return key % 2 == 1 || key == position;")
        .with_host(|_, at| f64::from(u8::from(at.key % 2 == 1 || at.key as i64 == at.position)));
    for config in [config(&plan), capped, modified, config(&plan).with_modifier(keep)] {
        check(&gpu, "biases", &inputs, &plan, &config);
    }
    let square = Modifier::score("square", "return score * score;");
    let attention = PlanAttention::new(&gpu, config(&plan).with_modifier(square)).unwrap();
    let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
    let device = DevicePlan::upload(&gpu, &plan).unwrap();
    let (output, saved) = attention.forward_saved(uploaded.view(), &device).unwrap();
    let refused = attention.backward(&saved, Cotangents { out: &output.out, lse: None });
    assert!(matches!(refused, Err(Error::NotDifferentiable { name }) if name == "square"));
}

/// Keys that no query reads may be NaN, and have gradients of 0.
#[test]
fn nan_in_keys_that_are_not_selected_changes_nothing() {
    let Some(gpu) = gpu() else { return };
    let mut hit = 0;
    for problem in plan_problems().unwrap() {
        let mut shape = problem.shape;
        (shape.dim_qk, shape.dim_v) = (16, 16);
        let (plan, inputs) = (problem.plan, normal(shape, 6));
        let (d_out, _) = cotangents(&shape, 2);
        let clean = gradients(&gpu, &inputs, &plan, &problem.config, (&d_out, None));
        let mut planted = inputs.clone();
        let mut unseen = Vec::new();
        for kv_plane in 0..shape.batch * shape.heads_kv {
            let heads = kv_plane * shape.group()..(kv_plane + 1) * shape.group();
            let masks: Vec<_> = heads
                .map(|row| plan.to_dense_mask(row / shape.heads, row % shape.heads).unwrap())
                .collect();
            let sees = |key| {
                let by = |mask: &attn_core::BitMask| (0..shape.queries).any(|q| mask.get(q, key));
                masks.iter().any(by)
            };
            unseen.extend((0..shape.keys).filter(|&key| !sees(key)).map(|key| {
                let at = kv_plane * shape.keys + key;
                at * 16..(at + 1) * 16
            }));
        }
        for at in &unseen {
            plant(&mut planted.k, at.clone(), f32::NAN).unwrap();
            plant(&mut planted.v, at.clone(), f32::INFINITY).unwrap();
            assert!(clean.dk[at.clone()].iter().chain(&clean.dv[at.clone()]).all(|&x| x == 0.0));
        }
        hit += unseen.len();
        let got = gradients(&gpu, &planted, &plan, &problem.config, (&d_out, None));
        assert!(got == clean, "{}", problem.name);
    }
    assert!(hit > 30, "{hit}");
}

/// Splits by work and by memory, folded dispatches, two runs, poisoned buffers.
#[test]
fn runs_splits_and_devices_change_no_bit() {
    let Some(gpu) = gpu() else { return };
    let Some(working) = open(Gpu::builder().max_work_per_dispatch(1e5)) else { return };
    let limits = wgpu::Limits { max_compute_workgroups_per_dimension: 16, ..Default::default() };
    let Some(folding) = open(Gpu::builder().limits(limits)) else { return };
    let Some(poisoned) = open(Gpu::builder().poison(true)) else { return };
    for share in [Share::PerHead, Share::AllHeads] {
        let inputs = normal(shape([2, 6, 2, 40, 90, 16, 16]), 9);
        let plan = near_blocks(&inputs, share, [16, 8]);
        let mut mean = plan.clone().with_combine(Combine::Mean);
        mean.parts.push(plan.to_tokens().unwrap().parts.swap_remove(0));
        let (d_out, d_lse) = cotangents(&inputs.shape, 3);
        for plan in [plan, mean] {
            let of = |gpu| {
                let cotangents = (d_out.as_slice(), Some(d_lse.as_slice()));
                gradients(gpu, &inputs, &plan, &config(&plan), cotangents)
            };
            let want = of(&gpu);
            for other in [&gpu, &working, &folding, &poisoned] {
                assert!(of(other) == want, "{share:?} {:?}", other.max_work_per_dispatch());
            }
        }
    }
}

#[test]
fn plain_devices() {
    let disabled = ["subgroup", "f16", "immediates", "timestamps"];
    let plain = disabled.iter().fold(Gpu::builder(), |gpu, feature| gpu.disable(feature));
    let Some(gpu) = open(plain.webgpu_limits()) else { return };
    let inputs = normal(shape([1, 4, 2, 50, 70, 16, 16]), 10);
    for share in [Share::PerHead, Share::PerKvHead] {
        let plan = near_blocks(&inputs, share, [16, 8]);
        check(&gpu, "plain", &inputs, &plan, &config(&plan));
    }
}

/// Queries and keys without each other, and none at all.
#[test]
fn empty_rows_and_empty_tensors() {
    let Some(gpu) = gpu() else { return };
    for extents in [
        [1, 2, 1, 40, 40, 16, 16],
        [1, 1, 1, 0, 5, 16, 16],
        [1, 1, 1, 5, 0, 16, 16],
        [0, 2, 1, 5, 5, 16, 16],
        [1, 1, 1, 9, 3, 16, 6],
    ] {
        let inputs = normal(shape(extents), 5);
        let extents = PlanShape::from(&inputs.shape);
        let none = blocks(extents, Share::PerHead, true, [16, 4], 0);
        let few = blocks(extents, Share::PerHead, true, [2, 4], 20);
        for plan in [none, few] {
            check(&gpu, "empty", &inputs, &plan, &config(&plan));
        }
    }
}

#[test]
fn half_storage() {
    let Some(gpu) = gpu() else { return };
    for (dtype, tolerance) in [(DType::F16, 2e-3), (DType::BF16, 2e-2)] {
        let inputs = rounded(&normal(shape([1, 4, 2, 50, 50, 24, 14]), 11), dtype);
        let plan = near_blocks(&inputs, Share::PerKvHead, [16, 8]);
        let (d_out, _) = cotangents(&inputs.shape, 5);
        let uploaded = Uploaded::as_type(&gpu, &inputs, dtype).unwrap();
        let attention = PlanAttention::new(&gpu, config(&plan)).unwrap();
        let device = DevicePlan::upload(&gpu, &plan).unwrap();
        let (_, saved) = attention.forward_saved(uploaded.view(), &device).unwrap();
        let cotangent = upload(&gpu, &d_out, &inputs.shape.out(), dtype).unwrap();
        let d_out = download(&cotangent).unwrap();
        let grads = attention.backward(&saved, Cotangents { out: &cotangent, lse: None }).unwrap();
        let want = gradients(&gpu, &inputs, &plan, &config(&plan), (&d_out, None));
        for (name, got, want) in
            [("dq", &grads.dq, &want.dq), ("dk", &grads.dk, &want.dk), ("dv", &grads.dv, &want.dv)]
        {
            assert_eq!(got.dtype(), dtype);
            let want: Vec<f64> = want.iter().map(|&x| f64::from(x)).collect();
            let errors = compare(&download(&got.contiguous().unwrap()).unwrap(), &want);
            assert!(errors.rel_l2 < tolerance, "{name} {dtype:?}: {errors:?}");
        }
    }
}

/// Groups that are softmaxes of their own, some of them empty, with fewer queries than keys, some of them too
/// far away. Computed at once and in parts: a head, or some of them.
#[test]
fn weighted_groups_know_their_rows() {
    let Some(gpu) = gpu() else { return };
    let place = "return score + 0.05 * (f32(batch) * f32(key) - f32(head) * f32(position));";
    let place = Modifier::score("place", place)
        .with_derivative("return 1.0;")
        .with_host_derivative(|_, _| 1.0)
        .with_host(|score, at| {
            let product = at.batch as f64 * at.key as f64 - at.head as f64 * at.position as f64;
            score + f64::from(0.05_f32) * product
        });
    let one = Near { sink: 1, window: 0, grow: false };
    for (share, dim_v, percent, near, modifier, work) in [
        (Share::PerHead, 4, 15, Near::default(), None, 1e3),
        (Share::PerKvHead, 12, 50, NEAR, None, 4e5),
        (Share::AllHeads, 12, 50, one, Some(place), 2e5),
    ] {
        let Some(working) = open(Gpu::builder().max_work_per_dispatch(work)) else { return };
        let inputs = normal(shape([2, 6, 3, 21, 33, 8, dim_v]), 13);
        let (d_out, d_lse) = cotangents(&inputs.shape, 8);
        let cotangents = (d_out.as_slice(), Some(d_lse.as_slice()));
        let extents = PlanShape::from(&inputs.shape);
        let plan = ranges(extents, share, true, &[[0, 13], [7, 14]], percent).with_near(near);
        let plan = plan.with_max_dist(20);
        let gate = |i: usize| match i % 11 {
            3 => f32::NEG_INFINITY,
            5 => -1e30,
            _ => (i % 7) as f32 / 2.0 - 1.0,
        };
        let gates = (0..27 * plan.planes()).map(gate).collect();
        let combine = match share {
            Share::AllHeads => Combine::Mean,
            _ => Combine::Gate(vec![Some(gates), None]),
        };
        let plan = plan.with_combine(combine).canonicalise().unwrap();
        let config = modifier.into_iter().fold(config(&plan), Config::with_modifier);
        for gpu in [&gpu, &working] {
            let output = run(gpu, &inputs, &plan, &config);
            let empty = output.lse.contains(&f32::NEG_INFINITY);
            assert_eq!(empty, share == Share::PerHead);
            judge(&inputs, &plan, &config, &output).unwrap();
            let got = gradients(gpu, &inputs, &plan, &config, cotangents);
            judge_gradients(&inputs, &plan, &config, cotangents, &got).unwrap();
        }
    }
}

/// Groups of one row less than some tiles, of just as many, and of one more, over several chunks.
#[test]
fn groups_around_tiles() {
    let Some(gpu) = gpu() else { return };
    let keep = Modifier::mask("keep", "return key % 3 != 0;")
        .with_host(|_, at| f64::from(u8::from(at.key % 3 != 0)));
    for (share, heads, causal, near, modifier) in [
        (Share::PerHead, 2, false, Near::default(), None),
        (Share::PerKvHead, 4, true, NEAR, Some(keep)),
    ] {
        let inputs = normal(shape([1, heads, 1, 321, 200, 16, 16]), 14);
        let (d_out, d_lse) = cotangents(&inputs.shape, 9);
        let cotangents = (d_out.as_slice(), Some(d_lse.as_slice()));
        let each = [127, 128, 129, 159, 160, 161, 256, 320].map(|length| [1, length]);
        let plan = ranges(PlanShape::from(&inputs.shape), share, causal, &each, 85);
        let plan = plan.with_near(near).with_combine(Combine::Mean).canonicalise().unwrap();
        let config = modifier.into_iter().fold(config(&plan), Config::with_modifier);
        let attention = PlanAttention::new(&gpu, config.clone()).unwrap().with_chunk(40);
        let output = run_with(&attention, &gpu, &inputs, &plan, DType::F32);
        judge(&inputs, &plan, &config, &output).unwrap();
        let uploaded = DevicePlan::upload(&gpu, &plan).unwrap();
        let got = gradients_with(&attention, &gpu, &inputs, &uploaded, cotangents);
        judge_gradients(&inputs, &plan, &config, cotangents, &got).unwrap();
    }
}

/// Sets of queries that overlap, whose groups are combined in every way, with a mask that is a window.
#[test]
fn groups_windows_and_callers_tensors() {
    let Some(gpu) = gpu() else { return };
    let inputs = normal(shape([1, 4, 2, 40, 40, 16, 16]), 12);
    let mut plan = near_blocks(&inputs, Share::PerKvHead, [40, 4]);
    let rows = Rows::Ranges {
        plane_ptr: vec![0, 2, 4],
        q_start: vec![0, 10, 0, 10],
        q_len: vec![25, 30, 25, 30],
    };
    let entries = near_blocks(&inputs, Share::PerKvHead, [20, 4]).parts.swap_remove(0).entries;
    plan.parts = vec![Part::new(rows, entries), plan.parts.swap_remove(0)];
    let gates = (0..110).map(|i| (i % 5) as f32 / 2.0 - 1.0).collect();
    let combine = [Combine::Lse, Combine::Mean, Combine::Gate(vec![Some(gates), None])]
        .map(|combine| plan.clone().with_combine(combine).canonicalise().unwrap());
    let (d_out, _) = cotangents(&inputs.shape, 7);
    for plan in combine {
        let windowed = Config::new().with_mask(Mask::Window { left: 12, right: 0 });
        for config in [config(&plan), windowed] {
            check(&gpu, "groups", &inputs, &plan, &config);
            let attention = PlanAttention::new(&gpu, config.clone()).unwrap();
            let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
            let device = DevicePlan::upload(&gpu, &plan).unwrap();
            let (_, saved) = attention.forward_saved(uploaded.view(), &device).unwrap();
            let cotangent = Tensor::from_slice(&gpu, &d_out, &inputs.shape.out()).unwrap();
            let cotangents = Cotangents { out: &cotangent, lse: None };
            let own = attention.backward(&saved, cotangents).unwrap();
            let zeros = |like: &Tensor| Tensor::zeros(&gpu, like.shape(), DType::F32).unwrap();
            let [dq, dk, dv] = [&own.dq, &own.dk, &own.dv].map(zeros);
            let gates: Vec<_> = own.d_gates.iter().map(|gates| gates.as_ref().map(zeros)).collect();
            let d_gates: Vec<_> = gates.iter().map(Option::as_ref).collect();
            let targets =
                Targets { dq: Some(&dq), dk: Some(&dk), dv: Some(&dv), d_gates: &d_gates };
            attention.backward_into(&saved, cotangents, targets).unwrap();
            let read = |tensor: &Tensor| tensor.to_vec::<f32>().unwrap();
            for (own, target) in [(&own.dq, &dq), (&own.dk, &dk), (&own.dv, &dv)] {
                assert_eq!(read(own), read(target));
            }
            for (own, target) in own.d_gates.iter().zip(d_gates) {
                assert_eq!(own.as_ref().map(read), target.map(read));
            }
            let short = cotangent.narrow(2, 0, 3).unwrap();
            let refused = attention.backward(&saved, Cotangents { out: &short, lse: None });
            assert!(matches!(
                refused,
                Err(Error::Core(attn_core::Error::Shape { arg: "d_out", .. }))
            ));
        }
    }
}
