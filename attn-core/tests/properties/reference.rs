use attn_core::dense::{self, Inputs, Output};
use attn_core::ndarray::{Array4, Axis, concatenate, s};
use attn_core::testing::strategies::{Case, case};
use attn_core::testing::{HostArrays, HostInputs, Values};
use attn_core::{AttentionShape, Mask, ModifierArgs};
use proptest::prelude::*;

use super::{bits, close, config, full_case, normal, row_bits};

const WORK: usize = 300_000;

/// Softmax attention as the formulas say it, pair by pair.
fn literal(arrays: &HostArrays, case: &Case) -> Output {
    let AttentionShape { batch, heads, queries, keys, dim_qk, dim_v, .. } = case.shape;
    let HostArrays { q, k, v, sinks } = arrays;
    let (config, lengths) = (&case.config, case.shape.lengths());
    let mut output = dense::forward_with_probs(arrays.view(), config).unwrap();
    output.out.fill(0.0);
    let probs = output.probs.as_mut().unwrap();
    let scale = config.scale.unwrap_or(1.0 / (dim_qk as f64).sqrt());
    for (b, h, i) in
        (0..batch).flat_map(|b| (0..heads).flat_map(move |h| (0..queries).map(move |i| (b, h, i))))
    {
        let h_kv = h / (heads / case.shape.heads_kv);
        let (end_query, (first_key, document_keys)) = match &config.mask {
            Mask::Documents { cu_q, cu_k, .. } => {
                let d = (0..cu_q.len() - 1).find(|&d| i < cu_q[d + 1]).unwrap();
                (cu_q[d + 1], (cu_k[d], cu_k[d + 1] - cu_k[d]))
            }
            _ => (queries, (0, keys)),
        };
        let position = i as i64 - end_query as i64 + document_keys as i64;
        let logit = |t: usize| {
            if !config.mask.allows(lengths, i, t) {
                return f64::NEG_INFINITY;
            }
            let product: f64 = (0..dim_qk).map(|d| q[[b, h, i, d]] * k[[b, h_kv, t, d]]).sum();
            let scaled = scale * product;
            let capped = config.soft_cap.map_or(scaled, |cap| cap * (scaled / cap).tanh());
            let at = ModifierArgs { batch: b, head: h, position, key: t - first_key };
            config.modifier.as_ref().map_or(capped, |m| m.host().unwrap()(capped, &at))
        };
        let logits: Vec<f64> = (0..keys).map(logit).collect();
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sink = sinks.as_ref().map_or(f64::NEG_INFINITY, |sinks| sinks[h]);
        let shift = max.max(sink);
        let weight = |s: f64| if s == f64::NEG_INFINITY { 0.0 } else { (s - shift).exp() };
        let sum: f64 = logits.iter().map(|&s| weight(s)).sum::<f64>() + weight(sink);
        output.lse[[b, h, i]] = shift + sum.ln();
        output.row_max[[b, h, i]] = max;
        for t in 0..keys {
            let p = if sum == 0.0 { 0.0 } else { weight(logits[t]) / sum };
            probs[[b, h, i, t]] = p;
            for d in 0..dim_v {
                output.out[[b, h, i, d]] += p * v[[b, h_kv, t, d]];
            }
        }
    }
    output
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn is_the_literal_softmax((case, inputs) in full_case(WORK)) {
        let arrays = inputs.to_f64().unwrap();
        let got = dense::forward_with_probs(arrays.view(), &case.config).unwrap();
        let want = literal(&arrays, &case);
        let largest = |array: &Array4<f64>| array.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
        // What summing the logits in another order can change, and what that does to a weight.
        let dim = case.shape.dim_qk as f64;
        let logit = largest(&arrays.q) * largest(&arrays.k) * case.config.scale_for(case.shape.dim_qk).abs() * dim;
        let rounding = 1e-15 * (2.0 * dim * logit + 4.0 * case.shape.keys as f64 + 4.0);
        close(&got.lse, &want.lse, rounding)?;
        close(&got.row_max, &want.row_max, rounding)?;
        let (p, want_p) = (got.probs.as_ref().unwrap(), want.probs.as_ref().unwrap());
        close(p, want_p, rounding)?;
        close(&got.out, &want.out, rounding * largest(&arrays.v) * 2.0)?;
        for ((at, &argmax), &max) in got.argmax.indexed_iter().zip(&got.row_max) {
            let keys: Vec<usize> = case.config.mask.keys(case.shape.lengths(), at.2).collect();
            prop_assert_eq!(argmax.is_none(), keys.is_empty());
            prop_assert_eq!(argmax.is_none(), max == f64::NEG_INFINITY);
            prop_assert!(argmax.is_none_or(|t| keys.contains(&t)));
            let of_sink = arrays.sinks.as_ref().map_or(0.0, |sinks| (sinks[at.1] - got.lse[at]).exp());
            let total = p.slice(s![at.0, at.1, at.2, ..]).sum() + of_sink;
            let something = argmax.is_some() || arrays.sinks.is_some();
            prop_assert!((total - f64::from(something)).abs() < 1e-12);
        }
        let plain = dense::forward(arrays.view(), &case.config).unwrap();
        prop_assert_eq!(bits(&plain), bits(&got), "asking for probabilities changes nothing");
    }

    #[test]
    fn masked_keys_and_values_are_never_read(case in case(WORK), row in any::<prop::sample::Index>()) {
        prop_assume!(case.shape.queries > 0);
        let arrays = case.inputs().to_f64().unwrap();
        let i = row.index(case.shape.queries);
        let clean = dense::forward(arrays.view(), &case.config).unwrap();
        for poison in [f64::NAN, f64::INFINITY] {
            let mut poisoned = arrays.clone();
            for t in (0..case.shape.keys).filter(|&t| !case.config.mask.allows(case.shape.lengths(), i, t)) {
                poisoned.k.slice_mut(s![.., .., t, ..]).fill(poison);
                poisoned.v.slice_mut(s![.., .., t, ..]).fill(poison);
            }
            let output = dense::forward(poisoned.view(), &case.config).unwrap();
            for (b, h) in (0..case.shape.batch).flat_map(|b| (0..case.shape.heads).map(move |h| (b, h))) {
                prop_assert_eq!(row_bits(&output, [b, h, i]), row_bits(&clean, [b, h, i]));
            }
        }
    }

    #[test]
    fn nan_in_an_allowed_key_spoils_only_rows_that_see_it(case in case(WORK), key in any::<prop::sample::Index>()) {
        prop_assume!(case.shape.keys > 0);
        let mut arrays = case.inputs().to_f64().unwrap();
        let clean = dense::forward(arrays.view(), &case.config).unwrap();
        let t = key.index(case.shape.keys);
        arrays.k.slice_mut(s![.., .., t, ..]).fill(f64::NAN);
        arrays.v.slice_mut(s![.., .., t, ..]).fill(f64::NEG_INFINITY);
        let output = dense::forward(arrays.view(), &case.config).unwrap();
        for ((b, h, i), _) in clean.lse.indexed_iter() {
            if !case.config.mask.allows(case.shape.lengths(), i, t) {
                prop_assert_eq!(row_bits(&output, [b, h, i]), row_bits(&clean, [b, h, i]));
            }
        }
    }

    #[test]
    fn a_batch_entry_and_a_head_alone_have_the_same_bits(case in case(WORK)) {
        let HostArrays { q, k, v, .. } = case.inputs().to_f64().unwrap();
        let all = dense::forward(Inputs::new(q.view(), k.view(), v.view()), &case.config).unwrap();
        for (b, h) in (0..case.shape.batch).flat_map(|b| (0..case.shape.heads).map(move |h| (b, h))) {
            let h_kv = h / case.shape.group();
            let inputs = Inputs::new(
                q.slice(s![b..=b, h..=h, .., ..]),
                k.slice(s![b..=b, h_kv..=h_kv, .., ..]),
                v.slice(s![b..=b, h_kv..=h_kv, .., ..]),
            );
            let alone = dense::forward(inputs, &case.config).unwrap();
            for i in 0..case.shape.queries {
                prop_assert_eq!(row_bits(&alone, [0, 0, i]), row_bits(&all, [b, h, i]));
            }
        }
    }

    #[test]
    fn chosen_rows_have_the_same_bits(case in case(WORK), picks in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
        prop_assume!(case.shape.queries > 0);
        let arrays = case.inputs().to_f64().unwrap();
        let all = dense::forward(arrays.view(), &case.config).unwrap();
        let rows: Vec<usize> = picks.iter().map(|pick| pick.index(case.shape.queries)).collect();
        let chosen = dense::forward_rows(arrays.view(), &case.config, &rows).unwrap();
        prop_assert_eq!(chosen.lse.dim(), (case.shape.batch, case.shape.heads, rows.len()));
        for ((b, h, i), _) in chosen.lse.indexed_iter() {
            prop_assert_eq!(row_bits(&chosen, [b, h, i]), row_bits(&all, [b, h, rows[i]]));
        }
    }

    #[test]
    fn strides_change_nothing(case in case(WORK)) {
        let arrays = case.inputs().to_f64().unwrap();
        // Stored as [batch, tokens, heads, dim], seen as [batch, heads, tokens, dim].
        let restore = |array: &Array4<f64>| array.view().permuted_axes([0, 2, 1, 3]).as_standard_layout().into_owned();
        let (q, k, v) = (restore(&arrays.q), restore(&arrays.k), restore(&arrays.v));
        let inputs = Inputs::new(
            q.view().permuted_axes([0, 2, 1, 3]),
            k.view().permuted_axes([0, 2, 1, 3]),
            v.view().permuted_axes([0, 2, 1, 3]),
        );
        let want = dense::forward(arrays.view(), &case.config).unwrap();
        prop_assert_eq!(bits(&dense::forward(inputs, &case.config).unwrap()), bits(&want));
    }

    #[test]
    fn a_later_token_never_changes_an_earlier_output(case in case(WORK), key in any::<prop::sample::Index>()) {
        prop_assume!(case.shape.keys > 0);
        let causal = config(Mask::Causal);
        // Normal inputs: every key has a weight that can be seen.
        let inputs = HostInputs::random(case.shape, case.seed, Values::Normal);
        let mut arrays = inputs.to_f64().unwrap();
        let before = dense::forward(arrays.view(), &causal).unwrap();
        let t = key.index(case.shape.keys);
        arrays.k.slice_mut(s![.., .., t.., ..]).mapv_inplace(|x| x + 1.0);
        arrays.v.slice_mut(s![.., .., t.., ..]).mapv_inplace(|x| x - 1.0);
        let after = dense::forward(arrays.view(), &causal).unwrap();
        for ((b, h, i), _) in before.lse.indexed_iter() {
            if case.shape.lengths().position(i) < t as i64 {
                prop_assert_eq!(row_bits(&after, [b, h, i]), row_bits(&before, [b, h, i]));
            } else {
                prop_assert_ne!(row_bits(&after, [b, h, i]), row_bits(&before, [b, h, i]));
            }
        }
    }
}

