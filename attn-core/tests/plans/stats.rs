//! Counts.

use attn_core::plan::{Combine, Entries, Near, Part, PlanShape, Rows, Share, SparsePlan, Tile};
use attn_core::{Lengths, Mask};
use proptest::prelude::*;
use proptest::sample::select;

use super::{plans, sets};

fn tile() -> impl Strategy<Value = Tile> {
    let size = || select(&[1, 3, 16, 32, 64][..]);
    (size(), size()).prop_map(|(rows, keys)| Tile { rows, keys })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn pairs_and_empty_rows_are_those_of_the_sets((shape, plan) in plans(), tile in tile()) {
        let stats = plan.stats(tile).unwrap();
        let sets = sets(&plan, &shape);
        prop_assert_eq!(stats.pairs, sets.iter().map(|keys| keys.len() as u64).sum::<u64>());
        prop_assert_eq!(stats.empty_rows, sets.iter().filter(|keys| keys.is_empty()).count() as u64);
        prop_assert!(stats.executed_pairs >= stats.pairs, "{:?}", stats);
        let (least, mean, most) = stats.tiles;
        prop_assert!(least as f64 <= mean && mean <= most as f64);
        if plan.shape.q_off == PlanShape::from(&shape).q_off {
            let mask = if plan.causal { Mask::Causal } else { Mask::Full };
            let heads = (shape.batch * shape.heads) as u64;
            let dense = if heads == 0 { 0 } else { heads * mask.pairs(Lengths::new(shape.queries, shape.keys)) };
            prop_assert_eq!(stats.dense_pairs, dense);
        }
    }

    #[test]
    fn tiles_of_one_pair_waste_nothing((_, mut plan) in plans()) {
        // A gate may take a group away from a query for which it is computed.
        if let Combine::Gate(_) = plan.combine {
            plan.combine = Combine::Lse;
        }
        let stats = plan.to_tokens().unwrap().stats(Tile { rows: 1, keys: 1 }).unwrap();
        prop_assert_eq!(stats.executed_pairs, stats.pairs);
    }
}

#[test]
fn counted_by_hand() {
    let shape = PlanShape::new(2, 4, 2, 64, 64);
    let full = SparsePlan::full(shape, true, 64).unwrap();
    let stats = full.stats(Tile { rows: 32, keys: 16 }).unwrap();
    assert_eq!((stats.pairs, stats.empty_rows), (8 * 64 * 65 / 2, 0));
    assert_eq!(stats.density(), 1.0);
    // The first row tile sees 32 keys, the second 64.
    assert_eq!((stats.tiles, stats.executed_pairs), ((2, 3.0, 4), 8 * (2 + 4) * 32 * 16));

    // Four blocks of 8 keys: two fill a tile. The first row tile sees three of them.
    let col = vec![0, 2, 3, 6];
    let cols = [col.clone(), col].concat();
    let blocks = |share, row_ptr, bq| {
        SparsePlan::from_block_csr(shape, share, true, [bq, 8], row_ptr, cols.clone()).unwrap()
    };
    let plan = blocks(Share::AllHeads, vec![0, 4, 8], 64);
    let stats = plan.stats(Tile { rows: 32, keys: 16 }).unwrap();
    let pairs = (0..64).flat_map(|i| (0..=i).filter(|t| [0, 2, 3, 6].contains(&(t / 8)))).count();
    assert_eq!((stats.pairs, stats.tiles), (8 * pairs as u64, (2, 2.0, 2)));
    assert_eq!(
        plan.stats(Tile { rows: 32, keys: 4 }).unwrap().tiles,
        (6, 7.0, 8),
        "two tiles a block"
    );

    let window = Near { sink: 4, window: 8, grow: false };
    let near = SparsePlan::near_only(shape, window, 32)
        .unwrap()
        .stats(Tile { rows: 32, keys: 16 })
        .unwrap();
    // Row tile 0: no sink beyond its window for its first rows, 4 sinks for its last: 1 + 2 tiles. Row
    // tile 1: 1 for the sinks, 3 for keys 25..64.
    assert_eq!(near.tiles, (3, 3.5, 4));
    let lengths = Lengths::new(64, 64);
    assert_eq!(near.pairs, 8 * Mask::SinkWindow { left: 7, sinks: 4 }.pairs(lengths));
}

#[test]
fn extents_of_0_and_large_numbers() {
    for [batch, heads, queries, keys] in [[0, 2, 3, 3], [1, 0, 3, 3], [1, 2, 0, 3], [1, 2, 3, 0]] {
        let plan =
            SparsePlan::full(PlanShape::new(batch, heads, heads, queries, keys), true, 2).unwrap();
        plan.validate().unwrap();
        let stats = plan.stats(Tile::default()).unwrap();
        assert_eq!((stats.pairs, stats.dense_pairs), (0, 0));
        let rows = if keys == 0 { batch * heads * queries } else { 0 };
        assert_eq!(stats.empty_rows, rows as u64);
    }
    assert!(
        SparsePlan::full(PlanShape::new(1, 1, 1, 3, 3), true, 2)
            .unwrap()
            .stats(Tile { rows: 0, keys: 1 })
            .is_err()
    );

    let most = u32::MAX as usize;
    let shape = PlanShape::new(1, 1, 1, 2, most);
    let entries = Entries::Ranges { row_ptr: vec![0, 1], ranges: vec![[7, u32::MAX]] };
    let part = Part::new(Rows::Tiled { bq: u32::MAX }, entries);
    let plan = SparsePlan::new(shape, Share::PerHead, false, vec![part]);
    let stats = plan.stats(Tile::default()).unwrap();
    assert_eq!(stats.pairs, 2 * (most as u64 - 7));
}
