//! What attention can be besides a mask in f32: storage types, soft-cap, sinks, modifiers, explicit
//! bits, split keys, merge, optional statistics.

mod common;

use attn_core::dense::{self, Config};
use attn_core::ndarray::Array;
use attn_core::testing::{Budget, HostInputs, Values, compare, fill, simple_f32, strategies};
use attn_core::{BitMask, Lengths, Mask, Modifier, alibi_slopes};
use attn_wgpu::attention::{Attention, Inputs, Want, merge};
use attn_wgpu::{DType, Error, Gpu, Tensor};
use common::{
    Result32, Uploaded, attend, check, download, gpu, judge, masked, normal, rounded, shape,
};
use proptest::prelude::*;

/// Prefill and decode lengths, in one and in several parts of the keys.
const LENGTHS: [(usize, usize); 6] = [(70, 70), (1, 1), (1, 300), (3, 700), (8, 5), (33, 129)];

#[test]
fn explicit_bits() {
    let Some(gpu) = gpu() else { return };
    for (m, n) in LENGTHS {
        let masks = [
            BitMask::from_fn(m, n, |query, key| (query * 7 + key * 5) % 3 == 0),
            // Whole blocks, so that tiles are skipped and others need no test.
            BitMask::from_fn(m, n, |query, key| (query / 32 + key / 64).is_multiple_of(2)),
            BitMask::from_fn(m, n, |query, _| query % 2 == 1),
            BitMask::from_fn(m, n, |_, _| true),
        ];
        for bits in masks {
            let inputs = normal(shape([2, 4, 2, m, n, 64, 64]), (m + n) as u64);
            check(&gpu, &inputs, &masked(Mask::Bits(bits)));
        }
    }
}

/// NaN in keys and values that explicit bits hide changes nothing.
#[test]
fn nan_behind_bits_changes_nothing() {
    let Some(gpu) = gpu() else { return };
    let (n, dim) = (70, 16);
    for m in [70, 2] {
        let bits = BitMask::from_fn(m, n, |query, key| (query + key) % 3 != 0 && key % 11 != 0);
        let config = masked(Mask::Bits(bits));
        let clean = normal(shape([1, 1, 1, m, n, dim, dim]), 3);
        let want = attend(&gpu, &clean, &config).unwrap();
        let mut dirty = clean.clone();
        for key in (0..n).filter(|key| key % 11 == 0) {
            dirty.k[key * dim..(key + 1) * dim].fill(f32::NAN);
            dirty.v[key * dim..(key + 1) * dim].fill(f32::NAN);
        }
        assert_eq!(attend(&gpu, &dirty, &config).unwrap().bits(), want.bits(), "{m}");
    }
}

#[test]
fn soft_cap() {
    let Some(gpu) = gpu() else { return };
    for (m, n) in LENGTHS {
        for (cap, values) in [(50.0, Values::Normal), (2.0, Values::Normal), (30.0, Values::Huge)] {
            let inputs = HostInputs::random(shape([1, 4, 2, m, n, 64, 64]), 4, values);
            check(&gpu, &inputs, &masked(Mask::Causal).with_soft_cap(cap));
        }
    }
}

#[test]
fn sinks() {
    let Some(gpu) = gpu() else { return };
    for (m, n) in LENGTHS.into_iter().chain([(5, 0), (70, 6)]) {
        let inputs = normal(shape([2, 6, 2, m, n, 64, 40]), 5).with_random_sinks(6);
        check(&gpu, &inputs, &masked(Mask::Causal));
        check(&gpu, &inputs, &masked(Mask::Window { left: 3, right: 0 }));
    }
    // A view that does not begin where bindings may begin.
    let inputs = normal(shape([1, 3, 1, 40, 40, 16, 16]), 5).with_random_sinks(6);
    let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
    let padded = [vec![9.0], inputs.sinks.clone().unwrap()].concat();
    let sinks = Tensor::from_slice(&gpu, &padded, &[4]).unwrap().narrow(0, 1, 3).unwrap();
    let attention = Attention::new(&gpu, masked(Mask::Causal)).unwrap();
    let shifted = attention.forward(uploaded.view().with_sinks(&sinks)).unwrap();
    let want = attention.forward(uploaded.view()).unwrap();
    assert_eq!(shifted.out.to_vec::<f32>().unwrap(), want.out.to_vec::<f32>().unwrap());
}

