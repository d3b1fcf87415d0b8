//! Extents of 0, rows without keys, and calls that are wrong.

use attn_core::dense::{self, Config, Inputs};
use attn_core::ndarray::{Array4, ArrayView4};
use attn_core::{AttentionShape, Error, Mask};

use super::{config, normal, shape};

#[test]
fn every_extent_may_be_0() {
    let ones = [2, 6, 3, 5, 7, 4, 3];
    for axis in 0..7 {
        let mut extents = ones;
        extents[axis] = 0;
        if axis == 2 {
            extents[1] = 0;
        }
        if axis == 1 {
            extents[2] = 0;
        }
        let arrays = normal(extents);
        let output = dense::forward_with_probs(arrays.view(), &config(Mask::Full)).unwrap();
        assert_eq!(output.out.shape(), shape(extents).out(), "axis {axis}");
        assert!(output.out.iter().all(|x| x.is_finite()), "axis {axis}");
        let no_keys = extents[4] == 0;
        assert!(output.lse.iter().all(|&lse| (lse == f64::NEG_INFINITY) == no_keys), "axis {axis}");
        assert!(dense::forward_rows(arrays.view(), &config(Mask::Causal), &[]).is_ok());
    }
    let no_keys_of_heads = AttentionShape::from_shapes(&[1, 4, 1, 1], &[1, 0, 1, 1], &[1, 0, 1, 1]);
    assert!(no_keys_of_heads.is_err());
}

#[test]
fn rows_without_keys_are_0_and_minus_infinity() {
    let arrays = normal([2, 3, 1, 7, 4, 5, 6]);
    let documents =
        Mask::Documents { cu_q: vec![0, 3, 7], cu_k: vec![0, 0, 4], inner: Box::new(Mask::Full) };
    for (mask, empty) in
        [(Mask::Causal, 3), (documents, 3), (Mask::Window { left: 0, right: 0 }, 3)]
    {
        let output = dense::forward_with_probs(arrays.view(), &config(mask)).unwrap();
        for ((b, h, i), lse) in output.lse.indexed_iter() {
            assert_eq!(lse.to_bits() == f64::NEG_INFINITY.to_bits(), i < empty, "({b}, {h}, {i})");
            assert_eq!(output.argmax[[b, h, i]].is_none(), i < empty);
            let out = output.out.slice(attn_core::ndarray::s![b, h, i, ..]);
            assert!(i >= empty || out.iter().all(|x| x.to_bits() == 0));
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let good = ([2, 8, 5, 4], [2, 2, 7, 4], [2, 2, 7, 3]);
    assert_eq!(
        AttentionShape::from_shapes(&good.0, &good.1, &good.2),
        Ok(shape([2, 8, 2, 5, 7, 4, 3]))
    );
    let message = |q: &[usize], k: &[usize], v: &[usize]| {
        AttentionShape::from_shapes(q, k, v).unwrap_err().to_string()
    };
    let (q, k, v) = good;
    let cases = [
        (
            message(&[8, 5, 4], &k, &v),
            "`q` has shape [8, 5, 4], expected [batch, heads, queries, dim_qk]",
        ),
        (message(&q, &[2], &v), "`k` has shape [2], expected [batch, heads_kv, keys, dim_qk]"),
        (message(&q, &k, &[]), "`v` has shape [], expected [batch, heads_kv, keys, dim_v]"),
        (message(&q, &[3, 2, 7, 4], &v), "`k` has shape [3, 2, 7, 4], expected batch 2 as in q"),
        (message(&q, &[2, 2, 7, 5], &v), "`k` has shape [2, 2, 7, 5], expected dim_qk 4 as in q"),
        (
            message(&q, &[2, 3, 7, 4], &v),
            "`k` has shape [2, 3, 7, 4], expected heads that divide the 8 heads of q",
        ),
        (message(&q, &k, &[1, 2, 7, 3]), "`v` has shape [1, 2, 7, 3], expected batch 2 as in q"),
        (message(&q, &k, &[2, 1, 7, 3]), "`v` has shape [2, 1, 7, 3], expected heads 2 as in k"),
        (message(&q, &k, &[2, 2, 8, 3]), "`v` has shape [2, 2, 8, 3], expected keys 7 as in k"),
    ];
    for (got, want) in cases {
        assert_eq!(got, want);
    }
}

#[test]
fn wrong_parameters_are_refused() {
    let arrays = normal([1, 2, 1, 3, 4, 5, 6]);
    let forward = |config: &Config| dense::forward(arrays.view(), config);
    for scale in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert!(matches!(forward(&Config::new().with_scale(scale)), Err(Error::Config { .. })));
    }
    assert!(matches!(
        forward(&config(Mask::ShareQuestion { cu: vec![0, 3] })),
        Err(Error::Data { .. })
    ));
    let rows = dense::forward_rows(arrays.view(), &Config::new(), &[0, 3]).unwrap_err();
    assert_eq!(rows.to_string(), "`rows` holds 3, expected indices below 3 queries");
    let scale = Config::new().with_scale(0.0);
    let output = forward(&scale).unwrap();
    assert!(output.lse.iter().all(|lse| (lse - 4_f64.ln()).abs() < 1e-15), "a scale of 0 is legal");
}

/// Views of few numbers can have enormous extents; nothing of that size may be allocated.
#[test]
fn enormous_extents_are_refused_or_harmless() {
    let huge = 1 << 58;
    let empty = Array4::<f64>::zeros((0, 1, 1, 1));
    let tall = ArrayView4::from_shape((0, 1, huge, 1), &[]).unwrap();
    let inputs = Inputs::new(tall, empty.view(), empty.view());
    assert!(dense::forward(inputs, &Config::new()).is_ok(), "no row to compute");
    let wide_v = Array4::<f64>::zeros((0, 1, 1, 64));
    let inputs = Inputs { v: wide_v.view(), ..inputs };
    assert!(matches!(dense::forward(inputs, &Config::new()), Err(Error::Shape { .. })));
    let one = Array4::<f64>::zeros((1, 1, 1, 1));
    let repeated = one.broadcast((1, 1, 1 << 62, 1)).unwrap();
    let inputs = Inputs::new(repeated, one.view(), one.view());
    assert!(matches!(dense::forward(inputs, &Config::new()), Err(Error::Shape { .. })));
    assert_eq!(shape([0, 1, 1, huge, huge, 1, 1]).flops(&Mask::Causal), 0.0);
}
