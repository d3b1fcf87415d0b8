//! Attention under a plan against dense attention and against the equations.

use attn_core::dense::{self, Config, Inputs, Output};
use attn_core::ndarray::{Array3, Array4, s};
use attn_core::plan::{self, Combine, Entries, Near, Part, PlanShape, Rows, Share, SparsePlan};
use attn_core::testing::plans::{PlanCase, plan_case};
use attn_core::testing::{HostArrays, HostInputs, Values};
use attn_core::{AttentionShape, BitMask, Error, Mask, ModifierArgs};
use proptest::prelude::*;

const WORK: usize = 60_000;

fn normal(case: &PlanCase) -> HostArrays {
    HostInputs::random(case.shape, case.seed, Values::Normal).to_f64().unwrap()
}

fn forward(arrays: &HostArrays, plan: &SparsePlan, config: &Config) -> Output {
    plan::forward(arrays.view(), plan, config).unwrap()
}

fn plain(plan: &SparsePlan) -> Config {
    Config::new().with_mask(if plan.causal { Mask::Causal } else { Mask::Full })
}

/// Dense attention of one head under bits.
fn dense_head(arrays: &HostArrays, config: &Config, bits: BitMask, [b, h]: [usize; 2]) -> Output {
    let h_kv = h / (arrays.q.dim().1 / arrays.k.dim().1);
    let inputs = Inputs::new(
        arrays.q.slice(s![b..=b, h..=h, .., ..]),
        arrays.k.slice(s![b..=b, h_kv..=h_kv, .., ..]),
        arrays.v.slice(s![b..=b, h_kv..=h_kv, .., ..]),
    );
    dense::forward(inputs, &config.clone().with_mask(Mask::Bits(bits))).unwrap()
}

fn close(got: f64, want: f64, tolerance: f64) -> bool {
    got == want || (got - want).abs() <= tolerance * (1.0 + want.abs())
}