#[test]
fn alibi_and_temperature() {
    let Some(gpu) = gpu() else { return };
    for (m, n) in LENGTHS {
        let inputs = normal(shape([2, 6, 2, m, n, 64, 64]), 7);
        let factors: Vec<f32> = (0..n.min(90)).map(|i| 0.5 + i as f32 / 60.0).collect();
        for modifier in [Modifier::alibi(&alibi_slopes(6)), Modifier::temperature(&factors)] {
            for mask in [Mask::Causal, Mask::Full, Mask::GlobalWindow { window: 5, global: 2 }] {
                check(&gpu, &inputs, &masked(mask).with_modifier(modifier.clone()));
            }
        }
    }
}

/// Position and key count inside the document; batch and head are those of the call, also where a
/// call is split.
#[test]
fn modifiers_see_their_place() {
    let Some(gpu) = gpu() else { return };
    let place = || {
        Modifier::score(
            "place",
            "let x = score + f32(batch) * 0.5 - f32(head) * 0.25;\n\
             return x + step * f32(position) - 0.01 * f32(key);",
        )
        .with_scalar("step", 0.02)
        .with_host(|score, at| {
            let x = score + at.batch as f64 * 0.5 - at.head as f64 * 0.25;
            x + f64::from(0.02f32) * at.position as f64 - 0.01 * at.key as f64
        })
    };
    let (m, n) = (60, 80);
    let documents = Mask::Documents {
        cu_q: vec![0, 20, 20, 41, m],
        cu_k: vec![0, 30, 35, 50, n],
        inner: Box::new(Mask::Causal),
    };
    let inputs = normal(shape([3, 4, 2, m, n, 16, 16]), 8).with_random_sinks(1);
    let config = masked(documents).with_modifier(place());
    check(&gpu, &inputs, &config);
    let whole = attend(&gpu, &inputs, &config).unwrap();
    let Some(split) = common::open(attn_wgpu::Gpu::builder().max_work_per_dispatch(1.0)) else {
        return;
    };
    assert!(attend(&split, &inputs, &config).unwrap().bits() == whole.bits());
    // The same in decode.
    let inputs = normal(shape([3, 4, 2, 2, n, 16, 16]), 8);
    let config = masked(Mask::Causal).with_modifier(place());
    check(&gpu, &inputs, &config);
    let whole = attend(&gpu, &inputs, &config).unwrap();
    assert!(attend(&split, &inputs, &config).unwrap().bits() == whole.bits());
}

#[test]
fn mask_modifiers_and_scores_that_mask() {
    let Some(gpu) = gpu() else { return };
    let stride = Modifier::mask("stride", "return (position - key) % 3 == 0 || key < first;")
        .with_scalar("first", 2.0)
        .with_host(|_, at| {
            let near = (at.position - at.key as i64) % 3 == 0 || (at.key as f64) < 2.0;
            f64::from(u8::from(near))
        });
    // A scalar is an f32: comparing it with an integer does not compile, and the error says where.
    let refused = Attention::new(&gpu, masked(Mask::Causal).with_modifier(stride));
    assert!(matches!(refused, Err(Error::Kernel { .. })), "{refused:?}");
    let stride = Modifier::mask("stride", "return (position - key) % 3 == 0 || f32(key) < first;")
        .with_scalar("first", 2.0)
        .with_host(|_, at| {
            let near = (at.position - at.key as i64) % 3 == 0 || (at.key as f64) < 2.0;
            f64::from(u8::from(near))
        });
    let bias = Modifier::score("bias", "if key % 4 == 1 { return -1e30; }\nreturn score;")
        .with_host(|score, at| if at.key % 4 == 1 { -1e30 } else { score });
    for (m, n) in LENGTHS {
        let inputs = normal(shape([1, 2, 1, m, n, 64, 64]), 9);
        for modifier in [stride.clone(), bias.clone()] {
            check(&gpu, &inputs, &masked(Mask::Causal).with_modifier(modifier.clone()));
            check(&gpu, &inputs, &masked(Mask::Full).with_soft_cap(20.0).with_modifier(modifier));
        }
    }
    // What a modifier masks is not read either.
    let inputs = normal(shape([1, 1, 1, 40, 40, 16, 16]), 10);
    let config = masked(Mask::Causal).with_modifier(bias);
    let want = attend(&gpu, &inputs, &config).unwrap();
    let mut dirty = inputs.clone();
    for key in (0..40).filter(|key| key % 4 == 1) {
        dirty.v[key * 16..(key + 1) * 16].fill(f32::NAN);
    }
    assert_eq!(attend(&gpu, &dirty, &config).unwrap().bits(), want.bits());
}

