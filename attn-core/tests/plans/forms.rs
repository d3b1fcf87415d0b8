//! The canonical form, and other forms of the same sets.

use attn_core::Error;
use attn_core::plan::{Entries, Part, PlanShape, Rows, Share, SparsePlan};
use attn_core::testing::bits;
use attn_core::testing::plans::plan_problems;
use proptest::prelude::*;

use super::{plans, rows, sets};

/// The plan with the entries of each group in another order, and longer ranges cut in two.
fn shuffled(plan: &SparsePlan, seed: u64) -> SparsePlan {
    let mut plan = plan.clone();
    for part in &mut plan.parts {
        shuffle_part(part, seed);
    }
    plan
}

fn shuffle_part(part: &mut Part, seed: u64) {
    let Some(row_ptr) = part.entries.row_ptr().map(<[u32]>::to_vec) else { return };
    let split = !part.multiset;
    let (mut order, mut ptr) = (Vec::new(), vec![0]);
    for two in row_ptr.windows(2) {
        let mut group: Vec<u32> = (two[0]..two[1]).collect();
        group.sort_by_key(|&slot| bits(seed, 0, slot.into()));
        order.extend(group);
        ptr.push(order.len() as u32);
    }
    let pick = |data: &[u32]| order.iter().map(|&slot| data[slot as usize]).collect::<Vec<_>>();
    let bias = part.bias.clone();
    let mut new_bias: Vec<f32> = Vec::new();
    let bias_of = |slot: u32| bias.as_ref().map_or(0.0, |bias| bias[slot as usize]);
    part.entries = match &part.entries {
        Entries::Blocks { bk, origin, col, .. } => {
            new_bias.extend(order.iter().map(|&slot| bias_of(slot)));
            Entries::Blocks { bk: *bk, origin: *origin, row_ptr: ptr, col: pick(col) }
        }
        Entries::Tokens { k_idx, .. } => {
            new_bias.extend(order.iter().map(|&slot| bias_of(slot)));
            Entries::Tokens { row_ptr: ptr, k_idx: pick(k_idx) }
        }
        Entries::Ranges { ranges, .. } => {
            let (mut cut, mut cut_ptr) = (Vec::new(), vec![0]);
            for two in ptr.windows(2) {
                for &slot in &order[two[0] as usize..two[1] as usize] {
                    let [start, len] = ranges[slot as usize];
                    let first = if split { len / 2 } else { 0 };
                    cut.extend([[start + first, len - first], [start, first]]);
                    new_bias.extend([bias_of(slot); 2]);
                }
                cut_ptr.push(cut.len() as u32);
            }
            Entries::Ranges { row_ptr: cut_ptr, ranges: cut }
        }
        other => other.clone(),
    };
    part.bias = bias.map(|_| new_bias);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_canonical_plan_has_the_same_keys((shape, plan) in plans()) {
        let canonical = plan.canonicalise().unwrap();
        prop_assert_eq!(canonical.validate(), Ok(()));
        prop_assert_eq!(&canonical.canonicalise().unwrap(), &canonical);
        prop_assert_eq!(sets(&canonical, &shape), sets(&plan, &shape));
        for [b, h, i] in rows(&shape) {
            // Groups stay what they are, with their weights.
            let weights = |plan: &SparsePlan| plan.groups_of(b, h, i).iter().map(|g| (g.weight, g.keys.clone())).collect::<Vec<_>>();
            prop_assert_eq!(weights(&canonical), weights(&plan));
        }
        // Rows of no group differ in nothing but their place: everything else is accepted or changed.
        prop_assert_eq!(plan.validate().is_ok(), plan == canonical);
    }

    #[test]
    fn order_and_cuts_change_nothing((shape, plan) in plans(), seed in any::<u64>()) {
        let other = shuffled(&plan, seed);
        prop_assert_eq!(other.check(), Ok(()));
        prop_assert_eq!(sets(&other, &shape), sets(&plan, &shape));
        prop_assert_eq!(other.canonicalise().unwrap(), plan.canonicalise().unwrap());
    }

    #[test]
    fn every_kind_of_entries_holds_the_same((shape, plan) in plans()) {
        let want = sets(&plan, &shape);
        let ranges = plan.to_ranges().unwrap();
        let tokens = plan.to_tokens().unwrap();
        let blocks = plan.to_blocks(1, 0).unwrap();
        let mut all = vec![ranges.to_tokens().unwrap(), tokens.to_blocks(1, 0).unwrap(), ranges, tokens];
        match plan.to_bits(1, 0) {
            Ok(bits) => all.extend([bits.to_tokens().unwrap(), bits]),
            Err(error) => {
                prop_assert!(plan.parts.iter().any(|part| part.bias.is_some() || part.multiset), "{error}");
            }
        }
        all.push(blocks);
        for other in all {
            prop_assert_eq!(other.validate(), Ok(()));
            prop_assert_eq!(sets(&other, &shape), want.clone());
        }
    }

    /// What is made of blocks can be written as blocks again.
    #[test]
    fn blocks_come_back_from_every_kind((shape, plan) in plans()) {
        let mut plan = plan.canonicalise().unwrap();
        plan.parts.truncate(1);
        plan.combine = attn_core::plan::Combine::Lse;
        let Some((bk, origin)) = plan.parts.first().and_then(|part| match part.entries {
            Entries::Blocks { bk, origin, .. } | Entries::Bits { bk, origin, .. } => Some((bk, origin)),
            _ => None,
        }) else { return Ok(()) };
        prop_assume!(!plan.parts[0].multiset);
        let blocks = plan.to_blocks(bk, origin).unwrap();
        for other in [plan.to_ranges(), plan.to_tokens()] {
            prop_assert_eq!(&other.unwrap().to_blocks(bk, origin).unwrap(), &blocks);
        }
        if plan.parts[0].bias.is_none() {
            let bits = plan.to_bits(bk, origin).unwrap();
            prop_assert_eq!(&bits.to_blocks(bk, origin).unwrap(), &blocks);
            prop_assert_eq!(sets(&bits, &shape), sets(&blocks, &shape));
            if let Entries::Bits { .. } = plan.parts[0].entries {
                prop_assert_eq!(&bits, &plan);
            }
        }
    }

    #[test]
    fn json_and_back((_, plan) in plans()) {
        // JSON has no infinities: gates may be -inf in a canonical plan, biases not.
        let mut plan = plan.canonicalise().unwrap();
        if let attn_core::plan::Combine::Gate(gates) = &mut plan.combine {
            gates.iter_mut().flatten().flatten().for_each(|gate| *gate = gate.max(-1e30));
        }
        let text = serde_json::to_string(&plan).unwrap();
        prop_assert_eq!(serde_json::from_str::<SparsePlan>(&text).unwrap(), plan);
    }
}

