//! Results over parts of the keys, and what each key receives.

use attn_core::dense::{self, Config, Cotangents, Inputs};
use attn_core::ndarray::{Array3, Array4, Axis, s};
use attn_core::testing::uniform;
use attn_core::{BitMask, Error, Mask};
use proptest::prelude::*;

use super::{close, config, full_case, normal};

type Part = (Array4<f64>, Array3<f64>);

fn merge(parts: &[&Part]) -> Part {
    let views: Vec<_> = parts.iter().map(|(out, lse)| (out.view(), lse.view())).collect();
    dense::merge(&views).unwrap()
}

fn part_bits((out, lse): &Part) -> Vec<u64> {
    out.iter().chain(lse).map(|x| x.to_bits()).collect()
}

/// A part of the shape of another, with nothing in it; nobody may read its output.
fn empty_part((out, lse): &Part, mark: f64) -> Part {
    (Array4::from_elem(out.dim(), f64::NAN), Array3::from_elem(lse.dim(), mark))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn merged_are_the_whole((case, inputs) in full_case(100_000), parts in 2..=4_usize, seed in any::<u64>()) {
        let arrays = inputs.to_f64().unwrap();
        let whole = dense::forward(arrays.view(), &case.config).unwrap();
        let lengths = case.shape.lengths();
        // Every key belongs to one part; the first part has the sinks.
        let owner = |t: usize| (uniform(seed, 0, t as u64) * parts as f64) as usize;
        let of = |part: usize| {
            let bits = BitMask::from_fn(lengths.queries, lengths.keys, |i, t| {
                owner(t) == part && case.config.mask.allows(lengths, i, t)
            });
            (case.config.clone().with_mask(Mask::Bits(bits)), Inputs { sinks: arrays.view().sinks.filter(|_| part == 0), ..arrays.view() })
        };
        // Bits count positions over all keys: not the same modifier inside documents.
        prop_assume!(case.config.modifier.is_none() || !matches!(case.config.mask, Mask::Documents { .. }));
        let all: Vec<Part> = (0..parts).map(of).map(|(config, inputs)| {
            let output = dense::forward(inputs, &config).unwrap();
            (output.out, output.lse)
        }).collect();
        let size = 1.0 + arrays.v.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
        let logit = whole.row_max.iter().filter(|x| x.is_finite()).fold(1.0_f64, |m, x| m.max(x.abs()));
        let tolerance = 1e-15 * (logit + 20.0) * 20.0;

        let forwards: Vec<&Part> = all.iter().collect();
        let backwards: Vec<&Part> = all.iter().rev().collect();
        let from_left = all[1..].iter().fold(all[0].clone(), |sum, part| merge(&[&sum, part]));
        let last = all[parts - 1].clone();
        let from_right = all[..parts - 1].iter().rev().fold(last, |sum, part| merge(&[part, &sum]));
        for (out, lse) in [merge(&forwards), merge(&backwards), from_left, from_right] {
            close(&out, &whole.out, tolerance * size)?;
            close(&lse, &whole.lse, tolerance)?;
        }
        let merged = merge(&forwards);
        for mark in [f64::NEG_INFINITY, -3.0e38, -1e29] {
            let nothing = empty_part(&merged, mark);
            prop_assert_eq!(part_bits(&merge(&[&merged, &nothing])), part_bits(&merged));
            prop_assert_eq!(part_bits(&merge(&[&nothing, &nothing, &merged])), part_bits(&merged));
            let (out, lse) = merge(&[&nothing, &nothing]);
            prop_assert!(out.iter().all(|x| x.to_bits() == 0));
            prop_assert!(lse.iter().all(|&lse| lse == f64::NEG_INFINITY));
        }
    }

    #[test]
    fn column_sums_are_those_of_the_probabilities((case, inputs) in full_case(100_000)) {
        let arrays = inputs.to_f64().unwrap();
        let output = dense::forward_with_probs(arrays.view(), &case.config).unwrap();
        let got = dense::column_sums(arrays.view(), &case.config, &output).unwrap();
        let want = output.probs.as_ref().unwrap().sum_axis(Axis(2));
        prop_assert_eq!(got.dim(), want.dim());
        let logit = output.row_max.iter().filter(|x| x.is_finite()).fold(1.0_f64, |m, x| m.max(x.abs()));
        close(&got, &want, 1e-15 * (logit + 20.0) * (1.0 + case.shape.queries as f64))?;
    }
}

