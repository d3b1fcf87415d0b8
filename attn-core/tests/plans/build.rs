//! Plans from what selectors and users have.

use attn_core::Error;
use attn_core::plan::{Combine, Entries, Near, PlanShape, Share, SparsePlan};
use attn_core::testing::uniform;
use attn_core::{Lengths, Mask};
use proptest::prelude::*;
use proptest::sample::select;

fn keys(plan: &SparsePlan, [b, h, i]: [usize; 3]) -> Vec<usize> {
    plan.keys_of(b, h, i).into_iter().map(|(key, _)| key).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn full_and_near_plans_are_masks(
        queries in 0..70_usize, n in 0..70_usize, bq in select(&[1_u32, 7, 64][..]),
        window in 1..40_u32, sink in 0..9_u32,
    ) {
        let shape = PlanShape::new(2, 3, 1, queries, n);
        let lengths = Lengths::new(queries, n);
        let left = window as usize - 1;
        let near = |sink| SparsePlan::near_only(shape, Near { sink, window, grow: false }, bq);
        for (plan, mask) in [
            (SparsePlan::full(shape, false, bq), Mask::Full),
            (SparsePlan::full(shape, true, bq), Mask::Causal),
            (near(0), Mask::Window { left, right: 0 }),
            (near(sink), Mask::SinkWindow { left, sinks: sink as usize }),
        ] {
            let plan = plan.unwrap();
            prop_assert_eq!(plan.validate(), Ok(()));
            for i in 0..queries {
                prop_assert_eq!(keys(&plan, [1, 2, i]), mask.keys(lengths, i).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn blocks_from_csr_bits_and_pairs_are_the_same(
        seed in any::<u64>(), causal in any::<bool>(), n in 1..80_usize,
        bq in select(&[1_u32, 8, 13][..]), bk in select(&[1_u32, 4, 9][..]),
    ) {
        let shape = PlanShape::new(2, 4, 2, n, n);
        let (rows, cols) = (n.div_ceil(bq as usize), n.div_ceil(bk as usize));
        let on = |plane: usize, r: usize, c: usize| uniform(seed, (plane * rows + r) as u64, c as u64) < 0.3;
        let (mut row_ptr, mut col, mut words) = (vec![0], Vec::new(), Vec::new());
        for (plane, r) in (0..4).flat_map(|plane| (0..rows).map(move |r| (plane, r))) {
            let row: Vec<u32> = (0..cols).filter(|&c| on(plane, r, c)).map(|c| c as u32).collect();
            let mut bits = vec![0_u32; cols.div_ceil(32)];
            row.iter().for_each(|&c| bits[c as usize / 32] |= 1 << (c % 32));
            words.extend(bits);
            col.extend(row.iter().rev());
            row_ptr.push(col.len() as u32);
        }
        let share = Share::PerKvHead;
        let csr = SparsePlan::from_block_csr(shape, share, causal, [bq, bk], row_ptr, col).unwrap();
        let bits = SparsePlan::from_bits(shape, share, causal, [bq, bk, 0], words).unwrap();
        let pairs = SparsePlan::covering(shape, share, causal, [bq, bk], |plane, i, t| {
            on(plane, i / bq as usize, t / bk as usize)
        }).unwrap();
        let cuts = |size: u32| {
            let mut cuts: Vec<u32> = (0..n as u32).step_by(size as usize).collect();
            cuts.push(n as u32);
            vec![cuts; 4]
        };
        let variable = SparsePlan::from_variable_blocks(shape, share, causal, &cuts(bq), &cuts(bk), on).unwrap();
        prop_assert_eq!(&bits.to_blocks(bk, 0).unwrap(), &csr);
        prop_assert_eq!(&pairs, &csr);
        for (b, h, i) in [(0, 0, 0), (0, 3, n / 2), (1, 2, n - 1)] {
            let want: Vec<usize> = (0..n)
                .filter(|&t| (!causal || t <= i) && on(2 * b + h / 2, i / bq as usize, t / bk as usize))
                .collect();
            prop_assert_eq!(&keys(&csr, [b, h, i]), &want);
            prop_assert_eq!(&keys(&variable, [b, h, i]), &want);
        }
    }
}

#[test]
fn lists_of_queries_and_keys() {
    let shape = PlanShape::new(1, 2, 1, 6, 6);
    let planes =
        [vec![(vec![5, 0, 2], vec![4, 1, 1]), (vec![3], vec![])], vec![(vec![1], vec![0, 5])]];
    let plan =
        SparsePlan::from_lists(shape, Share::PerHead, true, &planes, Combine::Single).unwrap();
    plan.validate().unwrap();
    assert_eq!(keys(&plan, [0, 0, 5]), [1, 4]);
    assert_eq!(keys(&plan, [0, 0, 2]), [1]);
    assert!(keys(&plan, [0, 0, 0]).is_empty() && keys(&plan, [0, 0, 3]).is_empty());
    assert_eq!(keys(&plan, [0, 1, 1]), [0]);
    let twice = [vec![(vec![1], vec![0]), (vec![1], vec![1])], vec![]];
    let build = |combine| SparsePlan::from_lists(shape, Share::PerHead, true, &twice, combine);
    assert!(matches!(build(Combine::Single), Err(Error::Data { arg: "rows", .. })));
    assert_eq!(build(Combine::Mean).unwrap().groups_of(0, 0, 1).len(), 2);
}

#[test]
fn what_is_out_of_range_is_refused() {
    let shape = PlanShape::new(1, 1, 1, 4, 10);
    let share = Share::PerHead;
    let csr =
        |row_ptr, col, bk| SparsePlan::from_block_csr(shape, share, true, [4, bk], row_ptr, col);
    assert!(csr(vec![0, 1], vec![2], 4).is_ok());
    assert!(matches!(csr(vec![0, 1], vec![3], 4), Err(Error::Data { arg: "col", .. })));
    assert!(matches!(csr(vec![0, 2], vec![2], 4), Err(Error::Data { arg: "row_ptr", .. })));
    assert!(csr(vec![0, 1], vec![2], 0).is_err());
    let list = |q, k| {
        SparsePlan::from_lists(shape, share, true, &[vec![(vec![q], vec![k])]], Combine::Lse)
    };
    assert!(list(3, 9).is_ok());
    assert!(matches!(list(4, 9), Err(Error::Data { arg: "q_idx", .. })));
    assert!(matches!(list(3, 10), Err(Error::Data { arg: "k_idx", .. })));
    let cut = |rows: &[u32], cols: &[u32]| {
        let (rows, cols) = ([rows.to_vec()], [cols.to_vec()]);
        SparsePlan::from_variable_blocks(shape, share, false, &rows, &cols, |_, _, _| true)
    };
    assert!(cut(&[0, 1, 1, 4], &[0, 10]).is_ok());
    for (rows, cols) in
        [(&[0, 5][..], &[0, 10][..]), (&[1, 4], &[0, 10]), (&[0, 4], &[0, 11, 10]), (&[], &[0, 10])]
    {
        assert!(matches!(cut(rows, cols), Err(Error::Data { .. })), "{rows:?} {cols:?}");
    }
    assert!(SparsePlan::full(shape, true, 0).is_err());
    assert!(SparsePlan::covering(shape, share, true, [1, 0], |_, _, _| true).is_err());
    assert!(SparsePlan::covering(shape, share, true, [0, 1], |_, _, _| true).is_err());
    assert!(matches!(
        SparsePlan::near_only(shape, Near { sink: 1, ..Near::default() }, 1).unwrap().parts[0]
            .entries,
        Entries::Ranges { .. }
    ));
}
