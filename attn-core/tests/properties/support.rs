//! The test support itself: strategies, yardsticks, problems.

use std::collections::BTreeSet;

use attn_core::dense::{self, Config, Cotangents};
use attn_core::ndarray::Array4;
use attn_core::testing::strategies::{self, bits, case, dim, length, shape};
use attn_core::testing::{
    Budget, HostInputs, Values, by_name, compare, fill, plant, problems, simple_f32,
    simple_f32_backward,
};
use attn_core::{AttentionShape, Error, Lengths, Mask, ModifierArgs};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::{config, full_case};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn shapes_are_valid_and_bounded(shape in shape(50_000)) {
        prop_assert_eq!(AttentionShape::from_shapes(&shape.q(), &shape.k(), &shape.v()), Ok(shape));
        let work = shape.batch * shape.heads * shape.queries * shape.keys * (shape.dim_qk + shape.dim_v);
        prop_assert!(work <= 50_000);
        prop_assert!((1..=256).contains(&shape.dim_qk) && (1..=256).contains(&shape.dim_v));
    }

    #[test]
    fn simple_f32_is_near_the_reference((case, inputs) in full_case(300_000)) {
        let arrays = inputs.to_f64().unwrap();
        let want = dense::forward(arrays.view(), &case.config).unwrap();
        let got = simple_f32(&inputs, &case.config).unwrap();
        let (out, lse) = (want.out.as_slice().unwrap(), want.lse.as_slice().unwrap());
        // Rounding of a logit in f32, which moves a weight by as much.
        let largest = |data: &[f32]| data.iter().fold(0.0_f64, |m, &x| m.max(f64::from(x).abs()));
        let dim = case.shape.dim_qk as f64;
        let scale = case.config.scale_for(case.shape.dim_qk).abs();
        let logit = largest(&inputs.q) * largest(&inputs.k) * scale * dim;
        let biased = Budget::for_output(&want).logits;
        let rounding = 1e-6 * (1.0 + 2.0 * logit + biased + case.shape.keys as f64);
        prop_assert!(compare(&got.lse, lse).max_abs <= rounding);
        prop_assert!(compare(&got.out, out).max_abs <= rounding * largest(&inputs.v));
        let budget = Budget::default();
        prop_assert!(budget.check("out", &got.out, &got.out, out).is_ok());
        prop_assert!(budget.check("lse", &got.lse, &got.lse, lse).is_ok(), "empty rows on the bits");
    }

    #[test]
    fn simple_f32_backward_is_near_the_reference((case, inputs) in full_case(100_000)) {
        let normal = HostInputs::random(case.shape, case.seed, Values::Normal);
        let inputs = HostInputs { sinks: inputs.sinks, ..normal };
        let arrays = inputs.to_f64().unwrap();
        let output = dense::forward(arrays.view(), &case.config).unwrap();
        let d_out = fill(3, 3, Values::Normal, output.out.len());
        let d_lse = fill(3, 4, Values::Normal, output.lse.len());
        let got = simple_f32_backward(&inputs, &case.config, &d_out, Some(&d_lse)).unwrap();
        let wide = |data: &[f32]| data.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let out = Array4::from_shape_vec(case.shape.out(), wide(&d_out)).unwrap();
        let lse = output.lse.clone();
        let lse = attn_core::ndarray::Array3::from_shape_vec(lse.dim(), wide(&d_lse)).unwrap();
        let cotangents = Cotangents { out: out.view(), lse: Some(lse.view()) };
        let want = dense::backward(arrays.view(), &case.config, &output, cotangents).unwrap();
        // Where a soft-cap is saturated, the gradients are small differences of large numbers.
        let near = |got: &[f32], want: &[f64]| {
            let errors = compare(got, want);
            let saturated = case.config.soft_cap.is_some() && errors.max_abs <= 1e-4;
            prop_assert!(errors.max_abs <= 1e-3 && (errors.rel_l2 <= 1e-3 || saturated), "{:?}", errors);
            Ok(())
        };
        for (got, want) in [(&got.dq, &want.dq), (&got.dk, &want.dk), (&got.dv, &want.dv)] {
            near(got, want.as_slice().unwrap())?;
        }
        prop_assert_eq!(got.d_sinks.is_some(), inputs.sinks.is_some());
        if let (Some(got), Some(want)) = (&got.d_sinks, &want.d_sinks) {
            near(got, want.as_slice().unwrap())?;
        }
    }
}

