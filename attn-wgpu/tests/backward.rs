//! Gradients on the device against the f64 reference, golden vectors and finite differences.

mod common;

use attn_core::dense::Config;
use attn_core::testing::{HostInputs, compare, strategies};
use attn_core::{AttentionShape, BitMask, Mask, Modifier, alibi_slopes};
use attn_wgpu::attention::{Attention, Cotangents, Targets, merge_into};
use attn_wgpu::{DType, Error, Gpu, Tensor};
use common::{
    Uploaded, attend, cotangents, download, gpu, gradients, judge_gradients, masked, normal, open,
    rounded, shape, upload,
};
use proptest::prelude::*;

fn check(gpu: &Gpu, inputs: &HostInputs, config: &Config) {
    let (d_out, d_lse) = cotangents(&inputs.shape, 99);
    for d_lse in [None, Some(d_lse.as_slice())] {
        let s = inputs.shape;
        let case = format!("{s:?} {} lse {}", config.mask.name(), d_lse.is_some());
        let got = gradients(gpu, inputs, config, &d_out, d_lse)
            .unwrap_or_else(|error| panic!("{case}: {error}"));
        judge_gradients(&case, inputs, config, &d_out, d_lse, &got)
            .unwrap_or_else(|message| panic!("{message}"));
    }
}

#[test]
fn every_mask() {
    let Some(gpu) = gpu() else { return };
    for (m, n) in [(70, 70), (1, 1), (5, 64), (64, 5), (129, 130)] {
        let cu = vec![0, n / 3, n / 3, n / 2, n];
        let masks = [
            Mask::Full,
            Mask::Causal,
            Mask::Window { left: 5, right: 2 },
            Mask::Documents {
                cu_q: vec![0, m / 2, m],
                cu_k: vec![0, n / 3, n],
                inner: Box::new(Mask::Causal),
            },
            Mask::SinkWindow { left: 6, sinks: 2 },
            Mask::GlobalWindow { window: 4, global: 3 },
            Mask::PrefixLm { prefix: n / 4 },
            Mask::ShareQuestion { cu: cu.clone() },
            Mask::CausalBlockwise { cu: cu.clone() },
            Mask::BlockCausalDocuments { cu, block: 8 },
            Mask::Bits(BitMask::from_fn(m, n, |query, key| (query * 7 + key * 5) % 3 == 0)),
        ];
        for mask in masks {
            check(&gpu, &normal(shape([1, 2, 1, m, n, 16, 16]), 1), &masked(mask));
        }
    }
    // Several tiles of keys, of which the first sees no query, and edges of the window inside tiles.
    let mask = Mask::Window { left: 5, right: 2 };
    check(&gpu, &normal(shape([1, 1, 1, 170, 330, 16, 16]), 1), &masked(mask));
}

#[test]
fn head_dims_and_ratios() {
    let Some(gpu) = gpu() else { return };
    for (dim_qk, dim_v) in [(64, 64), (3, 3), (63, 40), (128, 128), (24, 256)] {
        check(&gpu, &normal(shape([2, 2, 1, 21, 33, dim_qk, dim_v]), 2), &masked(Mask::Causal));
    }
    for ratio in [1, 3, 5, 9] {
        check(&gpu, &normal(shape([2, 2 * ratio, 2, 35, 35, 16, 16]), 3), &masked(Mask::Causal));
    }
}

#[test]
fn soft_cap_modifiers_and_sinks() {
    let Some(gpu) = gpu() else { return };
    let factors: Vec<f32> = (0..50).map(|i| 0.5 + i as f32 / 60.0).collect();
    let configs = [
        masked(Mask::Causal).with_soft_cap(4.0),
        masked(Mask::Causal).with_modifier(Modifier::alibi(&alibi_slopes(4))),
        masked(Mask::Full).with_modifier(Modifier::temperature(&factors)),
        masked(Mask::GlobalWindow { window: 6, global: 2 })
            .with_soft_cap(10.0)
            .with_modifier(Modifier::temperature(&factors))
            .with_scale(0.3),
    ];
    for config in configs {
        for (m, n) in [(60, 60), (7, 40), (40, 7)] {
            let inputs = normal(shape([2, 4, 2, m, n, 16, 16]), 4);
            check(&gpu, &inputs, &config);
            check(&gpu, &inputs.with_random_sinks(5), &config);
        }
    }
}

