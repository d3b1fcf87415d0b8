//! Attention over sparse plans on the device against the f64 reference, over tables and random cases.

mod common;

use attn_core::dense::Config;
use attn_core::plan::{Combine, Entries, Near, Part, PlanShape, Rows, Share, SparsePlan};
use attn_core::testing::plans::{plan_case, plan_problems};
use attn_core::testing::{HostInputs, Values};
use attn_core::{Mask, Modifier, alibi_slopes};
use attn_wgpu::attention::Inputs;
use attn_wgpu::plan::{DeviceEntries, DevicePart, DevicePlan, DeviceRows, PlanAttention, Region};
use attn_wgpu::{DType, Error, Gpu, Tensor, ops};
use common::plans::{blocks, check, config, judge, judge_half, run, run_as, run_with};
use common::{Uploaded, cases, gpu, normal, open, rounded, shape};
use proptest::prelude::*;

#[test]
fn smoke_named_plans() {
    let Some(gpu) = gpu() else { return };
    for problem in plan_problems().unwrap() {
        check(&gpu, problem.name, &problem.inputs(), &problem.plan, &problem.config);
    }
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn any_plan_equals_the_reference(case in plan_case(40_000)) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let plan = case.plan.canonicalise().unwrap();
        let config = case.config.clone().with_mask(config(&plan).mask);
        let inputs = case.inputs();
        let got = run(&gpu, &inputs, &plan, &config);
        judge(&inputs, &plan, &config, &got).map_err(TestCaseError::fail)?;
        prop_assert_eq!(DevicePlan::upload(&gpu, &plan).unwrap().download().unwrap(), plan);
    }
}

/// Lengths around tiles and blocks, ratios of heads, and every share.
#[test]
fn lengths_ratios_and_shares() {
    let Some(gpu) = gpu() else { return };
    for (m, n) in [(1, 1), (1, 40), (2, 67), (33, 32), (65, 130), (130, 65), (97, 97)] {
        for (group, share) in
            [(1, Share::PerHead), (3, Share::PerHead), (3, Share::PerKvHead), (4, Share::AllHeads)]
        {
            let inputs = normal(shape([2, 2 * group, 2, m, n, 16, 16]), 1);
            for (causal, tile) in [(true, [16, 16]), (false, [64, 7])] {
                let plan = blocks(PlanShape::from(&inputs.shape), share, causal, tile, 40);
                let name = format!("{m} {n} {group} {share:?} {causal}");
                check(&gpu, &name, &inputs, &plan, &config(&plan));
            }
        }
    }
}

#[test]
fn head_dims() {
    let Some(gpu) = gpu() else { return };
    for (dim_qk, dim_v) in [(64, 64), (80, 80), (128, 128), (7, 50), (192, 16), (16, 96)] {
        for queries in [3, 70] {
            let inputs = normal(shape([1, 2, 1, queries, 70, dim_qk, dim_v]), 2);
            let plan = blocks(PlanShape::from(&inputs.shape), Share::PerHead, true, [32, 8], 50);
            check(&gpu, &format!("{dim_qk} {dim_v}"), &inputs, &plan, &config(&plan));
        }
    }
}

/// Many chunks a row, the last of them short, few rows and many.
#[test]
fn long_keys_are_computed_in_chunks() {
    let Some(gpu) = gpu() else { return };
    for (m, percent) in [(1, 100), (4, 60), (40, 60)] {
        let inputs = normal(shape([2, 6, 2, m, 5003, 16, 16]), 3);
        let shape = PlanShape::from(&inputs.shape);
        for share in [Share::PerHead, Share::PerKvHead] {
            let plan = blocks(shape, share, true, [16, 64], percent);
            let near = Near { sink: 70, window: 900, grow: false };
            for plan in [plan.clone(), plan.with_near(near).canonicalise().unwrap()] {
                let words = plan.to_bits(64, 0).unwrap();
                let tokens = plan.to_tokens().unwrap();
                for plan in [plan, words, tokens] {
                    check(&gpu, &format!("{m} {share:?}"), &inputs, &plan, &config(&plan));
                }
            }
        }
    }
}