#[test]
fn errors_point_into_a_modifiers_text() {
    let Some(gpu) = gpu() else { return };
    let cases = [
        ("return score * 2.0;\n  return scor;", "line 2, column 10"),
        ("let x = score;\nlet y = x +;\nreturn y;", "line 2"),
        ("return u32(1);", ""),
        ("return 1", "line 2"),
        ("loop { }", ""),
    ];
    for (body, place) in cases {
        let modifier = Modifier::score("mine", body).with_table("slope", vec![1.0]);
        match Attention::new(&gpu, Config::new().with_modifier(modifier)) {
            Err(Error::Kernel { kernel, reason }) => {
                assert_eq!(kernel, "modifier `mine`");
                assert!(reason.starts_with(place), "{body:?}: {reason:?}");
            }
            other => panic!("{body:?}: {other:?}"),
        }
    }
    let modifier = Modifier::score("mine", "return score;").with_derivative("return nothing;");
    let refused = Attention::new(&gpu, Config::new().with_modifier(modifier));
    assert!(matches!(refused, Err(Error::Kernel { .. })), "{refused:?}");
    let modifier = Modifier::score("mine", "return score;").with_scalar("Not a name", 1.0);
    let refused = Attention::new(&gpu, Config::new().with_modifier(modifier));
    assert!(matches!(refused, Err(Error::Core(attn_core::Error::Config { .. }))), "{refused:?}");
}

/// Distance that rounding the result to a storage type may add.
fn rounding(dtype: DType, want: f64) -> f64 {
    match dtype {
        DType::F16 => want.abs() / 1024.0 + 6e-8,
        _ => want.abs() / 256.0 + 1e-38,
    }
}

// microsoft/onnxruntime#26732, #26367, #31626, #24577: half precision overflows or rounds inside;
// huggingface/candle#3727: sums of equal weights in half precision.
#[test]
fn half_storage_computes_in_f32() {
    let Some(gpu) = gpu() else { return };
    for dtype in [DType::F16, DType::BF16] {
        for (m, n, dim_qk, dim_v) in [
            (70, 70, 64, 64),
            (1, 300, 64, 64),
            (3, 5, 63, 7),
            (33, 40, 40, 24),
            (5, 0, 16, 6),
            (2, 4096, 16, 16),
        ] {
            for values in [Values::Normal, Values::Constant, Values::Huge] {
                let inputs = HostInputs::random(shape([2, 4, 2, m, n, dim_qk, dim_v]), 11, values);
                let inputs = rounded(&inputs, dtype);
                let uploaded = Uploaded::as_type(&gpu, &inputs, dtype).unwrap();
                let attention = Attention::new(&gpu, masked(Mask::Causal)).unwrap();
                let output = attention.forward(uploaded.view()).unwrap();
                assert_eq!(output.out.dtype(), dtype);
                let got = Result32 {
                    out: download(&output.out).unwrap(),
                    lse: output.lse.to_vec().unwrap(),
                };
                let want =
                    dense::forward(inputs.to_f64().unwrap().view(), attention.config()).unwrap();
                let simple = simple_f32(&inputs, attention.config()).unwrap();
                let budget = Budget::for_output(&want);
                let lse: Vec<f64> = want.lse.iter().copied().collect();
                budget.check("lse", &got.lse, &simple.lse, &lse).unwrap();
                let out: Vec<f64> = want.out.iter().copied().collect();
                let slack = 4.0 * compare(&simple.out, &out).max_abs + 1e-5;
                for (got, want) in got.out.iter().zip(&out) {
                    let bound = rounding(dtype, *want) + slack;
                    let error = (f64::from(*got) - want).abs();
                    assert!(error <= bound, "{dtype:?} {m} {n}: {got} {want}");
                }
            }
        }
    }
}

