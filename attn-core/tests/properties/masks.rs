use attn_core::testing::{strategies, uniform};
use attn_core::{BitMask, Error, Lengths, Mask, Place, RowKeys};
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
        (number(), number()).prop_map(|(left, sinks)| Mask::SinkWindow { left, sinks }),
        (number(), number()).prop_map(|(window, global)| Mask::GlobalWindow { window, global }),
        cu().prop_map(|cu| Mask::ShareQuestion { cu }),
        cu().prop_map(|cu| Mask::CausalBlockwise { cu }),
        (cu(), number()).prop_map(|(cu, block)| Mask::BlockCausalDocuments { cu, block }),
        (0..20_usize, 0..40_usize)
            .prop_flat_map(|(queries, keys)| strategies::bits(Lengths::new(queries, keys)))
            .prop_map(Mask::Bits),
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
            let allowed: Vec<usize> = (0..lengths.keys).filter(|&t| mask.allows(lengths, i, t)).collect();
            prop_assert_eq!(&mask.keys(lengths, i).collect::<Vec<_>>(), &allowed, "row {}", i);
            if mask.is_exact_in_rows() {
                prop_assert_eq!(row.iter().collect::<Vec<_>>(), &allowed[..], "row {}", i);
                prop_assert!((0..lengths.keys).all(|t| row.contains(t) == allowed.contains(&t)));
                prop_assert_eq!(row.count(), allowed.len());
            } else {
                let end = allowed.last().map_or(0, |t| t + 1);
                let hull = RowKeys { sink: 0, start: allowed.first().copied().unwrap_or(0), end };
                prop_assert_eq!(row, hull, "the smallest interval of row {}", i);
            }
            pairs += allowed.len() as u64;
        }
        prop_assert_eq!(mask.pairs(lengths), pairs);
    }

    #[test]
    fn indices_out_of_range_are_not_allowed((lengths, mask) in lengths_and_mask()) {
        prop_assert_eq!(mask.row(lengths, lengths.queries), RowKeys::default());
        prop_assert_eq!(mask.keys(lengths, lengths.queries).count(), 0);
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
                prop_assert!(!valid || allowed == mask.keys(lengths, i).any(|key| key == t));
            }
            let place = mask.place(lengths, i);
            prop_assert!(!valid || place.first_key <= keys);
        }
    }
}

proptest! {
    /// Bits are cleared beyond the keys, and read back as they were given.
    #[test]
    fn bits_are_what_was_given(queries in 0..9_usize, keys in 0..100_usize, seed in any::<u64>()) {
        let allows = |i: usize, t: usize| uniform(seed, i as u64, t as u64) < 0.4;
        let bits = BitMask::from_fn(queries, keys, allows);
        prop_assert_eq!((bits.queries(), bits.keys()), (queries, keys));
        prop_assert_eq!(bits.words_per_row(), keys.div_ceil(32));
        prop_assert_eq!(bits.words().len(), queries * bits.words_per_row());
        for (i, t) in (0..queries + 1).flat_map(|i| (0..keys + 70).map(move |t| (i, t))) {
            let allowed = i < queries && t < keys && allows(i, t);
            prop_assert_eq!(bits.get(i, t), allowed);
            let word = bits.row(i).get(t / 32).copied().unwrap_or(0);
            prop_assert_eq!(word >> (t % 32) & 1 == 1, allowed);
        }
        let beyond = if keys % 32 == 0 { 0 } else { u32::MAX << (keys % 32) };
        let mut words = bits.words().to_vec();
        let per_row = bits.words_per_row();
        (1..=queries).filter(|_| per_row > 0).for_each(|i| words[i * per_row - 1] |= beyond);
        prop_assert_eq!(BitMask::from_words(queries, keys, words.clone()), Ok(bits));
        words.push(0);
        let error = BitMask::from_words(queries, keys, words).unwrap_err();
        prop_assert!(error.to_string().starts_with("`words` holds"), "{}", error);
    }

    /// Positions inside a document are those of the document alone.
    #[test]
    fn places_are_relative_to_the_document((lengths, mask) in lengths_and_mask()) {
        for i in 0..lengths.queries {
            let place = mask.place(lengths, i);
            let Mask::Documents { cu_q, cu_k, .. } = &mask else {
                prop_assert_eq!(place, Place { position: lengths.position(i), first_key: 0 });
                continue;
            };
            let d = (0..cu_q.len() - 1).find(|&d| (cu_q[d]..cu_q[d + 1]).contains(&i)).unwrap();
            let alone = Lengths::new(cu_q[d + 1] - cu_q[d], cu_k[d + 1] - cu_k[d]);
            let position = alone.position(i - cu_q[d]);
            prop_assert_eq!(place, Place { position, first_key: cu_k[d] });
            prop_assert!(mask.keys(lengths, i).all(|t| t >= place.first_key));
        }
    }
}

#[test]
fn bits_of_other_lengths_are_refused() {
    let mask = Mask::Bits(BitMask::from_fn(3, 40, |_, _| true));
    assert_eq!(mask.validate(Lengths::new(3, 40)), Ok(()));
    for lengths in [Lengths::new(2, 40), Lengths::new(3, 41), Lengths::new(40, 3)] {
        let error = mask.validate(lengths).unwrap_err();
        assert!(matches!(error, Error::Data { arg: "mask", .. }), "{error}");
    }
    let inside = Mask::documents(&[0, 40], Mask::Bits(BitMask::from_fn(40, 40, |_, _| true)));
    let error = inside.validate(Lengths::new(40, 40)).unwrap_err();
    assert_eq!(error.to_string(), "`inner` is bits, expected Full, Causal, Window or PrefixLm");
    // No keys, no words, however many queries.
    assert!(BitMask::from_fn(usize::MAX, 0, |_, _| true).words().is_empty());
    assert!(BitMask::from_words(usize::MAX, 0, vec![]).is_ok());
    assert!(BitMask::from_words(usize::MAX, usize::MAX, vec![]).is_err());
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
    assert_eq!(Mask::SinkWindow { left: 3, sinks: 1 }.as_window(), None);
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

/// Sinks are causal, too: a query does not see those behind its position, and none before the first key.
#[test]
fn sinks_behind_the_query_are_not_seen() {
    let mask = Mask::SinkWindow { left: 1, sinks: 3 };
    let rows = |queries, keys| -> Vec<Vec<usize>> {
        let lengths = Lengths::new(queries, keys);
        (0..queries).map(|i| mask.keys(lengths, i).collect()).collect()
    };
    assert_eq!(rows(3, 7), [[0, 1, 2, 3, 4].as_slice(), &[0, 1, 2, 4, 5], &[0, 1, 2, 5, 6]]);
    assert_eq!(rows(5, 2), [[].as_slice(), &[], &[], &[0], &[0, 1]]);
    assert_eq!(mask.name(), "sink-window(1,3)");
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
