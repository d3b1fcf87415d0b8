//! `keys_of` against the rules, one key at a time.

use attn_core::AttentionShape;
use attn_core::plan::{Combine, Entries, Near, Part, PlanShape, Rows, Share, SparsePlan};
use proptest::prelude::*;

use super::{plans, rows, sets};

/// Whether entry `slot` of `group` holds `key`, and its bias.
fn entries_with(plan: &SparsePlan, part: &Part, group: usize, key: usize) -> Vec<f32> {
    let key = key as u64;
    let bias = |slot: usize| part.bias.as_ref().map_or(0.0, |bias| bias[slot]);
    let slots = |ptr: &[u32]| ptr[group] as usize..ptr[group + 1] as usize;
    let in_block = |bk: u32, origin: u32, block: u64| {
        let start = u64::from(origin) + block * u64::from(bk);
        (start..start + u64::from(bk)).contains(&key)
    };
    match &part.entries {
        Entries::Blocks { bk, origin, row_ptr, col } => slots(row_ptr)
            .filter(|&slot| in_block(*bk, *origin, col[slot].into()))
            .map(bias)
            .collect(),
        Entries::Ranges { row_ptr, ranges } => slots(row_ptr)
            .filter(|&slot| {
                let [start, len] = ranges[slot].map(u64::from);
                (start..start + len).contains(&key)
            })
            .map(bias)
            .collect(),
        Entries::Tokens { row_ptr, k_idx } => {
            slots(row_ptr).filter(|&slot| u64::from(k_idx[slot]) == key).map(bias).collect()
        }
        Entries::Bits { bk, origin, words } => {
            let blocks =
                plan.shape.built_keys.saturating_sub(*origin as usize).div_ceil(*bk as usize);
            let per_group = blocks.div_ceil(32);
            let set = |block: usize| words[group * per_group + block / 32] >> (block % 32) & 1 == 1;
            let hits =
                (0..blocks).filter(|&block| set(block) && in_block(*bk, *origin, block as u64));
            hits.map(|_| 0.0).collect()
        }
        _ => panic!("a new kind of entries"),
    }
}

/// Groups of the plane that list the query, in order, with the place of the query in all rows.
fn groups_with(rows: &Rows, plane: usize, queries: usize, query: usize) -> Vec<(usize, usize)> {
    let q = query as u32;
    match rows {
        Rows::Tiled { bq } => {
            let tiles = queries.div_ceil(*bq as usize);
            vec![(plane * tiles + query / *bq as usize, plane * queries + query)]
        }
        Rows::Lists { plane_ptr, q_ptr, q_idx } => (plane_ptr[plane]..plane_ptr[plane + 1])
            .filter_map(|group| {
                let mut places = q_ptr[group as usize]..q_ptr[group as usize + 1];
                let place = places.find(|&place| q_idx[place as usize] == q)?;
                Some((group as usize, place as usize))
            })
            .collect(),
        Rows::Ranges { plane_ptr, q_start, q_len } => {
            let len = |group: usize| {
                let end = (q_start[group] + q_len[group]).min(queries as u32);
                end.saturating_sub(q_start[group])
            };
            (plane_ptr[plane] as usize..plane_ptr[plane + 1] as usize)
                .filter(|&group| q >= q_start[group] && q < q_start[group] + len(group))
                .map(|group| {
                    let before: u32 = (0..group).map(len).sum();
                    (group, (before + q - q_start[group]) as usize)
                })
                .collect()
        }
        _ => panic!("a new kind of rows"),
    }
}