/// The length of a chunk is no matter of the result.
#[test]
fn chunks_of_any_length() {
    let Some(gpu) = gpu() else { return };
    for problem in plan_problems().unwrap() {
        if problem.shape.dim_qk > 40 && problem.shape.queries > 1 {
            continue;
        }
        for chunk in [1, 7, 64, 10_000] {
            let attention =
                PlanAttention::new(&gpu, problem.config.clone()).unwrap().with_chunk(chunk);
            let inputs = problem.inputs();
            let got = run_with(&attention, &gpu, &inputs, &problem.plan, DType::F32);
            judge(&inputs, &problem.plan, &problem.config, &got)
                .unwrap_or_else(|message| panic!("{} {chunk}: {message}", problem.name));
        }
    }
}

/// With all keys a plan is dense attention, with a window alone a window.
#[test]
fn full_plans_and_windows() {
    let Some(gpu) = gpu() else { return };
    for (m, n) in [(70, 70), (5, 66), (66, 5)] {
        let inputs = normal(shape([1, 3, 1, m, n, 16, 16]), 4);
        let extents = PlanShape::from(&inputs.shape);
        for causal in [true, false] {
            let plan = SparsePlan::full(extents, causal, 32).unwrap();
            let config = config(&plan);
            let got = run(&gpu, &inputs, &plan, &config);
            common::judge("full", &inputs, &config, &got).unwrap();
        }
        for (sink, window) in [(0, 1), (0, 9), (4, 9), (3, 0)] {
            let near = Near { sink, window, grow: false };
            let plan = SparsePlan::new(extents, Share::PerHead, true, Vec::new()).with_near(near);
            check(&gpu, &format!("{near:?}"), &inputs, &plan, &config(&plan));
            if window > 0 {
                let left = window as usize - 1;
                let mask = Mask::SinkWindow { left, sinks: sink as usize };
                let got = run(&gpu, &inputs, &plan, &config(&plan));
                common::judge("window", &inputs, &Config::new().with_mask(mask), &got).unwrap();
            }
        }
    }
}

#[test]
fn empty_rows_and_empty_tensors() {
    let Some(gpu) = gpu() else { return };
    for extents in [
        [1, 2, 1, 40, 40, 16, 16],
        [2, 2, 2, 1, 9, 16, 16],
        [1, 1, 1, 0, 5, 16, 16],
        [1, 1, 1, 5, 0, 16, 16],
        [0, 2, 1, 5, 5, 16, 16],
        [1, 1, 1, 9, 3, 16, 6],
    ] {
        let inputs = normal(shape(extents), 5);
        let extents = PlanShape::from(&inputs.shape);
        let none = blocks(extents, Share::PerHead, true, [16, 4], 0);
        let parts = SparsePlan::new(extents, Share::PerHead, true, Vec::new());
        for plan in [none, parts] {
            let got = run(&gpu, &inputs, &plan, &config(&plan));
            assert!(got.out.iter().all(|&x| x.to_bits() == 0), "{extents:?}");
            assert!(got.lse.iter().all(|&x| x == f32::NEG_INFINITY), "{extents:?}");
        }
        let few = blocks(extents, Share::PerHead, true, [2, 4], 20);
        check(&gpu, "few", &inputs, &few, &config(&few));
    }
}

/// One group with all keys, and very many with one block.
#[test]
fn groups_of_very_different_sizes() {
    let Some(gpu) = gpu() else { return };
    for (m, n, bq, long) in [(10_001, 3000, 1, 17), (4000, 3000, 32, 99)] {
        let inputs = normal(shape([1, 1, 1, m, n, 16, 16]), 6);
        let (mut row_ptr, mut col) = (vec![0], Vec::new());
        let all = (n as u32).div_ceil(2);
        for group in 0..m.div_ceil(bq) as u32 {
            match group {
                _ if group == long => col.extend(0..all),
                _ => col.push(group * 7 % all),
            }
            row_ptr.push(col.len() as u32);
        }
        let rows = Rows::Tiled { bq: bq as u32 };
        let part = Part::new(rows, Entries::Blocks { bk: 2, origin: 0, row_ptr, col });
        let extents = PlanShape::from(&inputs.shape);
        let plan = SparsePlan::new(extents, Share::PerHead, false, vec![part]);
        check(&gpu, &format!("{m} {bq}"), &inputs, &plan, &config(&plan));
    }
}

