//! One more logit in the denominator of every row.

use attn_core::dense::{self, Config, Cotangents, Inputs};
use attn_core::ndarray::{Array1, Array3, Array4, Axis, concatenate, s};
use attn_core::testing::strategies::{case, mask};
use attn_core::testing::{HostArrays, HostInputs, Values, fill};
use attn_core::{BitMask, Error, Mask};
use proptest::prelude::*;

use super::{bits, close, config, normal, shape};

fn random(shape: [usize; 4], stream: u64) -> Array4<f64> {
    let data = fill(9, stream, Values::Normal, shape.iter().product());
    Array4::from_shape_vec(shape, data.into_iter().map(f64::from).collect()).unwrap()
}

/// `array` with one more row before each head's first, and then one more column.
fn extended(array: &Array4<f64>, row: bool, column: f64) -> Array4<f64> {
    let (batch, heads, _, dim) = array.dim();
    let first = Array4::zeros((batch, heads, usize::from(row), dim));
    let tall = concatenate(Axis(2), &[first.view(), array.view()]).unwrap();
    let rows = tall.dim().2;
    let last = Array4::from_elem((batch, heads, rows, 1), column);
    concatenate(Axis(3), &[tall.view(), last.view()]).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// A key in front that everybody sees, of which only the last element is not 0: queries have 1
    /// there, so that its logit is the sink. Its value is 0.
    #[test]
    fn are_one_more_key_with_value_0(
        (extents, mask) in (1..=2_usize, 1..=3_usize, 0..=9_usize, 0..=40_usize, 1..=9_usize, 1..=5_usize)
            .prop_map(|(b, h, m, n, d, dv)| [b, h, h, m, n, d, dv])
            .prop_flat_map(|extents| (Just(extents), mask(shape(extents).lengths()))),
        seed in any::<u64>(),
    ) {
        let shape = shape(extents);
        let inputs = HostInputs::random(shape, seed, Values::Normal).with_random_sinks(seed);
        let arrays = inputs.to_f64().unwrap();
        let sinks = arrays.sinks.as_ref().unwrap();
        let config = config(mask).with_scale(0.7);
        let lengths = shape.lengths();
        let longer = BitMask::from_fn(shape.queries, shape.keys + 1, |i, t| {
            t.checked_sub(1).is_none_or(|t| config.mask.allows(lengths, i, t))
        });
        let longer = Config::new().with_scale(0.7).with_mask(Mask::Bits(longer));
        let q = extended(&arrays.q, false, 1.0);
        let mut k = extended(&arrays.k, true, 0.0);
        for (h, sink) in sinks.iter().enumerate() {
            k.slice_mut(s![.., h, 0, shape.dim_qk]).fill(sink / 0.7);
        }
        let v = extended(&arrays.v, true, 0.0);
        let one_more = Inputs::new(q.view(), k.view(), v.view());

        let got = dense::forward_with_probs(arrays.view(), &config).unwrap();
        let want = dense::forward_with_probs(one_more, &longer).unwrap();
        close(&got.out, want.out.slice(s![.., .., .., ..shape.dim_v]), 1e-12)?;
        close(&got.lse, &want.lse, 1e-12)?;
        close(got.probs.as_ref().unwrap(), want.probs.as_ref().unwrap().slice(s![.., .., .., 1..]), 1e-12)?;

        let d_out = random(shape.out(), 1);
        let more_d_out = extended(&d_out, false, 0.0);
        let [batch, heads, queries] = shape.lse();
        let d_lse: Array3<f64> = random([batch, heads, queries, 1], 2).remove_axis(Axis(3));
        let lse = Some(d_lse.view());
        let got = dense::backward(arrays.view(), &config, &got, Cotangents { out: d_out.view(), lse }).unwrap();
        let want = dense::backward(one_more, &longer, &want, Cotangents { out: more_d_out.view(), lse }).unwrap();
        close(&got.dq, want.dq.slice(s![.., .., .., ..shape.dim_qk]), 1e-12)?;
        close(&got.dk, want.dk.slice(s![.., .., 1.., ..shape.dim_qk]), 1e-12)?;
        close(&got.dv, want.dv.slice(s![.., .., 1.., ..shape.dim_v]), 1e-12)?;
        let d_sinks: Array1<f64> = want.dk.slice(s![.., .., 0, shape.dim_qk]).sum_axis(Axis(0)) / 0.7;
        close(got.d_sinks.as_ref().unwrap(), &d_sinks, 1e-12)?;
    }

    #[test]
    fn of_minus_infinity_are_none(case in case(50_000)) {
        let mut arrays = case.inputs().to_f64().unwrap();
        let without = dense::forward(arrays.view(), &case.config).unwrap();
        let d_out = random(case.shape.out(), 1);
        let cotangents = Cotangents { out: d_out.view(), lse: None };
        let grads = dense::backward(arrays.view(), &case.config, &without, cotangents).unwrap();
        arrays.sinks = Some(Array1::from_elem(case.shape.heads, f64::NEG_INFINITY));
        let with = dense::forward(arrays.view(), &case.config).unwrap();
        prop_assert_eq!(bits(&with), bits(&without));
        let mut of_sinks = dense::backward(arrays.view(), &case.config, &with, cotangents).unwrap();
        prop_assert!(of_sinks.d_sinks.take().unwrap().iter().all(|&x| x == 0.0));
        prop_assert!(of_sinks == grads);
    }
}