/// Logits near and beyond the largest f16 are no problem of the arithmetic.
#[test]
fn half_storage_with_logits_beyond_f16() {
    let Some(gpu) = gpu() else { return };
    let mut inputs = normal(shape([1, 1, 1, 20, 20, 64, 64]), 12);
    inputs.q.iter_mut().for_each(|x| *x *= 200.0);
    inputs.k.iter_mut().for_each(|x| *x *= 200.0);
    let inputs = rounded(&inputs, DType::F16);
    let config = masked(Mask::Causal).with_scale(1.0);
    let uploaded = Uploaded::as_type(&gpu, &inputs, DType::F16).unwrap();
    let output = Attention::new(&gpu, config.clone()).unwrap().forward(uploaded.view()).unwrap();
    let want = dense::forward(inputs.to_f64().unwrap().view(), &config).unwrap();
    assert!(want.row_max.iter().any(|&x| x > 100_000.0));
    let got = download(&output.out).unwrap();
    for (got, want) in got.iter().zip(want.out.iter()) {
        assert!(
            (f64::from(*got) - want).abs() <= rounding(DType::F16, *want) + 1e-2,
            "{got} {want}"
        );
    }
}

/// Means of two neighbours lie half-way between them: stored to the nearest, ties to even.
#[test]
fn halves_are_rounded_to_even() {
    let Some(gpu) = gpu() else { return };
    for dtype in [DType::F16, DType::BF16] {
        let step = if dtype == DType::F16 { 1.0 / 1024.0 } else { 1.0 / 128.0 };
        for m in [1, 9] {
            let mut inputs = normal(shape([1, 1, 1, m, 2, 8, 8]), 0);
            inputs.q.fill(0.0);
            inputs.v = (0..16).map(|i| 1.0 + (i % 8 + i / 8) as f32 * step).collect();
            let uploaded = Uploaded::as_type(&gpu, &inputs, dtype).unwrap();
            let attention = Attention::new(&gpu, masked(Mask::Full)).unwrap();
            let got = download(&attention.forward(uploaded.view()).unwrap().out).unwrap();
            for (i, x) in got.into_iter().enumerate() {
                // i + 1/2 steps: to the even one of i and i + 1.
                let even = (i % 8).next_multiple_of(2) as f32;
                assert_eq!(x, 1.0 + even * step, "{dtype:?} {m}: {i}");
            }
        }
    }
}

#[test]
fn half_tensors_in_other_layouts() {
    let Some(gpu) = gpu() else { return };
    let inputs = rounded(&normal(shape([2, 2, 2, 19, 19, 40, 40]), 13), DType::F16);
    let plain = Uploaded::as_type(&gpu, &inputs, DType::F16).unwrap();
    let token_major = |tensor: &Tensor| {
        let copy = tensor.permute(&[0, 2, 1, 3]).unwrap().contiguous().unwrap();
        copy.permute(&[0, 2, 1, 3]).unwrap()
    };
    let (q, k, v) = (token_major(&plain.q), token_major(&plain.k), token_major(&plain.v));
    let attention = Attention::new(&gpu, masked(Mask::Causal)).unwrap();
    let want = attention.forward(plain.view()).unwrap();
    let got = attention.forward(Inputs::new(&q, &k, &v)).unwrap();
    assert_eq!(download(&got.out).unwrap(), download(&want.out).unwrap());
    let target = Tensor::zeros(&gpu, &[2, 19, 2, 40], DType::F16).unwrap();
    let view = target.permute(&[0, 2, 1, 3]).unwrap();
    attention.forward_into(plain.view(), &view, None).unwrap();
    assert_eq!(download(&view.contiguous().unwrap()).unwrap(), download(&want.out).unwrap());
    // Rows that share words of memory cannot be written apart.
    let odd = Tensor::zeros(&gpu, &[2, 2, 19, 41], DType::F16).unwrap().narrow(3, 0, 40).unwrap();
    let refused = attention.forward_into(plain.view(), &odd, None);
    assert!(matches!(refused, Err(Error::Core(attn_core::Error::Shape { .. }))), "{refused:?}");
    let mixed =
        attention.forward(Inputs { q: &Uploaded::new(&gpu, &inputs).unwrap().q, ..plain.view() });
    assert!(
        matches!(mixed, Err(Error::Core(attn_core::Error::Dtype { arg: "k", .. }))),
        "{mixed:?}"
    );
}