fn by_the_rules(plan: &SparsePlan, [b, h, i]: [usize; 3]) -> Vec<(usize, u32)> {
    let PlanShape { heads, heads_kv, queries, keys, built_keys, q_off, .. } = plan.shape;
    let plane = match plan.share {
        Share::PerHead => b * heads + h,
        Share::PerKvHead => b * heads_kv + h / (heads / heads_kv),
        Share::AllHeads => b,
        _ => panic!("a new kind of sharing"),
    };
    let came = if plan.near.grow { keys - built_keys } else { 0 };
    let (sink, window) = (i64::from(plan.near.sink), i64::from(plan.near.window) + came as i64);
    let pos = i as i64 + q_off;
    let mut all = Vec::new();
    for key in 0..keys {
        let t = key as i64;
        if plan.max_dist.is_some_and(|left| pos - t > i64::from(left)) || (plan.causal && t > pos) {
            continue;
        }
        let near = plan.causal && (t > pos - window || t < sink);
        if near {
            all.push((key, 0.0_f32));
            continue;
        }
        for (index, part) in plan.parts.iter().enumerate().filter(|_| key < built_keys) {
            for (group, place) in groups_with(&part.rows, plane, queries, i) {
                if let Combine::Gate(gates) = &plan.combine
                    && gates[index].as_ref().is_some_and(|gates| gates[place] <= -1e30)
                {
                    continue;
                }
                let mut biases = entries_with(plan, part, group, key);
                biases.retain(|&bias| bias > -1e30);
                if !part.multiset {
                    biases.sort_by(f32::total_cmp);
                    biases = biases.pop().into_iter().collect();
                }
                all.extend(biases.into_iter().map(|bias| (key, bias)));
            }
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    all.into_iter().map(|(key, bias)| (key, bias.to_bits())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn keys_are_those_of_the_rules((shape, plan) in plans()) {
        plan.check().unwrap();
        for (row, got) in rows(&shape).zip(sets(&plan, &shape)) {
            prop_assert_eq!(got, by_the_rules(&plan, row), "row {:?}", row);
        }
    }

    #[test]
    fn the_dense_mask_holds_the_same_keys((shape, plan) in plans()) {
        for b in 0..shape.batch {
            for h in 0..shape.heads {
                let mask = plan.to_dense_mask(b, h).unwrap();
                for i in 0..shape.queries {
                    let mut keys: Vec<usize> = plan.keys_of(b, h, i).into_iter().map(|(t, _)| t).collect();
                    keys.dedup();
                    let bits: Vec<usize> = (0..shape.keys).filter(|&t| mask.get(i, t)).collect();
                    prop_assert_eq!(keys, bits);
                }
            }
        }
        prop_assert!(plan.to_dense_mask(shape.batch, 0).is_err());
        prop_assert!(plan.keys_of(0, shape.heads, 0).is_empty());
        prop_assert!(plan.keys_of(0, 0, shape.queries).is_empty());
    }

    /// Without biases and with one group for a query, sets have no duplicates, whatever overlaps.
    #[test]
    fn near_and_explicit_keys_are_disjoint((shape, mut plan) in plans()) {
        plan.combine = Combine::Single;
        plan.parts.truncate(1);
        for part in &mut plan.parts {
            part.multiset = false;
        }
        prop_assume!(plan.check().is_ok());
        for keys in sets(&plan, &shape) {
            prop_assert!(keys.windows(2).all(|two| two[0].0 < two[1].0));
        }
    }
}

/// One query, every rule at its edge.
#[test]
fn the_edges_of_near_part_and_distance() {
    let shape = PlanShape::new(1, 1, 1, 1, 20);
    let all = Entries::Ranges { row_ptr: vec![0, 1], ranges: vec![[0, 20]] };
    let part = Part::new(Rows::Tiled { bq: 1 }, all);
    let mut plan = SparsePlan::new(shape, Share::AllHeads, true, vec![part]).with_near(Near {
        sink: 2,
        window: 3,
        grow: false,
    });
    let keys =
        |plan: &SparsePlan| plan.keys_of(0, 0, 0).into_iter().map(|(t, _)| t).collect::<Vec<_>>();
    assert_eq!(keys(&plan), (0..20).collect::<Vec<_>>());
    plan.parts.clear();
    assert_eq!(keys(&plan), [0, 1, 17, 18, 19], "window of 3 with the query's own key");
    assert_eq!(keys(&plan.clone().with_max_dist(2)), [17, 18, 19], "the left of Mask::Window");
    assert_eq!(keys(&plan.clone().with_max_dist(1)), [18, 19]);
    assert_eq!(
        keys(&plan.clone().with_max_dist(18)),
        [1, 17, 18, 19],
        "sinks have a distance as well"
    );
    plan.shape.q_off = 1;
    assert_eq!(keys(&plan), [0, 1], "every key is near");
    plan.shape.q_off = -1;
    assert_eq!(keys(&plan), Vec::<usize>::new());
    plan.shape.q_off = 30;
    assert_eq!(keys(&plan), [0, 1], "the window is beyond the end");
}

/// A selector that runs every few steps: what happens to keys that came since.
#[test]
fn a_plan_used_again() {
    let shape: PlanShape = (&AttentionShape {
        batch: 1,
        heads: 1,
        heads_kv: 1,
        queries: 1,
        keys: 10,
        dim_qk: 1,
        dim_v: 1,
    })
        .into();
    let blocks = Entries::Blocks { bk: 4, origin: 0, row_ptr: vec![0, 2], col: vec![0, 2] };
    let part = Part::new(Rows::Tiled { bq: 1 }, blocks);
    let near = Near { sink: 0, window: 1, grow: true };
    let plan = SparsePlan::new(shape, Share::PerHead, true, vec![part]).with_near(near);
    let keys =
        |plan: &SparsePlan| plan.keys_of(0, 0, 0).into_iter().map(|(t, _)| t).collect::<Vec<_>>();
    assert_eq!(keys(&plan), [0, 1, 2, 3, 8, 9], "the last block is short");
    let later = plan.reuse(13).unwrap();
    assert_eq!(keys(&later), [0, 1, 2, 3, 8, 9, 10, 11, 12]);
    assert_eq!(later.reuse(14).unwrap(), plan.reuse(14).unwrap());
    let lost = plan.clone().with_near(Near { grow: false, ..near }).reuse(13).unwrap();
    assert_eq!(keys(&lost), [0, 1, 2, 3, 8, 9, 12], "the short block stays short");
    assert!(plan.reuse(9).is_err());
}