/// The equations, written down from the definition of the sets.
fn by_the_equations(
    arrays: &HostArrays,
    case: &PlanCase,
    [b, h, i]: [usize; 3],
) -> (Vec<f64>, f64) {
    let lengths = case.shape.lengths();
    let h_kv = h / case.shape.group();
    let scale = case.config.scale_for(case.shape.dim_qk);
    let place = case.config.mask.place(lengths, i);
    let position = match case.config.mask {
        Mask::Documents { .. } => place.position,
        _ => case.plan.shape.position(i),
    };
    let logit = |t: usize, bias: f32| {
        let dot = arrays.q.slice(s![b, h, i, ..]).dot(&arrays.k.slice(s![b, h_kv, t, ..]));
        let x = match case.config.soft_cap {
            Some(cap) => cap * (scale * dot / cap).tanh(),
            None => scale * dot,
        };
        let at = ModifierArgs { batch: b, head: h, position, key: t - place.first_key };
        let x =
            case.config.modifier.as_ref().map_or(x, |modifier| modifier.host().unwrap()(x, &at));
        x + f64::from(bias)
    };
    let allowed = |t: usize| {
        matches!(case.config.mask, Mask::Causal) || case.config.mask.allows(lengths, i, t)
    };
    let mut results = Vec::new();
    for group in case.plan.groups_of(b, h, i) {
        let keys: Vec<_> = group.keys.iter().filter(|(t, _)| allowed(*t)).collect();
        let logits: Vec<f64> = keys.iter().map(|&&(t, bias)| logit(t, bias)).collect();
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|s| (s - max).exp()).sum();
        let mut out = vec![0.0; case.shape.dim_v];
        for (&&(t, _), s) in keys.iter().zip(&logits) {
            let v = arrays.v.slice(s![b, h_kv, t, ..]);
            out.iter_mut().zip(v).for_each(|(o, v)| *o += (s - max).exp() / sum * v);
        }
        let lse = if keys.is_empty() { f64::NEG_INFINITY } else { max + sum.ln() };
        results.push((out, lse, group.weight.map_or(lse, f64::from), keys.is_empty()));
    }
    let mut out = vec![0.0; case.shape.dim_v];
    if results.iter().all(|result| result.3) {
        return (out, f64::NEG_INFINITY);
    }
    let max = results.iter().map(|result| result.2).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = results.iter().map(|result| (result.2 - max).exp()).sum();
    for (group, _, weight, _) in &results {
        out.iter_mut().zip(group).for_each(|(o, g)| *o += (weight - max).exp() / sum * g);
    }
    (out, max + sum.ln())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn is_what_the_equations_say(case in plan_case(WORK)) {
        let arrays = normal(&case);
        let output = forward(&arrays, &case.plan, &case.config);
        for ((b, h, i), &lse) in output.lse.indexed_iter() {
            let (out, want) = by_the_equations(&arrays, &case, [b, h, i]);
            prop_assert!(close(lse, want, 1e-12), "lse {lse}, expected {want}");
            for (got, want) in output.out.slice(s![b, h, i, ..]).iter().zip(out) {
                prop_assert!(close(*got, want, 1e-12), "{got}, expected {want}");
            }
        }
    }

    #[test]
    fn one_set_without_bias_is_dense_attention_to_the_bit(mut case in plan_case(WORK)) {
        case.plan.combine = Combine::Single;
        case.plan.parts.truncate(1);
        for part in &mut case.plan.parts {
            (part.bias, part.multiset) = (None, false);
        }
        prop_assume!(case.plan.check().is_ok());
        // Bits count positions over all keys.
        prop_assume!(case.config.modifier.is_none());
        let arrays = case.inputs().to_f64().unwrap();
        let output = forward(&arrays, &case.plan, &case.config);
        let lengths = case.shape.lengths();
        for (b, h) in (0..case.shape.batch).flat_map(|b| (0..case.shape.heads).map(move |h| (b, h))) {
            let plan = case.plan.to_dense_mask(b, h).unwrap();
            let own = case.config.mask == Mask::Causal;
            let bits = BitMask::from_fn(lengths.queries, lengths.keys, |i, t| {
                plan.get(i, t) && (own || case.config.mask.allows(lengths, i, t))
            });
            let want = dense_head(&arrays, &case.config, bits, [b, h]);
            for i in 0..case.shape.queries {
                let bits = |x: &f64| x.to_bits();
                prop_assert!(output.out.slice(s![b, h, i, ..]).iter().map(bits).eq(want.out.slice(s![0, 0, i, ..]).iter().map(bits)));
                prop_assert_eq!(output.lse[[b, h, i]].to_bits(), want.lse[[0, 0, i]].to_bits());
                prop_assert_eq!(output.row_max[[b, h, i]].to_bits(), want.row_max[[0, 0, i]].to_bits());
                prop_assert_eq!(output.product_bound[[b, h, i]].to_bits(), want.product_bound[[0, 0, i]].to_bits());
                prop_assert_eq!(output.argmax[[b, h, i]], want.argmax[[0, 0, i]]);
            }
        }
    }

    #[test]
    fn other_forms_of_the_plan_have_the_same_bits(case in plan_case(WORK)) {
        let arrays = normal(&case);
        let want = forward(&arrays, &case.plan, &case.config);
        let plan = case.plan.canonicalise().unwrap();
        for other in [plan.to_ranges().unwrap(), plan.to_tokens().unwrap(), plan.to_blocks(1, 0).unwrap(), plan] {
            prop_assert_eq!(&forward(&arrays, &other, &case.config), &want);
        }
        let rows: Vec<usize> = (0..case.shape.queries).rev().step_by(2).collect();
        let some = plan::forward_rows(arrays.view(), &case.plan, &case.config, &rows).unwrap();
        for (at, &row) in rows.iter().enumerate() {
            prop_assert_eq!(some.out.slice(s![.., .., at, ..]), want.out.slice(s![.., .., row, ..]));
            prop_assert_eq!(some.lse.slice(s![.., .., at]), want.lse.slice(s![.., .., row]));
        }
        prop_assert!(plan::forward_rows(arrays.view(), &case.plan, &case.config, &[case.shape.queries]).is_err());
    }

    /// With logits of 0 and unit vectors as values, the output times the sum of the weights counts.
    #[test]
    fn every_key_counts_once(case in plan_case(WORK)) {
        let mut plan = case.plan.clone();
        if plan.combine != Combine::Single {
            plan.combine = Combine::Lse;
        }
        plan.parts.iter_mut().for_each(|part| part.bias = None);
        let AttentionShape { batch, heads, heads_kv, queries, keys, .. } = case.shape;
        let arrays = HostArrays {
            q: Array4::zeros((batch, heads, queries, 1)),
            k: Array4::zeros((batch, heads_kv, keys, 1)),
            v: Array4::from_shape_fn((batch, heads_kv, keys, keys), |(_, _, t, d)| f64::from(t == d)),
            sinks: None,
        };
        let output = forward(&arrays, &plan, &plain(&plan));
        for ((b, h, i), lse) in output.lse.indexed_iter() {
            let set = plan.keys_of(b, h, i);
            prop_assert!((lse.exp() - set.len() as f64).abs() < 1e-9);
            for t in 0..keys {
                let count = set.iter().filter(|(key, _)| *key == t).count();
                let got = output.out[[b, h, i, t]] * set.len() as f64;
                prop_assert!((got - count as f64).abs() < 1e-9, "{got}, expected {count}");
            }
        }
    }

    /// What a plan leaves out moves the output by no more than twice its mass.
    #[test]
    fn the_error_is_bounded_by_the_mass_left_out(case in plan_case(WORK)) {
        let mut plan = case.plan.clone();
        plan.combine = Combine::Single;
        plan.parts.truncate(1);
        plan.parts.iter_mut().for_each(|part| (part.bias, part.multiset) = (None, false));
        plan.shape.q_off = PlanShape::from(&case.shape).q_off;
        prop_assume!(plan.check().is_ok());
        let arrays = normal(&case);
        let config = plain(&plan);
        let sparse = forward(&arrays, &plan, &config);
        let dense = dense::forward_with_probs(arrays.view(), &config).unwrap();
        let probs = dense.probs.unwrap();
        for ((b, h, i), &lse) in dense.lse.indexed_iter() {
            let mass: f64 = plan.keys_of(b, h, i).iter().map(|(t, _)| probs[[b, h, i, *t]]).sum();
            let v = arrays.v.slice(s![b, h / case.shape.group(), .., ..]);
            let largest = v.rows().into_iter().map(|v| v.dot(&v).sqrt()).fold(0.0, f64::max);
            let error = &sparse.out.slice(s![b, h, i, ..]) - &dense.out.slice(s![b, h, i, ..]);
            prop_assert!(error.dot(&error).sqrt() <= 2.0 * (1.0 - mass) * largest + 1e-12);
            prop_assert!(sparse.lse[[b, h, i]] <= lse + 1e-12, "more keys, more mass");
            if mass > 0.0 {
                prop_assert!(close(sparse.lse[[b, h, i]] - lse, mass.ln(), 1e-9));
            }
        }
    }

    #[test]
    fn more_keys_more_mass(case in plan_case(WORK), keep in 0.0..1.0_f64) {
        let mut plan = case.plan.to_tokens().unwrap();
        if plan.combine != Combine::Single {
            plan.combine = Combine::Lse;
        }
        let [less, rest] = halves(&plan, keep, case.seed);
        let arrays = normal(&case);
        let run = |plan: &SparsePlan| forward(&arrays, plan, &case.config);
        let (all, less, rest) = (run(&plan), run(&less), run(&rest));
        for (less, all) in less.lse.iter().zip(&all.lse) {
            prop_assert!(*less <= all + 1e-12);
        }
        // Both halves have the near part: without it they are disjoint.
        if plan.near.sink == 0 && plan.window() == 0 {
            let parts = [(less.out.view(), less.lse.view()), (rest.out.view(), rest.lse.view())];
            let (out, lse) = dense::merge(&parts).unwrap();
            prop_assert!(out.iter().zip(&all.out).all(|(a, b)| close(*a, *b, 1e-11)));
            prop_assert!(lse.iter().zip(&all.lse).all(|(a, b)| close(*a, *b, 1e-11)));
        }
    }

    #[test]
    fn keys_outside_of_the_sets_are_not_read(case in plan_case(WORK)) {
        let arrays = normal(&case);
        let want = forward(&arrays, &case.plan, &case.config);
        let AttentionShape { batch, heads_kv, keys, .. } = case.shape;
        let mut read = Array3::from_elem((batch, heads_kv, keys), false);
        for row in super::rows(&case.shape) {
            let [b, h, i] = row;
            for (t, _) in case.plan.keys_of(b, h, i) {
                read[[b, h / case.shape.group(), t]] = true;
            }
        }
        let mut poisoned = arrays.clone();
        for ((b, h, t), _) in read.indexed_iter().filter(|(_, read)| !**read) {
            poisoned.k.slice_mut(s![b, h, t, ..]).fill(f64::NAN);
            poisoned.v.slice_mut(s![b, h, t, ..]).fill(f64::INFINITY);
        }
        prop_assert!(forward(&poisoned, &case.plan, &case.config) == want);
    }

    #[test]
    fn a_later_token_never_changes_an_earlier_output(case in plan_case(WORK), at in any::<prop::sample::Index>()) {
        prop_assume!(case.plan.causal && case.shape.keys > 0);
        let arrays = normal(&case);
        let config = plain(&case.plan);
        let before = forward(&arrays, &case.plan, &config);
        let t = at.index(case.shape.keys);
        let mut changed = arrays.clone();
        changed.k.slice_mut(s![.., .., t.., ..]).mapv_inplace(|x| x + 1.0);
        changed.v.slice_mut(s![.., .., t.., ..]).fill(f64::NAN);
        let after = forward(&changed, &case.plan, &config);
        for i in (0..case.shape.queries).filter(|&i| case.plan.shape.position(i) < t as i64) {
            prop_assert_eq!(after.out.slice(s![.., .., i, ..]), before.out.slice(s![.., .., i, ..]));
            prop_assert_eq!(after.lse.slice(s![.., .., i]), before.lse.slice(s![.., .., i]));
        }
    }
}