#[test]
fn rows_without_keys_have_the_sink_as_log_sum_exp() {
    let mut arrays = normal([2, 4, 2, 7, 4, 5, 6]);
    arrays.sinks = Some(Array1::from_vec(vec![-3.0, 0.0, 1e-3, 700.0]));
    let output = dense::forward_with_probs(arrays.view(), &config(Mask::Causal)).unwrap();
    for ((b, h, i), lse) in output.lse.indexed_iter().filter(|(at, _)| at.2 < 3) {
        assert_eq!(*lse, arrays.sinks.as_ref().unwrap()[h]);
        assert_eq!(output.argmax[[b, h, i]], None);
        assert_eq!(output.row_max[[b, h, i]], f64::NEG_INFINITY);
        assert!(output.out.slice(s![b, h, i, ..]).iter().all(|x| x.to_bits() == 0));
    }
    let finite = |array: &Array4<f64>| array.iter().all(|x| x.is_finite());
    assert!(finite(&output.out) && finite(output.probs.as_ref().unwrap()));
}

/// Neither the scale, nor the soft-cap, nor a modifier is for them.
#[test]
fn are_as_they_are() {
    let arrays =
        HostArrays { sinks: Some(Array1::from_elem(2, 5.0)), ..normal([1, 2, 1, 3, 0, 4, 4]) };
    let modifier = attn_core::Modifier::temperature(&[3.0]);
    let config = Config::new().with_scale(0.1).with_soft_cap(1.0).with_modifier(modifier);
    let output = dense::forward(arrays.view(), &config).unwrap();
    assert!(output.lse.iter().all(|&lse| lse == 5.0));
}

#[test]
fn of_another_number_are_refused() {
    let arrays = normal([1, 4, 2, 3, 4, 5, 6]);
    let sinks = Array1::zeros(3);
    let error = dense::forward(arrays.view().with_sinks(sinks.view()), &Config::new()).unwrap_err();
    assert_eq!(error, Error::shape("sinks", "[4]", &[3]));
    let mut inputs = HostInputs::random(shape([1, 4, 2, 3, 4, 5, 6]), 1, Values::Normal);
    inputs.sinks = Some(vec![0.0; 3]);
    assert_eq!(inputs.to_f64().unwrap_err(), error);
    let simple = attn_core::testing::simple_f32(&inputs, &Config::new()).unwrap_err();
    assert!(matches!(simple, Error::Shape { arg: "sinks", .. }));
}