/// The last query is aligned with the last key, so a prompt may come in chunks.
#[test]
fn queries_that_are_the_tail_of_longer_keys() {
    let n = 64;
    let HostArrays { q, k, v, .. } = normal([1, 6, 2, n, n, 24, 40]);
    for mask in [Mask::Causal, Mask::Window { left: 9, right: 0 }, Mask::PrefixLm { prefix: 7 }] {
        let inputs = Inputs::new(q.view(), k.view(), v.view());
        let full = dense::forward(inputs, &config(mask.clone())).unwrap();
        for (queries, keys) in [(2, 3), (1, n), (5, n), (1, 1), (17, 33), (n, n)] {
            // A prefix that is seen as a whole has to be there as a whole.
            if matches!(mask, Mask::PrefixLm { prefix } if prefix > keys) {
                continue;
            }
            let inputs = Inputs::new(
                q.slice(s![.., .., keys - queries..keys, ..]),
                k.slice(s![.., .., ..keys, ..]),
                v.slice(s![.., .., ..keys, ..]),
            );
            let chunk = dense::forward(inputs, &config(mask.clone())).unwrap();
            for ((b, h, i), _) in chunk.lse.indexed_iter() {
                let want = row_bits(&full, [b, h, keys - queries + i]);
                assert_eq!(
                    row_bits(&chunk, [b, h, i]),
                    want,
                    "{mask:?} ({queries}, {keys}) row {i}"
                );
            }
        }
    }
}