/// Windows that do not overlap are parts as well.
#[test]
fn near_and_far_keys_are_the_whole() {
    let arrays = normal([1, 3, 1, 40, 40, 8, 5]);
    let part = |mask| {
        let output = dense::forward(arrays.view(), &config(mask)).unwrap();
        (output.out, output.lse)
    };
    let far = Mask::Bits(BitMask::from_fn(40, 40, |i, t| t + 7 < i));
    let merged = merge(&[&part(Mask::Window { left: 7, right: 0 }), &part(far)]);
    let whole = part(Mask::Causal);
    assert!((&merged.0 - &whole.0).iter().all(|x| x.abs() < 1e-14));
    assert!((&merged.1 - &whole.1).iter().all(|x| x.abs() < 1e-14));
}

/// One part may be larger than another by more than a double can hold.
#[test]
fn log_sum_exps_far_apart() {
    let part = |out: f64, lse: f64| {
        (Array4::from_elem((1, 1, 1, 1), out), Array3::from_elem((1, 1, 1), lse))
    };
    for (a, b) in [(1e5, -1e5), (-1e5, 1e5), (1e28, 0.0), (-1e28, -2e28)] {
        let (out, lse) = merge(&[&part(1.0, a), &part(2.0, b)]);
        let (want, largest) = if a > b { (1.0, a) } else { (2.0, b) };
        assert_eq!((out[[0, 0, 0, 0]], lse[[0, 0, 0]]), (want, largest));
    }
    let negative_zero = part(-0.0, -0.0);
    let merged = merge(&[&part(f64::NAN, f64::NEG_INFINITY), &negative_zero]);
    assert_eq!(part_bits(&merged), part_bits(&negative_zero));
    let (out, lse) = merge(&[&part(1.0, 800.0), &part(2.0, 800.0)]);
    assert_eq!((out[[0, 0, 0, 0]], lse[[0, 0, 0]]), (1.5, 800.0 + 2_f64.ln()));
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    assert!(matches!(dense::merge(&[]), Err(Error::Data { arg: "parts", .. })));
    let (out, lse) = (Array4::zeros((1, 2, 3, 4)), Array3::zeros((1, 2, 3)));
    let (other_out, other_lse) = (Array4::zeros((1, 2, 3, 5)), Array3::zeros((1, 2, 4)));
    let good = (out.view(), lse.view());
    for bad in [(other_out.view(), lse.view()), (out.view(), other_lse.view())] {
        assert!(matches!(dense::merge(&[good, bad]), Err(Error::Shape { .. })));
    }
    assert!(matches!(dense::merge(&[(out.view(), other_lse.view())]), Err(Error::Shape { .. })));
    assert!(dense::merge(&[good]).is_ok());

    let arrays = normal([1, 2, 1, 3, 4, 5, 6]);
    let some = dense::forward_rows(arrays.view(), &Config::new(), &[0]).unwrap();
    let error = dense::column_sums(arrays.view(), &Config::new(), &some).unwrap_err();
    assert!(matches!(error, Error::Shape { arg: "output.lse", .. }));
}

/// Gradients of a part, from the log-sum-exp and output of the whole, add up to those of the whole.
#[test]
fn gradients_of_parts_add_up() {
    let arrays = normal([1, 4, 2, 6, 9, 5, 3]);
    let whole = dense::forward(arrays.view(), &Config::new()).unwrap();
    let d_out = arrays.v.slice(s![.., .., ..6, ..]);
    let d_out = attn_core::ndarray::concatenate(Axis(1), &[d_out, d_out]).unwrap();
    let cotangents = Cotangents { out: d_out.view(), lse: None };
    let grads =
        |config: &Config| dense::backward(arrays.view(), config, &whole, cotangents).unwrap();
    let part = |odd: bool| config(Mask::Bits(BitMask::from_fn(6, 9, |_, t| (t % 2 == 1) == odd)));
    let (all, even, odd) = (grads(&Config::new()), grads(&part(false)), grads(&part(true)));
    for (all, even, odd) in
        [(all.dq, even.dq, odd.dq), (all.dk, even.dk, odd.dk), (all.dv, even.dv, odd.dv)]
    {
        assert!((all - even - odd).iter().all(|x| x.abs() < 1e-14));
    }
}