/// Attention in f32 as a fused kernel would do it: scaled queries, products in four lanes, keys in
/// blocks with a running maximum.
fn online_f32(inputs: &HostInputs, config: &Config) -> (Vec<f32>, Vec<f32>) {
    let shape = &inputs.shape;
    let (dim_qk, dim_v) = (shape.dim_qk, shape.dim_v);
    let scale = config.scale_for(dim_qk) as f32;
    let (mut all_out, mut all_lse) = (Vec::new(), Vec::new());
    for row in 0..shape.batch * shape.heads * shape.queries {
        let (head, i) = (row / shape.queries, row % shape.queries);
        let head_kv = head / shape.heads * shape.heads_kv + head % shape.heads / shape.group();
        let q: Vec<f32> = inputs.q[row * dim_qk..][..dim_qk].iter().map(|x| x * scale).collect();
        let (mut max, mut sum, mut out) = (f32::NEG_INFINITY, 0.0_f32, vec![0.0_f32; dim_v]);
        let keys: Vec<usize> = config.mask.keys(shape.lengths(), i).collect();
        let place = config.mask.place(shape.lengths(), i);
        for block in keys.chunks(16) {
            let logit = |t: &usize| {
                let k = &inputs.k[(head_kv * shape.keys + t) * dim_qk..][..dim_qk];
                let mut lanes = [0.0_f32; 4];
                (0..dim_qk).for_each(|d| lanes[d % 4] = q[d].mul_add(k[d], lanes[d % 4]));
                let capped = match config.soft_cap.map(|cap| cap as f32) {
                    Some(cap) => cap * (lanes.iter().sum::<f32>() / cap).tanh(),
                    None => lanes.iter().sum(),
                };
                let Some(modifier) = &config.modifier else { return capped };
                let (batch, head) = (head / shape.heads, head % shape.heads);
                let key = t - place.first_key;
                let at = ModifierArgs { batch, head, position: place.position, key };
                modifier.host().unwrap()(f64::from(capped), &at) as f32
            };
            let s: Vec<f32> = block.iter().map(logit).collect();
            let new = s.iter().copied().fold(max, f32::max);
            let decay = (max - new).exp();
            (max, sum) = (new, sum * decay);
            out.iter_mut().for_each(|x| *x *= decay);
            for (t, s) in block.iter().zip(s) {
                let p = (s - max).exp();
                sum += p;
                let v = &inputs.v[(head_kv * shape.keys + t) * dim_v..][..dim_v];
                out.iter_mut().zip(v).for_each(|(x, v)| *x = p.mul_add(*v, *x));
            }
        }
        if let Some(sinks) = &inputs.sinks {
            let sink = sinks[head % shape.heads];
            let new = max.max(sink);
            let decay = (max - new).exp();
            out.iter_mut().for_each(|x| *x *= decay);
            (max, sum) = (new, sum * decay + (sink - new).exp());
        }
        let weight = if sum > 0.0 { 1.0 / sum } else { 0.0 };
        all_out.extend(out.iter().map(|x| x * weight));
        all_lse.push(max + sum.ln());
    }
    (all_out, all_lse)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// The budget admits every sound f32 implementation on every input, and not one whose scale
    /// is wrong in the fourth digit.
    #[test]
    fn the_budget_admits_another_order_of_sums_but_no_error(case in case(300_000)) {
        let inputs = case.inputs();
        let reference = dense::forward(inputs.to_f64().unwrap().view(), &case.config).unwrap();
        let (want, want_lse) = (reference.out.as_slice().unwrap(), reference.lse.as_slice().unwrap());
        let simple = simple_f32(&inputs, &case.config).unwrap();
        let (out, lse) = online_f32(&inputs, &case.config);
        let budget = Budget::for_output(&reference);
        budget.check("out", &out, &simple.out, want).map_err(TestCaseError::fail)?;
        budget.check("lse", &lse, &simple.lse, want_lse).map_err(TestCaseError::fail)?;

        let scale = 1.001 * case.config.scale_for(case.shape.dim_qk);
        let (_, lse) = online_f32(&inputs, &case.config.clone().with_scale(scale));
        // A thousandth of a logit must stand out from what rounding may do where products cancel.
        let largest = want_lse.iter().filter(|x| x.is_finite()).fold(0.0_f64, |m, x| m.max(x.abs()));
        let floor = (budget.floor_ulps + budget.logits) * f64::from(f32::EPSILON) * largest;
        let stands_out = |max: &f64| max.is_finite() && max.abs() > f64::max(0.1, 3e4 * floor);
        let visible = reference.row_max.iter().any(stands_out);
        prop_assert!(!visible || budget.check("lse", &lse, &simple.lse, want_lse).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_budget_admits_every_configuration((case, inputs) in full_case(300_000)) {
        let reference = dense::forward(inputs.to_f64().unwrap().view(), &case.config).unwrap();
        let (want, want_lse) = (reference.out.as_slice().unwrap(), reference.lse.as_slice().unwrap());
        let simple = simple_f32(&inputs, &case.config).unwrap();
        let (out, lse) = online_f32(&inputs, &case.config);
        let budget = Budget::for_output(&reference);
        budget.check("out", &out, &simple.out, want).map_err(TestCaseError::fail)?;
        budget.check("lse", &lse, &simple.lse, want_lse).map_err(TestCaseError::fail)?;
    }
}

/// A strategy that never gave a case would test nothing.
#[test]
fn strategies_reach_the_cases_they_are_for() {
    let mut runner = TestRunner::deterministic();
    let mut draw = || case(100_000).new_tree(&mut runner).unwrap().current();
    let cases: Vec<_> = (0..2000).map(|_| draw()).collect();
    let share = |what: fn(&AttentionShape) -> bool| {
        cases.iter().filter(|c| what(&c.shape)).count() as f64 / 2000.0
    };
    for (name, share, least) in [
        ("odd queries", share(|s| s.queries % 2 == 1), 0.4),
        ("even queries", share(|s| s.queries % 2 == 0), 0.2),
        ("no queries", share(|s| s.queries == 0), 0.02),
        ("no keys", share(|s| s.keys == 0), 0.02),
        ("more queries than keys", share(|s| s.queries > s.keys), 0.1),
        ("more keys than queries", share(|s| s.queries < s.keys), 0.1),
        ("over 64 keys", share(|s| s.keys > 64), 0.05),
        ("grouped", share(|s| s.group() > 1), 0.6),
        ("unequal dims", share(|s| s.dim_qk != s.dim_v), 0.3),
    ] {
        assert!(share >= least, "{name}: {share}");
    }
    let empty_document = |mask: &Mask| match mask {
        Mask::Documents { cu_q, cu_k, .. } => {
            cu_q.windows(2).zip(cu_k.windows(2)).any(|(q, k)| (q[0] == q[1]) != (k[0] == k[1]))
        }
        _ => false,
    };
    let kinds: BTreeSet<_> = cases
        .iter()
        .map(|c| c.config.mask.name().chars().filter(|c| c.is_alphabetic()).collect::<String>())
        .collect();
    assert!(kinds.len() >= 13, "{kinds:?}");
    assert!(cases.iter().filter(|c| empty_document(&c.config.mask)).count() > 50);
    let lengths = Lengths::new(100, 130);
    let mut runner = TestRunner::deterministic();
    let mut draw = || bits(lengths).new_tree(&mut runner).unwrap().current();
    let masks: Vec<_> = (0..500).map(|_| draw()).collect();
    let words = |what: fn(u32) -> bool| {
        masks.iter().filter(|mask| mask.words().chunks(5).any(|row| what(row[1]))).count()
    };
    let rows =
        |count: usize| masks.iter().filter(|mask| (0..100).any(|i| mask.count(i) == count)).count();
    for (name, masks) in [
        ("empty rows", rows(0)),
        ("full rows", rows(130)),
        ("rows of one key", rows(1)),
        ("empty words", words(|word| word == 0)),
        ("full words", words(|word| word == u32::MAX)),
        ("mixed words", words(|word| word != 0 && word != u32::MAX)),
    ] {
        assert!(masks > 20, "{name}: {masks}");
    }
    let mut runner = TestRunner::deterministic();
    let mut draw = || strategies::config(lengths).new_tree(&mut runner).unwrap().current();
    let configs: Vec<_> = (0..500).map(|_| draw()).collect();
    let with = |what: fn(&Config) -> bool| configs.iter().filter(|config| what(config)).count();
    let name = |config: &Config| config.modifier.as_ref().map(|m| m.name().to_owned());
    for (name, configs) in [
        ("soft-cap", with(|config| config.soft_cap.is_some())),
        ("scale", with(|config| config.scale.is_some())),
        ("alibi", configs.iter().filter(|c| name(c).as_deref() == Some("alibi")).count()),
        (
            "temperature",
            configs.iter().filter(|c| name(c).as_deref() == Some("temperature")).count(),
        ),
        ("plain", with(|c| c.soft_cap.is_none() && c.scale.is_none() && c.modifier.is_none())),
        ("all", with(|c| c.soft_cap.is_some() && c.scale.is_some() && c.modifier.is_some())),
    ] {
        assert!(configs > 30, "{name}: {configs}");
    }
    let mut runner = TestRunner::deterministic();
    let seen: BTreeSet<_> =
        (0..2000).map(|_| length().new_tree(&mut runner).unwrap().current()).collect();
    assert!((0..=17).chain([63, 64, 65, 127, 129]).all(|n| seen.contains(&n)), "{seen:?}");
    let seen: BTreeSet<_> =
        (0..2000).map(|_| dim().new_tree(&mut runner).unwrap().current()).collect();
    assert!(
        [1, 3, 40, 63, 64, 72, 96, 127, 128, 192, 256].iter().all(|d| seen.contains(d)),
        "{seen:?}"
    );
}

#[test]
fn distributions() {
    let sorted = |values| {
        let mut data = fill(1, 1, values, 10_000);
        assert!(data.iter().all(|x| x.is_finite()));
        data.iter_mut().for_each(|x| *x = x.abs());
        data.sort_by(f32::total_cmp);
        data
    };
    let tail = |values| {
        let data = sorted(values);
        data[9_990] / data[5_000]
    };
    assert!(tail(Values::Normal) < 6.0);
    assert!(tail(Values::HeavyTailed) > 20.0, "{}", tail(Values::HeavyTailed));
    assert!(sorted(Values::Constant).iter().all(|&x| x == 0.5));
    assert!(*sorted(Values::Tiny).last().unwrap() < 1e-11 && sorted(Values::Tiny)[0] > 0.0);
    let inputs = HostInputs::random(super::shape([1, 1, 1, 64, 64, 64, 8]), 1, Values::Huge);
    let output = dense::forward(inputs.to_f64().unwrap().view(), &config(Mask::Full)).unwrap();
    assert!(output.row_max.iter().all(|&max| max > 200.0));
    let tail = &fill(7, 2, Values::HeavyTailed, 100)[60..];
    let alone: Vec<f32> = (60..100).map(|i| Values::HeavyTailed.at(7, 2, i)).collect();
    assert_eq!(tail, alone);
}

#[test]
fn planting() {
    let mut data = vec![1.0; 4];
    assert_eq!(plant(&mut data, [0, 3], f32::NAN), Ok(()));
    assert!(data[0].is_nan() && data[1] == 1.0 && data[2] == 1.0 && data[3].is_nan());
    assert!(matches!(plant(&mut data, [4], 0.0), Err(Error::Data { .. })));
}

#[test]
fn problems_are_valid_and_have_names_of_their_own() {
    let all = problems();
    for problem in &all {
        let shape = problem.shape;
        assert_eq!(AttentionShape::from_shapes(&shape.q(), &shape.k(), &shape.v()), Ok(shape));
        problem.config.mask.validate(shape.lengths()).unwrap();
        assert_eq!(by_name(problem.name).as_ref(), Some(problem));
        assert!(problem.flops() > 0.0);
    }
    assert_eq!(by_name("none"), None);
    let causal = by_name("smollm2-prefill-1k").unwrap();
    assert_eq!(causal.flops(), 9.0 * 2.0 * 128.0 * (1024.0 * 1025.0 / 2.0));
    let small: Vec<_> = all.iter().filter(|problem| problem.name.starts_with("tiny")).collect();
    for problem in small {
        let arrays = problem.inputs().to_f64().unwrap();
        assert!(dense::forward(arrays.view(), &problem.config).is_ok());
    }
}

#[test]
fn truncated_inputs_are_the_first_tokens_of_every_head() {
    let inputs = HostInputs::random(super::shape([2, 6, 2, 9, 9, 5, 3]), 1, Values::Normal);
    let short = inputs.truncated(4);
    let (long, cut) = (inputs.to_f64().unwrap(), short.to_f64().unwrap());
    let first =
        |array: &Array4<f64>| array.slice(attn_core::ndarray::s![.., .., ..4, ..]).to_owned();
    assert_eq!((cut.q, cut.k, cut.v), (first(&long.q), first(&long.k), first(&long.v)));
    assert_eq!(inputs.truncated(100), inputs);
    assert!(inputs.truncated(0).q.is_empty());
}
