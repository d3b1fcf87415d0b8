//! Masks that are other masks in their limits.

use attn_core::testing::strategies::{self, length, offsets};
use attn_core::{BitMask, Lengths, Mask, dense};
use proptest::prelude::*;

use super::{bits, config, normal};

/// The same keys in every row, and therefore the same output, bit for bit.
fn same(lengths: Lengths, a: &Mask, b: &Mask) {
    for i in 0..lengths.queries {
        let keys = |mask: &Mask| mask.keys(lengths, i).collect::<Vec<_>>();
        assert_eq!(keys(a), keys(b), "query {i}: {a:?}, {b:?}");
    }
    let arrays = normal([1, 2, 1, lengths.queries, lengths.keys, 5, 3]);
    let output = |mask: &Mask| dense::forward(arrays.view(), &config(mask.clone())).unwrap();
    assert_eq!(bits(&output(a)), bits(&output(b)), "{a:?}, {b:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn of_any_lengths(queries in length(), keys in length(), window in 0..9_usize) {
        let lengths = Lengths::new(queries, keys);
        let far = queries.max(keys);
        same(lengths, &Mask::PrefixLm { prefix: 0 }, &Mask::Causal);
        same(lengths, &Mask::PrefixLm { prefix: keys }, &Mask::Full);
        same(lengths, &Mask::Window { left: far, right: far }, &Mask::Full);
        same(lengths, &Mask::Window { left: far, right: 0 }, &Mask::Causal);
        let windowed = Mask::Window { left: window, right: 0 };
        same(lengths, &Mask::SinkWindow { left: window, sinks: 0 }, &windowed);
        for (left, sinks) in [(far, window), (usize::MAX, window), (window, keys), (0, usize::MAX)] {
            same(lengths, &Mask::SinkWindow { left, sinks }, &Mask::Causal);
        }
        same(lengths, &Mask::GlobalWindow { window, global: 0 }, &Mask::Window { left: window, right: window });
        same(lengths, &Mask::GlobalWindow { window, global: keys }, &Mask::Full);
        for inner in [Mask::Full, Mask::Causal, Mask::Window { left: 3, right: 1 }, Mask::PrefixLm { prefix: 4 }] {
            let one = Mask::Documents {
                cu_q: vec![0, queries], cu_k: vec![0, keys], inner: Box::new(inner.clone()),
            };
            same(lengths, &one, &inner);
        }
        for cu in [vec![0, keys], vec![0, 0, keys, keys]] {
            same(lengths, &Mask::ShareQuestion { cu: cu.clone() }, &Mask::Causal);
            same(lengths, &Mask::CausalBlockwise { cu }, &Mask::Causal);
        }
    }

    #[test]
    fn of_bits((lengths, mask) in (length(), length()).prop_flat_map(|(queries, keys)| {
        let lengths = Lengths::new(queries, keys);
        (Just(lengths), strategies::mask(lengths))
    })) {
        let Lengths { queries, keys } = lengths;
        let bits = BitMask::from_fn(queries, keys, |i, t| mask.allows(lengths, i, t));
        same(lengths, &Mask::Bits(bits), &mask);
    }

    #[test]
    fn of_documents((n, cu) in length().prop_flat_map(|n| (Just(n), offsets(n)))) {
        let lengths = Lengths::new(n, n);
        let causal = Mask::documents(&cu, Mask::Causal);
        same(lengths, &Mask::BlockCausalDocuments { cu: cu.clone(), block: 1 }, &causal);
        let whole = Mask::BlockCausalDocuments { cu: cu.clone(), block: n.max(1) };
        same(lengths, &whole, &Mask::documents(&cu, Mask::Full));
    }
}

/// Reach of exactly N - 1 is already everything.
#[test]
fn window_of_all_keys() {
    let lengths = Lengths::new(17, 17);
    same(lengths, &Mask::Window { left: 16, right: 16 }, &Mask::Full);
    same(lengths, &Mask::Window { left: 16, right: 0 }, &Mask::Causal);
    assert_ne!(Mask::Window { left: 15, right: 0 }.pairs(lengths), Mask::Causal.pairs(lengths));
}
