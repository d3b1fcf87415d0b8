use attn_core::testing::strategies;
use attn_core::{Error, Lengths, Mask, RowKeys};
use proptest::prelude::*;

fn lengths_and_mask() -> impl Strategy<Value = (Lengths, Mask)> {
    let length = || prop_oneof![3 => 0..=20_usize, 1 => strategies::length()];
    (length(), length()).prop_flat_map(|(queries, keys)| {
        let lengths = Lengths::new(queries, keys);
        (Just(lengths), strategies::mask(lengths))
    })
}

/// Offsets and parameters that nobody validated.
fn broken_mask() -> impl Strategy<Value = Mask> {
    let number = || prop_oneof![0..=9_usize, any::<usize>(), Just(usize::MAX), Just(1 << 63)];
    let cu = move || proptest::collection::vec(number(), 0..6);
    let simple = prop_oneof![
        Just(Mask::Causal),
        (number(), number()).prop_map(|(left, right)| Mask::Window { left, right }),
        number().prop_map(|prefix| Mask::PrefixLm { prefix }),
        (number(), number()).prop_map(|(window, global)| Mask::GlobalWindow { window, global }),
        cu().prop_map(|cu| Mask::ShareQuestion { cu }),
        cu().prop_map(|cu| Mask::CausalBlockwise { cu }),
        (cu(), number()).prop_map(|(cu, block)| Mask::BlockCausalDocuments { cu, block }),
    ];
    (simple, any::<bool>(), cu(), cu()).prop_map(|(inner, packed, cu_q, cu_k)| match packed {
        true => Mask::Documents { cu_q, cu_k, inner: Box::new(inner) },
        false => inner,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn row_is_what_allows_says((lengths, mask) in lengths_and_mask()) {
        prop_assert_eq!(mask.validate(lengths), Ok(()));
        let mut pairs = 0;
        for i in 0..lengths.queries {
            let row = mask.row(lengths, i);
            prop_assert!(row.sink <= row.start && row.start <= row.end && row.end <= lengths.keys);
            for t in 0..lengths.keys {
                prop_assert_eq!(row.contains(t), mask.allows(lengths, i, t), "({}, {})", i, t);
            }
            let keys: Vec<usize> = row.iter().collect();
            prop_assert_eq!(row.count(), keys.len());
            prop_assert!(keys.iter().all(|&t| row.contains(t)));
            prop_assert!(keys.is_sorted_by(|a, b| a < b));
            pairs += keys.len() as u64;
        }
        prop_assert_eq!(mask.pairs(lengths), pairs);
    }

    #[test]
    fn indices_out_of_range_are_not_allowed((lengths, mask) in lengths_and_mask()) {
        prop_assert_eq!(mask.row(lengths, lengths.queries), RowKeys::default());
        prop_assert!(!mask.allows(lengths, lengths.queries, 0));
        prop_assert!(!mask.allows(lengths, 0, lengths.keys));
        prop_assert!(!mask.allows(lengths, usize::MAX, usize::MAX));
    }

    #[test]
    fn broken_masks_are_answered_without_a_panic(
        mask in broken_mask(), queries in 0..20_usize, keys in 0..20_usize,
    ) {
        let lengths = Lengths::new(queries, keys);
        let valid = mask.validate(lengths).is_ok();
        for i in 0..=queries {
            let row = mask.row(lengths, i);
            prop_assert!(row.sink <= row.start && row.start <= row.end && row.end <= keys);
            for t in 0..=keys {
                let allowed = mask.allows(lengths, i, t);
                prop_assert!(!valid || allowed == row.contains(t));
            }
        }
    }
}

#[test]
fn as_window_is_the_same_mask() {
    let lengths = Lengths::new(9, 12);
    for mask in [Mask::Full, Mask::Causal, Mask::Window { left: 3, right: 1 }] {
        let (left, right) = mask.as_window().unwrap();
        for i in 0..9 {
            assert_eq!(mask.row(lengths, i), Mask::Window { left, right }.row(lengths, i));
        }
    }
    assert_eq!(Mask::PrefixLm { prefix: 3 }.as_window(), None);
}

/// A global query is one of the first positions, and there is no position before 0.
#[test]
fn queries_before_the_first_key_are_not_global() {
    let lengths = Lengths::new(5, 2);
    let mask = |global| Mask::GlobalWindow { window: 0, global };
    assert_eq!(mask(0).pairs(lengths), 2);
    assert_eq!(mask(0).row(lengths, 0).count(), 0);
    assert_eq!(mask(1).row(lengths, 0).count(), 1, "it sees the global key");
    assert_eq!(mask(1).row(lengths, 3).count(), 2, "position 0 is global");
}

#[test]
fn malformed_offsets_are_refused() {
    let lengths = Lengths::new(8, 8);
    for cu in [vec![], vec![0], vec![8], vec![1, 8], vec![0, 7], vec![0, 9], vec![0, 5, 4, 8]] {
        let documents = Mask::documents(&cu, Mask::Causal);
        let share = Mask::ShareQuestion { cu: cu.clone() };
        let blockwise = Mask::CausalBlockwise { cu: cu.clone() };
        let blocks = Mask::BlockCausalDocuments { cu: cu.clone(), block: 2 };
        for mask in [documents, share, blockwise, blocks] {
            let error = mask.validate(lengths).unwrap_err();
            assert!(matches!(error, Error::Data { .. }), "{cu:?}: {error}");
        }
    }
    let uneven = Mask::Documents { cu_q: vec![0, 8], cu_k: vec![0, 4, 8], inner: Box::default() };
    let error = uneven.validate(lengths).unwrap_err();
    assert_eq!(error.to_string(), "`cu_k` holds 3 offsets, expected 2 offsets, as many as cu_q");
    let nested = Mask::documents(&[0, 8], Mask::documents(&[0, 8], Mask::Full));
    assert!(nested.validate(lengths).is_err());
    assert!(Mask::BlockCausalDocuments { cu: vec![0, 8], block: 0 }.validate(lengths).is_err());
    assert!(Mask::documents(&[0], Mask::Full).validate(Lengths::new(0, 0)).is_ok());
}