#[test]
fn row_max_and_argmax() {
    let Some(gpu) = gpu() else { return };
    for (m, n) in LENGTHS.into_iter().chain([(40, 9), (5, 0)]) {
        for config in
            [masked(Mask::Causal), masked(Mask::Window { left: 9, right: 3 }).with_soft_cap(5.0)]
        {
            let inputs = normal(shape([2, 4, 2, m, n, 64, 64]), 14).with_random_sinks(2);
            let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
            let attention = Attention::new(&gpu, config.clone()).unwrap();
            let output =
                attention.forward_with(uploaded.view(), Want::nothing().with_row_max()).unwrap();
            let want = dense::forward(inputs.to_f64().unwrap().view(), &config).unwrap();
            let row_max = output.row_max.unwrap().to_vec::<f32>().unwrap();
            let expected: Vec<f64> = want.row_max.iter().copied().collect();
            assert!(compare(&row_max, &expected).max_abs < 1e-5, "{m} {n}");
            let argmax = output.argmax.unwrap().to_vec::<u32>().unwrap();
            for (got, want) in argmax.iter().zip(want.argmax.iter()) {
                assert_eq!(*got, want.map_or(u32::MAX, |key| key as u32), "{m} {n}");
            }
            let got =
                Result32 { out: output.out.to_vec().unwrap(), lse: output.lse.to_vec().unwrap() };
            judge("with row max", &inputs, &config, &got).unwrap();
        }
    }
    // Equal logits: the lowest key.
    let inputs = HostInputs::random(shape([1, 1, 1, 30, 30, 16, 16]), 0, Values::Constant);
    let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
    let attention = Attention::new(&gpu, masked(Mask::Window { left: 4, right: 0 })).unwrap();
    let output = attention.forward_with(uploaded.view(), Want::nothing().with_row_max()).unwrap();
    let argmax = output.argmax.unwrap().to_vec::<u32>().unwrap();
    let lowest: Vec<u32> = (0..30u32).map(|i| i.saturating_sub(4)).collect();
    assert_eq!(argmax, lowest);
}

#[test]
fn column_sums() {
    let Some(gpu) = gpu() else { return };
    for (m, n) in LENGTHS.into_iter().chain([(40, 9), (5, 0), (0, 5)]) {
        let masks = [
            Mask::Causal,
            Mask::Window { left: 9, right: 3 },
            Mask::GlobalWindow { window: 4, global: 2 },
            Mask::Bits(BitMask::from_fn(m, n, |query, key| (query + 2 * key) % 5 < 2)),
        ];
        for mask in masks {
            let config = masked(mask).with_modifier(Modifier::alibi(&alibi_slopes(4)));
            let inputs = normal(shape([2, 4, 2, m, n, 64, 64]), 15).with_random_sinks(2);
            let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
            let attention = Attention::new(&gpu, config.clone()).unwrap();
            let output = attention
                .forward_with(uploaded.view(), Want::nothing().with_column_sums())
                .unwrap();
            let got = output.column_sums.unwrap().to_vec::<f32>().unwrap();
            let arrays = inputs.to_f64().unwrap();
            let reference = dense::forward(arrays.view(), &config).unwrap();
            let want = dense::column_sums(arrays.view(), &config, &reference).unwrap();
            let want: Vec<f64> = want.iter().copied().collect();
            let errors = compare(&got, &want);
            assert!(
                errors.max_abs < 2e-5 * m.max(1) as f64,
                "{m} {n} {}: {errors:?}",
                config.mask.name()
            );
        }
    }
}