#[test]
fn overlapping_ranges_have_the_largest_bias() {
    let ranges = vec![[0, 10], [2, 3], [4, 4], [10, 2], [12, 1], [3, 0]];
    let entries = Entries::Ranges { row_ptr: vec![0, 6], ranges };
    let part = Part::new(Rows::Tiled { bq: 1 }, entries);
    let part = part.with_bias(vec![0.0, 1.0, -1.0, 0.0, f32::NEG_INFINITY, 9.0]);
    let plan = SparsePlan::new(PlanShape::new(1, 1, 1, 1, 20), Share::PerHead, false, vec![part]);
    let plan = plan.canonicalise().unwrap();
    let Entries::Ranges { ranges, .. } = &plan.parts[0].entries else { panic!() };
    assert_eq!(ranges, &[[0, 2], [2, 3], [5, 7]]);
    assert_eq!(plan.parts[0].bias, Some(vec![0.0, 1.0, 0.0]));
}

#[test]
fn parts_of_blocks_are_no_blocks() {
    let tokens = Entries::Tokens { row_ptr: vec![0, 3], k_idx: vec![4, 5, 6] };
    let part = Part::new(Rows::Tiled { bq: 8 }, tokens);
    let plan = SparsePlan::new(PlanShape::new(1, 1, 1, 8, 8), Share::PerHead, false, vec![part]);
    assert!(matches!(plan.to_blocks(4, 0), Err(Error::Data { arg: "entries", .. })));
    assert!(matches!(plan.to_blocks(2, 0), Err(Error::Data { arg: "entries", .. })));
    assert!(plan.to_blocks(3, 4).is_ok());
    assert!(
        matches!(plan.to_blocks(1, 5), Err(Error::Data { arg: "entries", .. })),
        "before the grid"
    );
    assert!(matches!(plan.to_blocks(0, 0), Err(Error::Config { arg: "bk", .. })));
    let mut biased = plan.clone();
    biased.parts[0].bias = Some(vec![0.0; 3]);
    assert!(matches!(biased.to_bits(1, 0), Err(Error::Config { arg: "entries", .. })));
    // Where no query sees the rest of a block, the block is whole.
    let mut causal = plan;
    causal.causal = true;
    causal.shape.q_off = -1;
    assert!(causal.to_blocks(4, 0).is_ok(), "key 7 is in the future of all queries");
}

#[test]
fn named_plans_are_canonical() {
    let problems = plan_problems().unwrap();
    let names: std::collections::BTreeSet<_> =
        problems.iter().map(|problem| problem.name).collect();
    assert_eq!(names.len(), problems.len());
    for problem in &problems {
        problem.plan.validate().unwrap();
        problem.plan.check_call(&problem.shape, &problem.config).unwrap();
        let stats = problem.plan.stats(attn_core::plan::Tile::default()).unwrap();
        assert!(
            stats.pairs > 0 && stats.executed_pairs >= stats.pairs,
            "{} {stats:?}",
            problem.name
        );
    }
}