/// The tokens of every group in two disjoint plans.
fn halves(plan: &SparsePlan, keep: f64, seed: u64) -> [SparsePlan; 2] {
    [true, false].map(|first| {
        let mut plan = plan.clone();
        for part in &mut plan.parts {
            let Entries::Tokens { row_ptr, k_idx } = &part.entries else { panic!() };
            let (mut ptr, mut keys, mut bias) = (vec![0], Vec::new(), Vec::new());
            for two in row_ptr.windows(2) {
                for slot in two[0] as usize..two[1] as usize {
                    if (attn_core::testing::uniform(seed, 9, slot as u64) < keep) == first {
                        keys.push(k_idx[slot]);
                        bias.extend(part.bias.as_ref().map(|bias| bias[slot]));
                    }
                }
                ptr.push(keys.len() as u32);
            }
            part.bias = part.bias.as_ref().map(|_| bias);
            part.entries = Entries::Tokens { row_ptr: ptr, k_idx: keys };
        }
        plan
    })
}

/// Logits of 0, one number as value: results can be worked out by hand.
fn by_hand(combine: Combine, near: Near) -> (Vec<f64>, Vec<f64>) {
    let shape = PlanShape::new(1, 1, 1, 4, 4);
    // Group 0: queries 1 and 3 see keys 0 and 1. Group 1: queries 2 and 3 see key 3.
    let rows = Rows::Lists { plane_ptr: vec![0, 2], q_ptr: vec![0, 2, 4], q_idx: vec![1, 3, 2, 3] };
    let entries = Entries::Tokens { row_ptr: vec![0, 2, 3], k_idx: vec![0, 1, 3] };
    let plan = SparsePlan::new(shape, Share::PerHead, true, vec![Part::new(rows, entries)])
        .with_near(near)
        .with_combine(combine);
    let ones = Array4::ones((1, 1, 4, 1));
    let v = Array4::from_shape_fn((1, 1, 4, 1), |(_, _, t, _)| [1.0, 3.0, 10.0, 20.0][t]);
    let zeros = &ones * 0.0;
    let config = Config::new().with_mask(Mask::Causal);
    let output =
        plan::forward(Inputs::new(zeros.view(), ones.view(), v.view()), &plan, &config).unwrap();
    (output.out.into_iter().collect(), output.lse.into_iter().collect())
}