#[test]
fn extreme_and_equal_logits() {
    let Some(gpu) = gpu() else { return };
    // Neighbours of which one has logits of 0, and the other far larger ones.
    let mut inputs = normal(shape([1, 1, 1, 2, 300, 16, 16]), 7);
    inputs.q.iter_mut().enumerate().for_each(|(i, x)| *x *= if i < 16 { 0.0 } else { 100.0 });
    let plan = blocks(PlanShape::from(&inputs.shape), Share::PerHead, true, [32, 16], 30);
    check(&gpu, "neighbours", &inputs, &plan, &config(&plan));
    let near = Near { sink: 2, window: 5, grow: false };
    for values in Values::ALL {
        for queries in [2, 60] {
            let inputs = HostInputs::random(shape([1, 2, 1, queries, 300, 16, 16]), 7, values);
            let extents = PlanShape::from(&inputs.shape);
            let plan = blocks(extents, Share::PerHead, true, [32, 16], 30);
            let near = plan.clone().with_near(near).canonicalise().unwrap();
            for plan in [plan, near] {
                check(&gpu, &format!("{values:?} {queries}"), &inputs, &plan, &config(&plan));
            }
        }
    }
}

/// Soft-cap and modifiers, and biases of entries: of some, of none, and below all bounds.
#[test]
fn biases_modifiers_and_soft_cap() {
    let Some(gpu) = gpu() else { return };
    for queries in [3, 50] {
        let inputs = normal(shape([2, 4, 2, queries, 130, 16, 16]), 8);
        let extents = PlanShape::from(&inputs.shape);
        let plan = blocks(extents, Share::PerKvHead, true, [32, 8], 40);
        for mut plan in [plan.clone(), plan.to_tokens().unwrap(), plan.to_ranges().unwrap()] {
            let bias = |i: usize| (i % 7) as f32 - 3.0;
            plan.parts[0].bias = Some((0..plan.parts[0].entries.nnz()).map(bias).collect());
            let capped = config(&plan).with_soft_cap(2.0);
            let modified = capped.clone().with_modifier(Modifier::alibi(&alibi_slopes(4)));
            for config in [config(&plan), capped, modified] {
                check(&gpu, &format!("{queries}"), &inputs, &plan, &config);
            }
        }
    }
}

#[test]
fn half_storage() {
    let Some(gpu) = gpu() else { return };
    for (dtype, rounding) in [(DType::F16, 5e-4), (DType::BF16, 4e-3)] {
        for queries in [2, 70] {
            let inputs = rounded(&normal(shape([2, 4, 2, queries, 70, 24, 14]), 9), dtype);
            let extents = PlanShape::from(&inputs.shape);
            let near = Near { sink: 2, window: 5, grow: false };
            let plan = blocks(extents, Share::PerKvHead, true, [16, 8], 40).with_near(near);
            let plan = plan.canonicalise().unwrap();
            let got = run_as(&gpu, &inputs, &plan, &config(&plan), dtype);
            judge_half(&inputs, &plan, &config(&plan), &got, rounding);
        }
    }
}

#[test]
fn strided_inputs_and_outputs() {
    let Some(gpu) = gpu() else { return };
    for dim in [16, 7] {
        let (b, h, n) = (2, 4, 37);
        let inputs = normal(shape([b, h, 2, n, n, dim, dim]), 10);
        let plan = blocks(PlanShape::from(&inputs.shape), Share::PerHead, true, [16, 8], 50);
        let want = run(&gpu, &inputs, &plan, &config(&plan));
        let plain = Uploaded::new(&gpu, &inputs).unwrap();
        let token_major = |tensor: &Tensor| {
            let copy = tensor.permute(&[0, 2, 1, 3]).unwrap().contiguous().unwrap();
            copy.permute(&[0, 2, 1, 3]).unwrap()
        };
        let (q, k, v) = (token_major(&plain.q), token_major(&plain.k), token_major(&plain.v));
        let attention = PlanAttention::new(&gpu, config(&plan)).unwrap();
        let uploaded = DevicePlan::upload(&gpu, &plan).unwrap();
        let strided = attention.forward(Inputs::new(&q, &k, &v), &uploaded).unwrap();
        assert_eq!(strided.out.to_vec::<f32>().unwrap(), want.out, "dim {dim}");

        let target = Tensor::full(&gpu, &[b, n, h + 1, dim + 4], 7f32).unwrap();
        let view = target.narrow(2, 1, h).unwrap().narrow(3, 4, dim).unwrap();
        let view = view.permute(&[0, 2, 1, 3]).unwrap();
        let all_lse = Tensor::full(&gpu, &[b * h * n + 5], 7f32).unwrap();
        let lse = all_lse.narrow(0, 3, b * h * n).unwrap().reshape(&[b, h, n]).unwrap();
        attention.forward_into(plain.view(), &uploaded, &view, Some(&lse)).unwrap();
        assert_eq!(view.to_vec::<f32>().unwrap(), want.out, "dim {dim}, into");
        assert_eq!(lse.to_vec::<f32>().unwrap(), want.lse, "dim {dim}, lse");
        let around = all_lse.to_vec::<f32>().unwrap();
        assert!([0, 2, b * h * n + 3].iter().all(|&i| around[i] == 7.0));
        let all = target.to_vec::<f32>().unwrap();
        let untouched = all.iter().enumerate().filter(|(i, _)| {
            let (head, d) = (i / (dim + 4) % (h + 1), i % (dim + 4));
            head == 0 || d < 4
        });
        assert!(untouched.into_iter().all(|(_, &x)| x == 7.0), "dim {dim}");
    }
}