#[test]
fn packed_documents_are_separate_calls() {
    let HostArrays { q, k, v, .. } = normal([2, 3, 1, 20, 30, 16, 9]);
    let (cu_q, cu_k) = (vec![0, 7, 7, 15, 20], vec![0, 12, 16, 16, 30]);
    let mask =
        Mask::Documents { cu_q: cu_q.clone(), cu_k: cu_k.clone(), inner: Box::new(Mask::Causal) };
    let packed = dense::forward(Inputs::new(q.view(), k.view(), v.view()), &config(mask)).unwrap();
    for d in 0..4 {
        let inputs = Inputs::new(
            q.slice(s![.., .., cu_q[d]..cu_q[d + 1], ..]),
            k.slice(s![.., .., cu_k[d]..cu_k[d + 1], ..]),
            v.slice(s![.., .., cu_k[d]..cu_k[d + 1], ..]),
        );
        let alone = dense::forward(inputs, &config(Mask::Causal)).unwrap();
        for ((b, h, i), lse) in alone.lse.indexed_iter() {
            let at = [b, h, cu_q[d] + i];
            assert_eq!(lse.to_bits(), packed.lse[at].to_bits());
            assert_eq!(alone.out.slice(s![b, h, i, ..]), packed.out.slice(s![b, h, at[2], ..]));
        }
    }
}