/// A modifier that only masks has a gradient without being asked for one.
#[test]
fn derivatives_are_asked_for_only_where_scores_change() {
    let Some(gpu) = gpu() else { return };
    let keep = Modifier::mask("odd", "return key % 2 == 1 || key == position;")
        .with_host(|_, at| f64::from(u8::from(at.key % 2 == 1 || at.key as i64 == at.position)));
    // Where the mask alone lets all through, the modifier still has to be asked.
    for mask in [Mask::Causal, Mask::Full] {
        let inputs = normal(shape([1, 2, 1, 30, 30, 16, 16]), 5);
        check(&gpu, &inputs, &masked(mask).with_modifier(keep.clone()));
    }
    let square = Modifier::score("square", "return score * score;");
    let inputs = normal(shape([1, 1, 1, 9, 9, 16, 16]), 5);
    let config = masked(Mask::Causal).with_modifier(square);
    let (d_out, _) = cotangents(&inputs.shape, 1);
    match gradients(&gpu, &inputs, &config, &d_out, None) {
        Err(Error::NotDifferentiable { name }) => assert_eq!(name, "square"),
        other => panic!("{other:?}"),
    }
}

// Dao-AILab/flash-attention#2568, #2421, fla-org/flash-linear-attention#1142: empty sequences and
// tails break the backward pass.
#[test]
fn empty_rows_and_empty_tensors() {
    let Some(gpu) = gpu() else { return };
    for (m, n) in [(70, 6), (5, 0), (0, 5), (1, 1)] {
        check(&gpu, &normal(shape([1, 2, 1, m, n, 16, 24]), 6), &masked(Mask::Causal));
        let with_sinks = normal(shape([1, 2, 1, m, n, 16, 24]), 6).with_random_sinks(7);
        check(&gpu, &with_sinks, &masked(Mask::Causal));
    }
}

/// NaN in keys, values and queries that do not meet changes no bit of the others' gradients.
#[test]
fn nan_that_nobody_sees_changes_nothing() {
    let Some(gpu) = gpu() else { return };
    let (n, dim) = (60, 16);
    // Keys 20..25 are seen by no query.
    let bits = BitMask::from_fn(n, n, |query, key| key <= query && !(20..25).contains(&key));
    for mask in [Mask::Bits(bits), Mask::documents(&[0, 20, 25, n], Mask::Causal)] {
        let hidden = matches!(mask, Mask::Bits(_));
        let config = masked(mask);
        let clean = normal(shape([1, 1, 1, n, n, dim, dim]), 8);
        let (mut d_out, _) = cotangents(&clean.shape, 2);
        let want = gradients(&gpu, &clean, &config, &d_out, None).unwrap();
        let mut dirty = clean.clone();
        dirty.k[20 * dim..25 * dim].fill(f32::NAN);
        dirty.v[20 * dim..25 * dim].fill(f32::NAN);
        if !hidden {
            // A whole document of NaN, of which the other documents must not know.
            dirty.q[20 * dim..25 * dim].fill(f32::NAN);
            d_out[20 * dim..25 * dim].fill(f32::NAN);
        }
        let got = gradients(&gpu, &dirty, &config, &d_out, None).unwrap();
        let outside = |data: &[f32]| -> Vec<u32> {
            let rows = data.iter().enumerate().filter(|(i, _)| !(20..25).contains(&(i / dim)));
            rows.map(|(_, x)| x.to_bits()).collect()
        };
        assert_eq!(outside(&got.dq), outside(&want.dq));
        assert_eq!(outside(&got.dk), outside(&want.dk));
        assert_eq!(outside(&got.dv), outside(&want.dv));
        if hidden {
            assert!(got.dk[20 * dim..25 * dim].iter().all(|&x| x == 0.0));
            assert!(got.dv[20 * dim..25 * dim].iter().all(|&x| x == 0.0));
        }
    }
}