/// Products with the transposed probabilities, of every width, of rows that heads share or not.
#[test]
fn transposed() {
    let Some(gpu) = gpu() else { return };
    let Some(split) = common::open(Gpu::builder().max_work_per_dispatch(1.0)) else { return };
    for (m, n) in LENGTHS.into_iter().chain([(40, 9), (5, 0), (0, 5)]) {
        let masks = [
            Mask::Causal,
            Mask::Full,
            Mask::Window { left: 9, right: 3 },
            Mask::Bits(BitMask::from_fn(m, n, |query, key| (query + 2 * key) % 5 < 2)),
        ];
        for (case, (mask, width)) in masks.into_iter().zip([1, 16, 7, 40]).enumerate() {
            let mut config = masked(mask);
            if case == 2 {
                config = config.with_modifier(common::place());
            }
            let dim = [64, 24, 5, 16][case];
            let inputs = normal(shape([2, 4, 2, m, n, dim, 4]), 15).with_random_sinks(2);
            let arrays = inputs.to_f64().unwrap();
            let reference = dense::forward_with_probs(arrays.view(), &config).unwrap();
            let probs = reference.probs.unwrap();
            let lse: Vec<f32> = reference.lse.iter().map(|lse| *lse as f32).collect();
            let heads = if case % 2 == 0 { 4 } else { 1 };
            let x = fill(3, 1, Values::Normal, 2 * heads * m * width);
            let x_at = |b: usize, h: usize, i: usize, r: usize| {
                f64::from(x[((b * heads + h % heads) * m + i) * width + r])
            };
            let want: Vec<f64> = Array::from_shape_fn((2, 4, n, width), |(b, h, t, r)| {
                (0..m).map(|i| probs[[b, h, i, t]] * x_at(b, h, i, r)).sum()
            })
            .into_iter()
            .collect();
            for gpu in [&gpu, &split] {
                let uploaded = Uploaded::new(gpu, &inputs).unwrap();
                let attention = Attention::new(gpu, config.clone()).unwrap();
                let lse = Tensor::from_slice(gpu, &lse, &[2, 4, m]).unwrap();
                let x = Tensor::from_slice(gpu, &x, &[2, heads, m, width]).unwrap();
                let x = x.expand(&[2, 4, m, width]).unwrap();
                let (q, k) = (&uploaded.q, &uploaded.k);
                let got = attention.transposed(q, k, &lse, &x).unwrap();
                let errors = compare(&got.to_vec::<f32>().unwrap(), &want);
                assert!(errors.max_abs < 2e-5 * m.max(1) as f64, "{m} {n} {case}: {errors:?}");
                let target = Tensor::zeros(gpu, &[2, 4, n, width], DType::F32).unwrap();
                attention.transposed_into(q, k, &lse, &x, &target).unwrap();
                let bits = |x: &Tensor| -> Vec<u32> {
                    x.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
                };
                assert_eq!(bits(&target), bits(&got), "{m} {n} {case}");
            }
        }
    }
}