/// A plan used again after keys came: the window grows or does not, entries stay.
#[test]
fn plans_that_are_used_again() {
    let Some(gpu) = gpu() else { return };
    for grow in [true, false] {
        let old = shape([1, 4, 2, 1, 400, 16, 16]);
        let near = Near { sink: 4, window: 32, grow };
        let plan = blocks(PlanShape::from(&old), Share::PerKvHead, true, [1, 16], 50);
        let plan = plan.with_near(near).canonicalise().unwrap();
        let inputs = normal(shape([1, 4, 2, 1, 437, 16, 16]), 12);
        let again = plan.reuse(437).unwrap();
        let uploaded = DevicePlan::upload(&gpu, &plan).unwrap().reuse(437).unwrap();
        let attention = PlanAttention::new(&gpu, config(&plan)).unwrap();
        let tensors = Uploaded::new(&gpu, &inputs).unwrap();
        let output = attention.forward(tensors.view(), &uploaded).unwrap();
        let (out, lse) = (output.out.to_vec().unwrap(), output.lse.to_vec().unwrap());
        let got = common::Result32 { out, lse };
        judge(&inputs, &again, &config(&plan), &got).unwrap();
    }
    let plan = blocks(PlanShape::new(1, 1, 1, 1, 9), Share::PerHead, true, [1, 1], 100);
    assert!(DevicePlan::upload(&gpu, &plan).unwrap().reuse(8).is_err());
}

/// Parts with more room than entries, of which the host knows nothing but bounds.
#[test]
fn plans_that_kernels_write() {
    let Some(gpu) = gpu() else { return };
    for (m, n) in [(3, 500), (75, 300)] {
        let inputs = normal(shape([2, 4, 2, m, n, 16, 16]), 13);
        let extents = PlanShape::from(&inputs.shape);
        let near = Near { sink: 3, window: 11, grow: false };
        let plan = blocks(extents, Share::PerHead, true, [16, 8], 60).with_near(near);
        let plan = plan.with_max_dist(200).canonicalise().unwrap();
        let all = [
            plan.clone(),
            plan.to_bits(8, 0).unwrap(),
            plan.to_tokens().unwrap(),
            plan.to_ranges().unwrap(),
        ];
        for plan in all {
            let want = run(&gpu, &inputs, &plan, &config(&plan));
            let device = written(&gpu, &plan);
            assert_eq!(device.download().unwrap(), plan);
            let attention = PlanAttention::new(&gpu, config(&plan)).unwrap();
            let tensors = Uploaded::new(&gpu, &inputs).unwrap();
            let output = attention.forward(tensors.view(), &device).unwrap();
            assert_eq!(output.out.to_vec::<f32>().unwrap(), want.out);
            assert_eq!(output.lse.to_vec::<f32>().unwrap(), want.lse);
        }
    }
}