#[test]
fn combinations_by_hand() {
    let near = Near { sink: 0, window: 1, grow: false };
    let (none, ln2, ln3) = (f64::NEG_INFINITY, 2_f64.ln(), 3_f64.ln());
    let check = |(out, lse): (Vec<f64>, Vec<f64>), want_out: [f64; 4], want_lse: [f64; 4]| {
        for (got, want) in out.iter().zip(want_out).chain(lse.iter().zip(want_lse)) {
            assert!(
                close(*got, want, 1e-14),
                "{out:?} {lse:?}, expected {want_out:?} {want_lse:?}"
            );
        }
    };
    // Query 0 is in no group, and group 1 shows nothing to query 2.
    let none_near = Near::default();
    check(by_hand(Combine::Lse, none_near), [0.0, 2.0, 0.0, 8.0], [none, ln2, none, ln3]);
    check(by_hand(Combine::Mean, none_near), [0.0, 2.0, 0.0, 11.0], [none, 0.0, none, ln2]);
    // The near part is one more group: for query 1 key 1 (and key 0 in group 0).
    check(by_hand(Combine::Lse, near), [1.0, 2.0, 10.0, 8.0], [0.0, ln2, 0.0, ln3]);
    // Query 2: the group without visible keys counts. Query 3: group 1 has lost its key to the near part.
    check(
        by_hand(Combine::Mean, near),
        [1.0, 2.0, 5.0, (2.0 + 0.0 + 20.0) / 3.0],
        [0.0, ln2, ln2, ln3],
    );
    let gates = vec![Some(vec![ln2 as f32, f32::NEG_INFINITY, 0.0, 0.0])];
    let e = f64::from(ln2 as f32).exp();
    let (out, lse) = by_hand(Combine::Gate(gates), near);
    check(
        (out, lse),
        [1.0, (e * 1.0 + 3.0) / (e + 1.0), 5.0, 10.0],
        [0.0, (e + 1.0).ln(), ln2, ln2],
    );
    check(by_hand(Combine::Gate(vec![None]), near), [1.0, 2.0, 10.0, 8.0], [0.0, ln2, 0.0, ln3]);
}