/// NaN in queries and rows that explicit bits hide changes nothing, nor do logits beyond all bounds of a key that no
/// query sees; wrong rows are refused.
#[test]
fn transposed_reads_what_is_seen() {
    let Some(gpu) = gpu() else { return };
    let hidden = |query: usize| query % 7 == 3;
    let bits =
        BitMask::from_fn(40, 50, |query, key| !hidden(query) && key != 7 && (query + key) % 3 > 0);
    let attention = Attention::new(&gpu, masked(Mask::Bits(bits))).unwrap();
    let inputs = normal(shape([1, 2, 1, 40, 50, 16, 16]), 5);
    let mut dirty = inputs.clone();
    dirty.k[7 * 16..8 * 16].fill(1e4);
    let x = fill(6, 0, Values::Normal, 2 * 40 * 8);
    let mut dirty_x = x.clone();
    for row in (0..80).filter(|row| hidden(row % 40)) {
        dirty.q[row * 16..(row + 1) * 16].fill(f32::NAN);
        dirty_x[row * 8..(row + 1) * 8].fill(f32::NAN);
    }
    let run = |inputs: &HostInputs, x: &[f32]| {
        let uploaded = Uploaded::new(&gpu, inputs).unwrap();
        let lse = attention.forward(uploaded.view()).unwrap().lse;
        let x = Tensor::from_slice(&gpu, x, &[1, 2, 40, 8]).unwrap();
        let got = attention.transposed(&uploaded.q, &uploaded.k, &lse, &x).unwrap();
        got.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    assert_eq!(run(&dirty, &dirty_x), run(&inputs, &x));

    let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
    let lse = attention.forward(uploaded.view()).unwrap().lse;
    let refuses = |shape: &[usize], dtype, lse: &Tensor, part: &str| {
        let x = Tensor::zeros(&gpu, shape, dtype).unwrap();
        let error =
            attention.transposed(&uploaded.q, &uploaded.k, lse, &x).unwrap_err().to_string();
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    };
    refuses(&[1, 2, 41, 8], DType::F32, &lse, "[1, 2, 40]");
    refuses(&[1, 2, 40], DType::F32, &lse, "[1, 2, 40]");
    refuses(&[1, 2, 40, 0], DType::F32, &lse, "1 to 256");
    refuses(&[1, 2, 40, 257], DType::F32, &lse, "1 to 256");
    refuses(&[1, 2, 40, 8], DType::F16, &lse, "f32");
    let short = Tensor::zeros(&gpu, &[1, 2, 39], DType::F32).unwrap();
    refuses(&[1, 2, 40, 8], DType::F32, &short, "lse");
}

/// Splitting the keys by windows of bits and merging gives the whole, in any order and nesting.
#[test]
fn merging_disjoint_parts() {
    let Some(gpu) = gpu() else { return };
    for (m, n, dim, dtype) in
        [(40, 90, 16, DType::F32), (3, 300, 7, DType::F32), (20, 50, 24, DType::F16)]
    {
        let inputs = rounded(&normal(shape([2, 2, 1, m, n, dim, dim]), 16), dtype);
        let uploaded = Uploaded::as_type(&gpu, &inputs, dtype).unwrap();
        let lengths = Lengths::new(m, n);
        let parts: Vec<_> = (0..4)
            .map(|part| {
                // The last part is empty for all rows.
                let bits = BitMask::from_fn(m, n, |query, key| {
                    Mask::Causal.allows(lengths, query, key) && part < 3 && (key / 7) % 3 == part
                });
                let attention = Attention::new(&gpu, masked(Mask::Bits(bits))).unwrap();
                attention.forward(uploaded.view()).unwrap()
            })
            .collect();
        let pair = |i: usize| (&parts[i].out, &parts[i].lse);
        let all = merge(&[pair(0), pair(1), pair(2), pair(3)]).unwrap();
        let back = merge(&[pair(3), pair(2), pair(1), pair(0)]).unwrap();
        let inner = merge(&[pair(1), pair(2)]).unwrap();
        let nested = merge(&[pair(0), (&inner.out, &inner.lse)]).unwrap();
        let want = dense::forward(inputs.to_f64().unwrap().view(), &masked(Mask::Causal)).unwrap();
        for merged in [&all, &back, &nested] {
            assert_eq!(merged.out.shape(), inputs.shape.out());
            let out: Vec<f64> = want.out.iter().copied().collect();
            let tolerance = if dtype == DType::F32 { 2e-6 } else { 4e-3 };
            let errors = compare(&download(&merged.out).unwrap(), &out);
            assert!(errors.max_abs < tolerance, "{errors:?}");
            let lse: Vec<f64> = want.lse.iter().copied().collect();
            assert!(compare(&merged.lse.to_vec::<f32>().unwrap(), &lse).max_abs < 2e-6);
        }
    }
}

// flashinfer-ai/flashinfer#4484, #4051: merging empty states must stay empty.
#[test]
fn the_neutral_element_of_merge() {
    let Some(gpu) = gpu() else { return };
    let inputs = normal(shape([1, 2, 2, 9, 9, 8, 8]), 17);
    let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
    let part =
        Attention::new(&gpu, masked(Mask::Causal)).unwrap().forward(uploaded.view()).unwrap();
    let zero = Tensor::zeros(&gpu, part.out.shape(), DType::F32).unwrap();
    for nothing in [f32::NEG_INFINITY, -3e38, -1e29] {
        let empty = Tensor::full(&gpu, part.lse.shape(), nothing).unwrap();
        for parts in [
            vec![(&part.out, &part.lse), (&zero, &empty)],
            vec![(&zero, &empty), (&part.out, &part.lse), (&zero, &empty)],
        ] {
            let merged = merge(&parts).unwrap();
            assert_eq!(merged.out.to_vec::<f32>().unwrap(), part.out.to_vec::<f32>().unwrap());
            assert_eq!(merged.lse.to_vec::<f32>().unwrap(), part.lse.to_vec::<f32>().unwrap());
        }
        let merged = merge(&[(&zero, &empty), (&zero, &empty)]).unwrap();
        assert!(merged.out.to_vec::<f32>().unwrap().iter().all(|x| x.to_bits() == 0));
        let lse = merged.lse.to_vec::<f32>().unwrap();
        assert!(lse.iter().all(|x| x.to_bits() == 0xFF80_0000), "{lse:?}");
    }
    assert!(matches!(merge(&[]), Err(Error::Core(attn_core::Error::Config { .. }))));
    let short = part.lse.narrow(2, 0, 3).unwrap();
    let refused = merge(&[(&part.out, &short)]);
    assert!(matches!(refused, Err(Error::Core(attn_core::Error::Shape { .. }))), "{refused:?}");
}

/// Decode: any number of parts, all head ratios, batch entries bit for bit as alone.
#[test]
fn decode_of_long_keys() {
    let Some(gpu) = gpu() else { return };
    for (m, n) in [(1, 255), (1, 256), (1, 257), (1, 4096), (2, 5000), (8, 1031)] {
        for group in [1, 3, 9] {
            let inputs = normal(shape([1, 2 * group, 2, m, n, 64, 64]), 18);
            check(&gpu, &inputs, &masked(Mask::Causal));
            check(&gpu, &inputs, &masked(Mask::Window { left: 300, right: 0 }));
            check(&gpu, &inputs, &masked(Mask::SinkWindow { left: 300, sinks: 4 }));
        }
    }
    let inputs = normal(shape([3, 18, 2, 1, 700, 64, 64]), 19);
    let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
    let attention = Attention::new(&gpu, masked(Mask::Causal)).unwrap();
    let out = attention.forward(uploaded.view()).unwrap().out.to_vec::<f32>().unwrap();
    for (batch, head) in [(0, 0), (1, 8), (2, 17)] {
        let part = |tensor: &Tensor, head: usize| {
            tensor.narrow(0, batch, 1).unwrap().narrow(1, head, 1).unwrap()
        };
        let (q, k, v) =
            (part(&uploaded.q, head), part(&uploaded.k, head / 9), part(&uploaded.v, head / 9));
        let alone = attention.forward(Inputs::new(&q, &k, &v)).unwrap();
        assert_eq!(alone.out.to_vec::<f32>().unwrap(), out[(batch * 18 + head) * 64..][..64]);
    }
}

// fla-org/flash-linear-attention#906: more than 65,536 tokens are silently wrong. Mesa's software
// driver ends loops after 65,535 iterations, so this caught ours too.
#[test]
fn sequences_beyond_65536_tokens() {
    let Some(gpu) = gpu() else { return };
    for m in [1, 20] {
        let inputs = normal(shape([1, 1, 1, m, 70_001, 16, 16]), 21);
        check(&gpu, &inputs, &masked(Mask::Causal));
    }
    let inputs = normal(shape([2, 4, 2, 9, 70_001, 4, 4]), 21).with_random_sinks(3);
    check(&gpu, &inputs, &masked(Mask::GlobalWindow { window: 40_000, global: 3 }));
    let inputs = normal(shape([1, 1, 1, 70_001, 70_001, 16, 16]), 22);
    check(&gpu, &inputs, &masked(Mask::Window { left: 5, right: 0 }));
}

/// Decode step by step is prefill, within the error budget.
#[test]
fn decode_equals_prefill() {
    let Some(gpu) = gpu() else { return };
    let (n, dim) = (40, 64);
    let inputs = normal(shape([1, 4, 2, n, n, dim, dim]), 20);
    let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
    let attention = Attention::new(&gpu, masked(Mask::Causal)).unwrap();
    let whole = attention.forward(uploaded.view()).unwrap().out.to_vec::<f32>().unwrap();
    for step in [0, 1, 17, 39] {
        let q = uploaded.q.narrow(2, step, 1).unwrap();
        let (k, v) = (
            uploaded.k.narrow(2, 0, step + 1).unwrap(),
            uploaded.v.narrow(2, 0, step + 1).unwrap(),
        );
        let one = attention.forward(Inputs::new(&q, &k, &v)).unwrap().out.to_vec::<f32>().unwrap();
        for head in 0..4 {
            let want: Vec<f64> =
                whole[(head * n + step) * dim..][..dim].iter().map(|&x| f64::from(x)).collect();
            assert!(compare(&one[head * dim..][..dim], &want).max_abs < 2e-6, "{step} {head}");
        }
    }
}

proptest! {
    #![proptest_config(common::cases(10))]

    /// Any mask with soft-cap, modifier, scale and sinks.
    #[test]
    fn any_configuration_equals_the_reference(
        (shape, config) in strategies::shape(200_000).prop_flat_map(|mut shape| {
            (shape.dim_qk, shape.dim_v) = (16, 16);
            (Just(shape), strategies::config(shape.lengths()))
        }),
        sinks in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let mut inputs = normal(shape, seed);
        if sinks {
            inputs = inputs.with_random_sinks(seed);
        }
        let got = attend(&gpu, &inputs, &config).unwrap();
        let name = format!("{shape:?} {config:?}");
        judge(&name, &inputs, &config, &got).map_err(TestCaseError::fail)?;
    }
}