// Dao-AILab/flash-attention#384, #414, #429, #2244: gradients differ between runs.
#[test]
fn runs_splits_and_batches_are_bit_equal() {
    let Some(gpu) = gpu() else { return };
    let inputs = normal(shape([2, 6, 2, 150, 150, 16, 16]), 9).with_random_sinks(3);
    let config = masked(Mask::PrefixLm { prefix: 20 });
    let (d_out, d_lse) = cotangents(&inputs.shape, 3);
    let first = gradients(&gpu, &inputs, &config, &d_out, Some(&d_lse)).unwrap();
    let again = gradients(&gpu, &inputs, &config, &d_out, Some(&d_lse)).unwrap();
    assert!(first == again);
    let Some(split) = open(Gpu::builder().max_work_per_dispatch(1.0)) else { return };
    let split = gradients(&split, &inputs, &config, &d_out, Some(&d_lse)).unwrap();
    assert!(first == split);
    // The second batch entry alone.
    let half = |data: &[f32]| data[data.len() / 2..].to_vec();
    let alone = HostInputs {
        shape: AttentionShape { batch: 1, ..inputs.shape },
        q: half(&inputs.q),
        k: half(&inputs.k),
        v: half(&inputs.v),
        sinks: inputs.sinks.clone(),
    };
    let alone = gradients(&gpu, &alone, &config, &half(&d_out), Some(&half(&d_lse))).unwrap();
    assert!(
        alone.dq == half(&first.dq) && alone.dk == half(&first.dk) && alone.dv == half(&first.dv)
    );
}

/// The inputs, moved along a direction.
type Moved<'a> = &'a dyn Fn(f32) -> HostInputs;