#[test]
fn samples_with_multiplicity_and_weight() {
    let shape = PlanShape::new(1, 1, 1, 1, 3);
    let entries = Entries::Tokens { row_ptr: vec![0, 4], k_idx: vec![2, 0, 2, 1] };
    let bias = vec![0.5, 0.0, 0.5, f32::NEG_INFINITY];
    let part = Part::new(Rows::Tiled { bq: 1 }, entries).with_bias(bias);
    let run = |part: Part| {
        let plan = SparsePlan::new(shape, Share::PerHead, true, vec![part]);
        let (q, k) = (Array4::zeros((1, 1, 1, 2)), Array4::ones((1, 1, 3, 2)));
        let v = Array4::from_shape_fn((1, 1, 3, 1), |(_, _, t, _)| t as f64);
        let config = Config::new().with_mask(Mask::Causal);
        let output =
            plan::forward(Inputs::new(q.view(), k.view(), v.view()), &plan, &config).unwrap();
        (output.out[[0, 0, 0, 0]], output.lse[[0, 0, 0]])
    };
    let w = 0.5_f64.exp();
    let (out, lse) = run(part.clone());
    assert!(close(out, 2.0 * w / (1.0 + w), 1e-15) && close(lse, (1.0 + w).ln(), 1e-15));
    let (out, lse) = run(part.with_multiset());
    assert!(
        close(out, 4.0 * w / (1.0 + 2.0 * w), 1e-15) && close(lse, (1.0 + 2.0 * w).ln(), 1e-15)
    );
}

#[test]
fn sinks_are_one_more_logit() {
    let shape = AttentionShape {
        batch: 2,
        heads: 4,
        heads_kv: 2,
        queries: 9,
        keys: 9,
        dim_qk: 5,
        dim_v: 3,
    };
    let inputs = HostInputs::random(shape, 3, Values::Normal).with_random_sinks(4);
    let arrays = inputs.to_f64().unwrap();
    let config = Config::new().with_mask(Mask::Causal);
    let plan = SparsePlan::full((&shape).into(), true, 4).unwrap();
    let want = dense::forward(arrays.view(), &config).unwrap();
    for combine in [Combine::Single, Combine::Lse] {
        let got = forward(&arrays, &plan.clone().with_combine(combine), &config);
        assert!(got.out.iter().zip(&want.out).all(|(a, b)| close(*a, *b, 1e-14)));
        assert!(got.lse.iter().zip(&want.lse).all(|(a, b)| close(*a, *b, 1e-14)));
    }
    let mean = plan.with_combine(Combine::Mean);
    let error = plan::forward(arrays.view(), &mean, &config).unwrap_err();
    assert!(matches!(error, Error::Config { arg: "sinks", .. }));
    let nothing = SparsePlan::new((&shape).into(), Share::PerHead, true, Vec::new());
    let output = forward(&arrays, &nothing, &config);
    let sinks = arrays.sinks.as_ref().unwrap();
    assert!(output.lse.indexed_iter().all(|((_, h, _), lse)| *lse == sinks[h]));
    assert!(output.out.iter().all(|x| x.to_bits() == 0));
}