/// The plan, written into a part that was made without it.
fn written(gpu: &Gpu, plan: &SparsePlan) -> DevicePlan {
    let part = &plan.parts[0];
    let (Rows::Tiled { bq }, entries) = (&part.rows, &part.entries) else { panic!() };
    let (kind, words, room) = match entries {
        Entries::Blocks { bk, origin, col, .. } => {
            (DeviceEntries::Blocks { bk: *bk, origin: *origin }, col.clone(), col.len() + 77)
        }
        Entries::Bits { bk, origin, words } => {
            (DeviceEntries::Bits { bk: *bk, origin: *origin }, words.clone(), words.len())
        }
        Entries::Tokens { k_idx, .. } => (DeviceEntries::Tokens, k_idx.clone(), k_idx.len() + 77),
        Entries::Ranges { ranges, .. } => {
            (DeviceEntries::Ranges, ranges.as_flattened().to_vec(), ranges.len() + 77)
        }
        _ => panic!(),
    };
    let groups = plan.planes() * plan.shape.queries.div_ceil(*bq as usize);
    let rows = DeviceRows::Tiled { bq: *bq };
    let part = DevicePart::new(gpu, rows, kind, groups, room, false).unwrap();
    let write = |region, words: &[u32]| {
        let source = Tensor::from_slice(gpu, words, &[words.len()]).unwrap();
        let target = part.region(region).unwrap().narrow(0, 0, words.len()).unwrap();
        ops::copy(&source, &target).unwrap();
    };
    if let Some(row_ptr) = entries.row_ptr() {
        write(Region::RowPtr, row_ptr);
    }
    write(Region::Data, &words);
    let device = DevicePlan::new(plan.shape, plan.share, plan.causal, part).unwrap();
    let device = device.with_near(plan.near).unwrap();
    match plan.max_dist {
        Some(max_dist) => device.with_max_dist(max_dist),
        None => device,
    }
}

#[test]
fn plain_devices_and_poisoned_buffers() {
    let disabled = ["subgroup", "f16", "immediates", "timestamps"];
    let plain = || disabled.iter().fold(Gpu::builder(), |gpu, feature| gpu.disable(feature));
    for builder in [plain().webgpu_limits(), Gpu::builder().poison(true)] {
        let Some(gpu) = open(builder) else { return };
        for problem in plan_problems().unwrap() {
            if problem.shape.dim_qk > 40 && problem.shape.queries > 1 {
                continue;
            }
            check(&gpu, problem.name, &problem.inputs(), &problem.plan, &problem.config);
        }
    }
}

#[test]
fn wrong_arguments() {
    let Some(gpu) = gpu() else { return };
    let inputs = normal(shape([1, 2, 1, 9, 9, 16, 16]), 14);
    let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
    let plan = blocks(PlanShape::from(&inputs.shape), Share::PerHead, true, [4, 4], 50);
    let device = DevicePlan::upload(&gpu, &plan).unwrap();
    let causal = PlanAttention::new(&gpu, config(&plan)).unwrap();
    let argument = |result: Result<(), Error>, arg: &str| {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(arg), "{arg}: {message}");
    };
    let window = Config::new().with_mask(Mask::Window { left: 3, right: 1 });
    argument(PlanAttention::new(&gpu, window).map(|_| ()), "mask");
    let full = PlanAttention::new(&gpu, Config::new()).unwrap();
    argument(full.forward(uploaded.view(), &device).map(|_| ()), "mask");
    let q = uploaded.q.narrow(2, 0, 8).unwrap();
    let short = Inputs::new(&q, &uploaded.k, &uploaded.v);
    argument(causal.forward(short, &device).map(|_| ()), "as the plan");
    let sinks = Tensor::zeros(&gpu, &[2], DType::F32).unwrap();
    argument(causal.forward(uploaded.view().with_sinks(&sinks), &device).map(|_| ()), "sinks");
    let mut unsorted = plan.clone();
    if let Entries::Blocks { col, .. } = &mut unsorted.parts[0].entries {
        col.reverse();
    }
    argument(DevicePlan::upload(&gpu, &unsorted).map(|_| ()), "col");
    let mut gated = plan.clone();
    gated.combine = Combine::Gate(Vec::new());
    argument(DevicePlan::upload(&gpu, &gated).map(|_| ()), "gate");
    let tiles = DeviceRows::Tiled { bq: 4 };
    let blocks = DeviceEntries::Blocks { bk: 0, origin: 0 };
    argument(DevicePart::new(&gpu, tiles.clone(), blocks, 6, 1, false).map(|_| ()), "bk");
    let part = DevicePart::new(&gpu, tiles, DeviceEntries::Tokens, 5, 1, false).unwrap();
    argument(DevicePlan::new(plan.shape, Share::PerHead, true, part).map(|_| ()), "groups");
}