#[test]
fn grouped_queries_are_repeated_keys() {
    for group in [1, 2, 3, 5, 6, 7, 8, 9, 16] {
        let HostArrays { q, k, v, .. } = normal([2, 2 * group, 2, 5, 7, 6, 4]);
        let repeat = |array: &Array4<f64>| {
            let heads: Vec<_> = (0..2 * group)
                .map(|h| array.slice(s![.., h / group..=h / group, .., ..]))
                .collect();
            concatenate(Axis(1), &heads).unwrap()
        };
        let (all_k, all_v) = (repeat(&k), repeat(&v));
        let grouped = Inputs::new(q.view(), k.view(), v.view());
        let repeated = Inputs::new(q.view(), all_k.view(), all_v.view());
        let output = |inputs| dense::forward(inputs, &config(Mask::Causal)).unwrap();
        assert_eq!(bits(&output(grouped)), bits(&output(repeated)), "group {group}");
    }
}

#[test]
fn many_equal_logits() {
    let shape = super::shape([1, 1, 1, 3, 4096, 64, 5]);
    let inputs = HostInputs::random(shape, 1, Values::Constant);
    let output =
        dense::forward_with_probs(inputs.to_f64().unwrap().view(), &config(Mask::Full)).unwrap();
    assert!(output.probs.unwrap().iter().all(|&p| p == 1.0 / 4096.0));
    assert!(output.out.iter().all(|&x| x == 0.5));
    // 64 products of 0.25, scaled by 1/8.
    assert!(output.lse.iter().all(|&lse| (lse - (2.0 + 4096_f64.ln())).abs() < 1e-14));
    assert!(output.argmax.iter().all(|&argmax| argmax == Some(0)), "the lowest key on ties");
}