/// The loss changes as the gradients say, along random directions, in f32 on the device.
#[test]
fn finite_differences() {
    let Some(gpu) = gpu() else { return };
    let config =
        masked(Mask::Causal).with_soft_cap(3.0).with_modifier(Modifier::alibi(&alibi_slopes(4)));
    let inputs = normal(shape([1, 4, 2, 24, 24, 16, 16]), 10).with_random_sinks(4);
    let (d_out, d_lse) = cotangents(&inputs.shape, 4);
    let grads = gradients(&gpu, &inputs, &config, &d_out, Some(&d_lse)).unwrap();
    let loss = |inputs: &HostInputs| -> f64 {
        let result = attend(&gpu, inputs, &config).unwrap();
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        dot(&result.out, &d_out) + dot(&result.lse, &d_lse)
    };
    let sinks = inputs.sinks.clone().unwrap();
    let directions = normal(inputs.shape, 77);
    let step = 1e-2f32;
    let moved = |data: &[f32], direction: &[f32], by: f32| -> Vec<f32> {
        data.iter().zip(direction).map(|(x, d)| x + by * d).collect()
    };
    let cases: [(&str, &[f32], &[f32], Moved<'_>); 4] = [
        ("dq", &grads.dq, &directions.q, &|by| HostInputs {
            q: moved(&inputs.q, &directions.q, by),
            ..inputs.clone()
        }),
        ("dk", &grads.dk, &directions.k, &|by| HostInputs {
            k: moved(&inputs.k, &directions.k, by),
            ..inputs.clone()
        }),
        ("dv", &grads.dv, &directions.v, &|by| HostInputs {
            v: moved(&inputs.v, &directions.v, by),
            ..inputs.clone()
        }),
        ("d_sinks", &grads.d_sinks, &directions.q[..4], &|by| HostInputs {
            sinks: Some(moved(&sinks, &directions.q[..4], by)),
            ..inputs.clone()
        }),
    ];
    for (name, gradient, direction, at) in cases {
        let slope = (loss(&at(step)) - loss(&at(-step))) / (2.0 * f64::from(step));
        let product: f64 =
            gradient.iter().zip(direction).map(|(&g, &d)| f64::from(g) * f64::from(d)).sum();
        assert!(
            (slope - product).abs() < 2e-3 * (1.0 + product.abs()),
            "{name}: {slope} {product}"
        );
    }
}

#[test]
fn half_storage() {
    let Some(gpu) = gpu() else { return };
    for (dtype, tolerance) in [(DType::F16, 2e-3), (DType::BF16, 2e-2)] {
        let inputs = rounded(&normal(shape([1, 4, 2, 50, 50, 40, 40]), 11), dtype);
        let config = masked(Mask::Causal);
        let (d_out, _) = cotangents(&inputs.shape, 5);
        let uploaded = Uploaded::as_type(&gpu, &inputs, dtype).unwrap();
        let attention = Attention::new(&gpu, config.clone()).unwrap();
        let (_, saved) = attention.forward_saved(uploaded.view()).unwrap();
        let cotangent = upload(&gpu, &d_out, &inputs.shape.out(), dtype).unwrap();
        let d_out = download(&cotangent).unwrap();
        let grads = attention.backward(&saved, Cotangents { out: &cotangent, lse: None }).unwrap();
        let want = gradients(&gpu, &inputs, &config, &d_out, None).unwrap();
        for (name, got, want) in
            [("dq", &grads.dq, &want.dq), ("dk", &grads.dk, &want.dk), ("dv", &grads.dv, &want.dv)]
        {
            assert_eq!(got.dtype(), dtype);
            let want: Vec<f64> = want.iter().map(|&x| f64::from(x)).collect();
            let errors = compare(&download(&got.contiguous().unwrap()).unwrap(), &want);
            assert!(errors.rel_l2 < tolerance, "{name} {dtype:?}: {errors:?}");
        }
    }
}

#[test]
fn strided_cotangents_and_inputs() {
    let Some(gpu) = gpu() else { return };
    let inputs = normal(shape([2, 4, 2, 20, 20, 24, 7]), 12);
    let config = masked(Mask::Causal);
    let (d_out, _) = cotangents(&inputs.shape, 6);
    let want = gradients(&gpu, &inputs, &config, &d_out, None).unwrap();
    let plain = Uploaded::new(&gpu, &inputs).unwrap();
    let token_major = |tensor: &Tensor| {
        let copy = tensor.permute(&[0, 2, 1, 3]).unwrap().contiguous().unwrap();
        copy.permute(&[0, 2, 1, 3]).unwrap()
    };
    let (q, k, v) = (token_major(&plain.q), token_major(&plain.k), token_major(&plain.v));
    let cotangent = token_major(&Tensor::from_slice(&gpu, &d_out, &inputs.shape.out()).unwrap());
    let attention = Attention::new(&gpu, config).unwrap();
    let strided = attn_wgpu::attention::Inputs::new(&q, &k, &v);
    let (_, saved) = attention.forward_saved(strided).unwrap();
    let grads = attention.backward(&saved, Cotangents { out: &cotangent, lse: None }).unwrap();
    assert_eq!(grads.dq.to_vec::<f32>().unwrap(), want.dq);
    assert_eq!(grads.dk.to_vec::<f32>().unwrap(), want.dk);
    assert_eq!(grads.dv.to_vec::<f32>().unwrap(), want.dv);
    let short = cotangent.narrow(2, 0, 3).unwrap();
    let refused = attention.backward(&saved, Cotangents { out: &short, lse: None });
    assert!(matches!(refused, Err(Error::Core(attn_core::Error::Shape { arg: "d_out", .. }))));
}

// fla-org/flash-linear-attention#906: more than 65,536 tokens are silently wrong. Mesa's software
// driver ends loops after 65,535 iterations: there the call is refused with the limit.
#[test]
fn sequences_beyond_65536_tokens_are_right_or_refused() {
    let Some(gpu) = gpu() else { return };
    for (m, n) in [(9, 70_001), (70_001, 9)] {
        let inputs = normal(shape([1, 1, 1, m, n, 16, 16]), 15);
        if gpu.capabilities().max_loop_steps > 70_001 {
            check(&gpu, &inputs, &masked(Mask::Full));
            continue;
        }
        let (d_out, _) = cotangents(&inputs.shape, 1);
        let refused = gradients(&gpu, &inputs, &masked(Mask::Full), &d_out, None);
        assert!(
            matches!(refused, Err(Error::Limit { needed: 70_001, .. })),
            "{:?}",
            refused.map(|_| ())
        );
    }
    // What a tile visits counts, not the length.
    let inputs = normal(shape([1, 1, 1, 70_001, 70_001, 4, 4]), 16);
    check(&gpu, &inputs, &masked(Mask::Window { left: 5, right: 0 }));
}

#[test]
fn into_a_callers_tensors() {
    let Some(gpu) = gpu() else { return };
    let inputs = normal(shape([1, 4, 2, 20, 20, 16, 7]), 14).with_random_sinks(2);
    let config = masked(Mask::Causal);
    let (d_out, _) = cotangents(&inputs.shape, 7);
    let want = gradients(&gpu, &inputs, &config, &d_out, None).unwrap();
    let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
    let attention = Attention::new(&gpu, config).unwrap();
    let (output, saved) = attention.forward_saved(uploaded.view()).unwrap();
    let cotangent = Tensor::from_slice(&gpu, &d_out, &inputs.shape.out()).unwrap();
    let zeros = |shape: &[usize]| Tensor::zeros(&gpu, shape, DType::F32).unwrap();
    let shape = inputs.shape;
    let [dq, dk, dv] = [shape.q(), shape.k(), shape.v()].map(|shape| zeros(&shape));
    let d_sinks = zeros(&[4]);
    let targets = Targets { dq: Some(&dq), dk: Some(&dk), dv: Some(&dv), d_sinks: Some(&d_sinks) };
    let cotangents = Cotangents { out: &cotangent, lse: None };
    attention.backward_into(&saved, cotangents, targets).unwrap();
    assert_eq!(dq.to_vec::<f32>().unwrap(), want.dq);
    assert_eq!(dk.to_vec::<f32>().unwrap(), want.dk);
    assert_eq!(dv.to_vec::<f32>().unwrap(), want.dv);
    assert_eq!(d_sinks.to_vec::<f32>().unwrap(), want.d_sinks);

    let sums = zeros(&[1, 4, 20]);
    attention.column_sums_into(uploaded.view(), &output.lse, &sums).unwrap();
    let fresh = attention.column_sums(uploaded.view(), &output.lse).unwrap();
    assert_eq!(sums.to_vec::<f32>().unwrap(), fresh.to_vec::<f32>().unwrap());

    let (out, lse) = (zeros(&inputs.shape.out()), zeros(&inputs.shape.lse()));
    merge_into(&[(&output.out, &output.lse)], &out, &lse).unwrap();
    assert_eq!(out.to_vec::<f32>().unwrap(), output.out.to_vec::<f32>().unwrap());
    assert_eq!(lse.to_vec::<f32>().unwrap(), output.lse.to_vec::<f32>().unwrap());
}

// huggingface/transformers.js#1242: scores are stored.
#[test]
fn peak_memory_is_linear_in_tokens() {
    let Some(gpu) = open(Gpu::builder()) else { return };
    let mut peaks = Vec::new();
    for n in [256, 512, 1024] {
        let inputs = normal(shape([1, 4, 2, n, n, 16, 16]), 13);
        let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
        let cotangent = Tensor::full(&gpu, &inputs.shape.out(), 1f32).unwrap();
        gpu.reset_peak();
        let attention = Attention::new(&gpu, masked(Mask::Window { left: 9, right: 0 })).unwrap();
        let (_, saved) = attention.forward_saved(uploaded.view()).unwrap();
        attention.backward(&saved, Cotangents { out: &cotangent, lse: None }).unwrap();
        gpu.sync().unwrap();
        peaks.push(gpu.memory().peak);
    }
    assert!(peaks[1] <= 2 * peaks[0] + 65_536 && peaks[2] <= 2 * peaks[1] + 65_536, "{peaks:?}");
}

proptest! {
    #![proptest_config(common::cases(8))]

    #[test]
    fn any_configuration_equals_the_reference(
        (shape, config) in strategies::shape(100_000).prop_flat_map(|mut shape| {
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
        let (d_out, d_lse) = cotangents(&shape, seed);
        let got = gradients(&gpu, &inputs, &config, &d_out, Some(&d_lse)).unwrap();
        let name = format!("{shape:?} {config:?}");
        judge_gradients(&name, &inputs, &config, &d_out, Some(&d_lse), &got)
            .map_err(TestCaseError::fail)?;
    }
}
