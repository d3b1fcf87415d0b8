//! The map of probabilities against the f64 reference: every element, whatever its tile.

mod common;

use attn_core::dense::{self, Config};
use attn_core::testing::{Budget, HostInputs, simple_f32, strategies};
use attn_core::{AttentionShape, BitMask, Mask, Modifier, alibi_slopes};
use attn_wgpu::attention::{Attention, Inputs, Variant};
use attn_wgpu::{DType, Error, Gpu, Tensor, wgpu};
use common::{Uploaded, gpu, masked, normal, open, place, rounded, shape};
use proptest::prelude::*;

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.to_vec().unwrap()
}

fn bits(data: &[f32]) -> Vec<u32> {
    data.iter().map(|x| x.to_bits()).collect()
}

/// From the log-sum-exp of the device's own forward pass.
fn weigh(gpu: &Gpu, inputs: &HostInputs, config: &Config, dtype: DType) -> Vec<f32> {
    let uploaded = Uploaded::as_type(gpu, inputs, dtype).unwrap();
    let attention = Attention::new(gpu, config.clone()).unwrap();
    let lse = attention.forward(uploaded.view()).unwrap().lse;
    floats(&attention.weights(uploaded.view(), &lse).unwrap())
}

/// With the identity for values, the output of attention is its probabilities.
fn simple(inputs: &HostInputs, config: &Config) -> Vec<f32> {
    let AttentionShape { batch, heads_kv, keys, .. } = inputs.shape;
    let identity = (0..keys * keys).map(|i| f32::from(u8::from(i / keys == i % keys)));
    let inputs = HostInputs {
        shape: AttentionShape { dim_v: keys, ..inputs.shape },
        v: identity.collect::<Vec<f32>>().repeat(batch * heads_kv),
        ..inputs.clone()
    };
    simple_f32(&inputs, config).unwrap().out
}

fn judge(inputs: &HostInputs, config: &Config, got: &[f32]) -> Result<(), String> {
    let case = format!("{:?} {}", inputs.shape, config.mask.name());
    let want = dense::forward_with_probs(inputs.to_f64().unwrap().view(), config).unwrap();
    let budget = Budget::for_output(&want);
    let want: Vec<f64> = want.probs.unwrap().iter().copied().collect();
    if want.is_empty() {
        return if got.is_empty() { Ok(()) } else { Err(format!("{case}: not empty")) };
    }
    let simple = simple(inputs, config);
    budget.check(&format!("{case} weights"), got, &simple, &want)?;
    let masked = want.iter().zip(got).position(|(want, got)| *want == 0.0 && got.to_bits() != 0);
    if let Some(at) = masked {
        return Err(format!("{case}: element {at} is masked, got {}", got[at]));
    }
    let keys = inputs.shape.keys;
    let sums = |data: &[f32]| -> Vec<f32> {
        let sum = |row: &[f32]| row.iter().map(|&p| f64::from(p)).sum::<f64>() as f32;
        data.chunks(keys).map(sum).collect()
    };
    let want: Vec<f64> = want.chunks(keys).map(|row| row.iter().sum()).collect();
    budget.check(&format!("{case} sums of rows"), &sums(got), &sums(&simple), &want)?;
    Ok(())
}

fn check(gpu: &Gpu, inputs: &HostInputs, config: &Config) {
    let got = weigh(gpu, inputs, config, DType::F32);
    judge(inputs, config, &got).unwrap_or_else(|message| panic!("{message}"));
}

#[test]
fn every_mask() {
    let Some(gpu) = gpu() else { return };
    for (m, n) in [(70, 70), (1, 1), (1, 300), (5, 64), (64, 5), (129, 130), (65, 257)] {
        let cu = vec![0, n / 3, n / 3, n / 2, n];
        let masks = [
            Mask::Full,
            Mask::Causal,
            Mask::Window { left: 5, right: 2 },
            Mask::SinkWindow { left: 6, sinks: 2 },
            Mask::GlobalWindow { window: 4, global: 3 },
            Mask::PrefixLm { prefix: n / 4 },
            Mask::Documents {
                cu_q: vec![0, m / 2, m],
                cu_k: vec![0, n / 3, n],
                inner: Box::new(Mask::Causal),
            },
            Mask::ShareQuestion { cu: cu.clone() },
            Mask::CausalBlockwise { cu: cu.clone() },
            Mask::BlockCausalDocuments { cu, block: 8 },
            Mask::Bits(BitMask::from_fn(m, n, |query, key| (query * 7 + key * 5) % 3 == 0)),
            Mask::Bits(BitMask::from_fn(m, n, |query, _| query % 2 == 1)),
        ];
        for mask in masks {
            check(&gpu, &normal(shape([1, 2, 1, m, n, 16, 16]), 1), &masked(mask));
        }
    }
}

#[test]
fn lengths_around_tiles() {
    let Some(gpu) = gpu() else { return };
    for n in (0..=17).chain([31, 63, 64, 65, 127, 128, 129, 191, 193]) {
        let inputs = normal(shape([1, 2, 1, n, n, 16, 16]), n as u64);
        check(&gpu, &inputs, &masked(Mask::SinkWindow { left: 9, sinks: 3 }));
    }
    let tile = Variant::backward(16, 16, gpu.capabilities()).tile();
    for n in [tile - 1, tile, tile + 1, 2 * tile] {
        check(&gpu, &normal(shape([1, 1, 1, 131, n, 16, 16]), 2), &masked(Mask::Causal));
    }
    for (m, n) in [(0, 5), (5, 0), (64, 13), (13, 64), (70, 2)] {
        check(&gpu, &normal(shape([2, 2, 1, m, n, 16, 16]), 3), &masked(Mask::Causal));
    }
}

/// Grouped queries, batch entries, and head dims of which some lanes hold less than others.
#[test]
fn heads_and_dims() {
    let Some(gpu) = gpu() else { return };
    for (heads, heads_kv, dim_qk, dim_v) in [
        (6, 2, 1, 3),
        (3, 3, 40, 256),
        (9, 3, 63, 64),
        (4, 1, 64, 5),
        (2, 2, 136, 8),
        (1, 1, 256, 1),
    ] {
        let inputs = normal(shape([2, heads, heads_kv, 21, 33, dim_qk, dim_v]), 5);
        check(&gpu, &inputs, &masked(Mask::Causal));
    }
}

#[test]
fn half_storage() {
    let Some(gpu) = gpu() else { return };
    for dtype in [DType::F16, DType::BF16] {
        for (m, n, dim) in [(70, 70, 64), (3, 5, 63), (1, 300, 24)] {
            let inputs = rounded(&normal(shape([2, 4, 2, m, n, dim, dim]), 11), dtype);
            let config = masked(Mask::Causal);
            let got = weigh(&gpu, &inputs, &config, dtype);
            judge(&inputs, &config, &got).unwrap_or_else(|message| panic!("{message}"));
        }
    }
}

#[test]
fn soft_cap_modifiers_and_sinks() {
    let Some(gpu) = gpu() else { return };
    let odd = Modifier::mask("odd", "return (position - key) % 3 != 1;")
        .with_host(|_, at| f64::from(u8::from((at.position - at.key as i64) % 3 != 1)));
    let bias = Modifier::score("bias", "if key % 4 == 1 { return -1e30; }\nreturn score;")
        .with_host(|score, at| if at.key % 4 == 1 { -1e30 } else { score });
    for (m, n) in [(40, 50), (50, 40), (1, 90)] {
        let inputs = normal(shape([1, 4, 2, m, n, 16, 16]), 4);
        let configs = [
            masked(Mask::Causal).with_soft_cap(2.0).with_scale(0.7),
            masked(Mask::Causal).with_modifier(Modifier::alibi(&alibi_slopes(4))),
            masked(Mask::SinkWindow { left: 9, sinks: 2 }).with_modifier(odd.clone()),
            masked(Mask::Full).with_soft_cap(20.0).with_modifier(bias.clone()),
        ];
        for config in configs {
            check(&gpu, &inputs, &config);
            check(&gpu, &inputs.clone().with_random_sinks(6), &config);
        }
    }
}

/// A modifier that tells batch entries and heads apart, also where a call is split.
#[test]
fn modifiers_know_their_batch_and_head() {
    let Some(gpu) = gpu() else { return };
    let Some(split) = open(Gpu::builder().max_work_per_dispatch(1.0)) else { return };
    let config = masked(Mask::Causal).with_modifier(place());
    let inputs = normal(shape([3, 4, 2, 70, 81, 16, 16]), 3);
    check(&gpu, &inputs, &config);
    check(&split, &inputs, &config);
}

/// Some rows, asked for as the documentation says, are those of the whole map.
#[test]
fn some_rows_are_those_of_the_whole() {
    let Some(gpu) = gpu() else { return };
    for (batch, heads, m, n) in [(2, 4, 150, 150), (1, 1, 90, 200)] {
        let inputs = normal(shape([batch, heads, 1, m, n, 24, 8]), 8).with_random_sinks(2);
        let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
        let masks = [
            (Mask::Causal, true),
            (Mask::Window { left: 40, right: 0 }, true),
            (Mask::SinkWindow { left: 30, sinks: 4 }, true),
            (Mask::Full, false),
        ];
        for (mask, looks_back) in masks {
            let attention = Attention::new(&gpu, masked(mask)).unwrap();
            let lse = attention.forward(uploaded.view()).unwrap().lse;
            let whole = floats(&attention.weights(uploaded.view(), &lse).unwrap());
            for (start, length) in [(0, 1), (3, 70), (89, 1), (17, 64)] {
                let seen = if looks_back { start + length + n - m } else { n };
                let q = uploaded.q.narrow(2, start, length).unwrap();
                let lse = lse.narrow(2, start, length).unwrap();
                let [k, v] = [&uploaded.k, &uploaded.v].map(|x| x.narrow(2, 0, seen).unwrap());
                let some = floats(&attention.weights(Inputs::new(&q, &k, &v), &lse).unwrap());
                let rows = (0..batch * heads).flat_map(|plane| {
                    let first = plane * m + start;
                    first..first + length
                });
                let want: Vec<f32> =
                    rows.flat_map(|row| &whole[row * n..row * n + seen]).copied().collect();
                assert!(bits(&some) == bits(&want), "{:?} {start}", attention.config().mask);
            }
        }
    }
}

/// Inputs of any strides, and a target inside a larger tensor of which nothing else is written.
#[test]
fn strided_inputs_and_targets() {
    let Some(gpu) = gpu() else { return };
    let (m, n) = (67, 71);
    let inputs = normal(shape([2, 4, 2, m, n, 24, 7]), 12);
    let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
    let attention = Attention::new(&gpu, masked(Mask::Causal)).unwrap();
    let lse = attention.forward(uploaded.view()).unwrap().lse;
    let want = floats(&attention.weights(uploaded.view(), &lse).unwrap());

    let token_major = |tensor: &Tensor| {
        let copy = tensor.permute(&[0, 2, 1, 3]).unwrap().contiguous().unwrap();
        copy.permute(&[0, 2, 1, 3]).unwrap()
    };
    let [q, k, v] = [&uploaded.q, &uploaded.k, &uploaded.v].map(token_major);
    let around = Tensor::full(&gpu, &[2, m + 3, 4, n + 5], 7f32).unwrap();
    let inner = around.narrow(1, 2, m).unwrap().narrow(3, 1, n).unwrap();
    let target = inner.permute(&[0, 2, 1, 3]).unwrap();
    attention.weights_into(Inputs::new(&q, &k, &v), &lse, &target).unwrap();
    assert!(bits(&floats(&target)) == bits(&want));
    let untouched = floats(&around).iter().filter(|&&x| x == 7.0).count();
    assert_eq!(untouched, around.len() - want.len());
}

#[test]
fn wrong_arguments_are_refused() {
    let Some(gpu) = gpu() else { return };
    let inputs = normal(shape([1, 2, 1, 9, 12, 16, 16]), 1);
    let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
    let attention = Attention::new(&gpu, masked(Mask::Causal)).unwrap();
    let zeros = |shape: &[usize], dtype| Tensor::zeros(&gpu, shape, dtype).unwrap();
    let (lse, target) = (zeros(&[1, 2, 9], DType::F32), zeros(&[1, 2, 9, 12], DType::F32));
    let refused = |lse: &Tensor, target: &Tensor| match attention.weights_into(
        uploaded.view(),
        lse,
        target,
    ) {
        Err(Error::Core(error)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(refused(&lse.narrow(2, 0, 8).unwrap(), &target).starts_with("`lse`"));
    assert!(refused(&zeros(&[1, 2, 9], DType::U32), &target).starts_with("`lse`"));
    let columns = zeros(&[1, 2, 12, 9], DType::F32).permute(&[0, 1, 3, 2]).unwrap();
    assert!(refused(&lse, &columns).contains("contiguous last dimension"));
    let repeated = zeros(&[1, 1, 9, 12], DType::F32).expand(&[1, 2, 9, 12]).unwrap();
    assert!(refused(&lse, &repeated).starts_with("`target`"));
    assert!(refused(&lse, &target.narrow(3, 0, 11).unwrap()).starts_with("`target`"));
    assert!(refused(&lse, &zeros(&[1, 2, 9, 12], DType::F16)).starts_with("`target`"));
    let Some(other) = open(Gpu::builder()) else { return };
    let elsewhere = Tensor::zeros(&other, &[1, 2, 9], DType::F32).unwrap();
    assert!(refused(&elsewhere, &target).starts_with("`lse`"));
    let elsewhere = Tensor::zeros(&other, &[1, 2, 9, 12], DType::F32).unwrap();
    assert!(refused(&lse, &elsewhere).starts_with("`target`"));
}

/// NaN in keys that a query does not see changes nothing in its row, and no value changes anything.
#[test]
fn nan_that_nobody_sees_changes_nothing() {
    let Some(gpu) = gpu() else { return };
    let (m, n, dim) = (70, 80, 40);
    let clean = normal(shape([1, 1, 1, m, n, dim, 8]), 3);
    let odd = Modifier::mask("odd", "return key % 11 != 0;")
        .with_host(|_, at| f64::from(u8::from(at.key % 11 != 0)));
    let hidden = BitMask::from_fn(m, n, |query, key| (query + key) % 3 != 0 && key % 11 != 0);
    let bias = Modifier::score("bias", "if key % 11 == 0 { return -1e30; }\nreturn score;");
    let configs = [
        masked(Mask::Bits(hidden)),
        masked(Mask::Causal).with_modifier(odd),
        masked(Mask::Causal).with_modifier(bias),
    ];
    for config in configs {
        let want = weigh(&gpu, &clean, &config, DType::F32);
        let mut dirty = clean.clone();
        for key in (0..n).filter(|key| key % 11 == 0) {
            dirty.k[key * dim..(key + 1) * dim].fill(f32::NAN);
        }
        dirty.v.fill(f32::NAN);
        let got = weigh(&gpu, &dirty, &config, DType::F32);
        assert!(bits(&got) == bits(&want), "{}", config.mask.name());
    }
    // A key that some rows see, and a query: all other rows are the same.
    let config = masked(Mask::SinkWindow { left: 20, sinks: 1 });
    let want = weigh(&gpu, &clean, &config, DType::F32);
    let mut dirty = clean.clone();
    dirty.k[30 * dim..31 * dim].fill(f32::NAN);
    dirty.q[2 * dim..3 * dim].fill(f32::NAN);
    let got = weigh(&gpu, &dirty, &config, DType::F32);
    let lengths = clean.shape.lengths();
    for row in (0..m).filter(|&row| row != 2 && !config.mask.allows(lengths, row, 30)) {
        assert!(bits(&got[row * n..][..n]) == bits(&want[row * n..][..n]), "{row}");
    }
}

/// Maps over the largest binding, work over the cap, and more workgroups than one dimension holds.
#[test]
fn splits_change_no_bit() {
    let Some(gpu) = gpu() else { return };
    let limits = |bytes, most| wgpu::Limits {
        max_storage_buffer_binding_size: bytes,
        max_compute_workgroups_per_dimension: most,
        ..wgpu::Limits::default()
    };
    let inputs = normal(shape([2, 4, 2, 300, 131, 16, 16]), 7).with_random_sinks(3);
    let config = masked(Mask::SinkWindow { left: 90, sinks: 2 });
    let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
    let attention = Attention::new(&gpu, config.clone()).unwrap();
    let lse = floats(&attention.forward(uploaded.view()).unwrap().lse);
    let weigh = |gpu: &Gpu, inputs: &HostInputs, lse: &[f32]| {
        let uploaded = Uploaded::new(gpu, inputs).unwrap();
        let lse = Tensor::from_slice(gpu, lse, &inputs.shape.lse()).unwrap();
        Attention::new(gpu, config.clone()).unwrap().weights(uploaded.view(), &lse)
    };
    let whole = floats(&weigh(&gpu, &inputs, &lse).unwrap());
    judge(&inputs, &config, &whole).unwrap();
    // 64 rows are 33,536 bytes.
    for builder in [
        Gpu::builder().limits(limits(40_960, 65_535)),
        Gpu::builder().limits(limits(1 << 20, 17)),
        Gpu::builder().max_work_per_dispatch(1.0),
    ] {
        let Some(split) = open(builder) else { return };
        assert!(bits(&floats(&weigh(&split, &inputs, &lse).unwrap())) == bits(&whole));
    }
    let Some(small) = open(Gpu::builder().limits(limits(32_768, 65_535))) else { return };
    match weigh(&small, &inputs, &lse) {
        Err(Error::Limit { what, limit: "maxStorageBufferBindingSize", needed, .. }) => {
            assert!(what.contains("`weights`"), "{what}");
            assert_eq!(needed, 64 * 131 * 4);
        }
        other => panic!("{other:?}"),
    }
}

/// Elements that nobody wrote would be NaN here.
#[test]
fn poisoned_buffers() {
    let Some(gpu) = open(Gpu::builder().poison(true)) else { return };
    for (dim, n) in [(64, 65), (3, 17)] {
        for mask in [Mask::Window { left: 2, right: 1 }, Mask::SinkWindow { left: 3, sinks: 2 }] {
            check(&gpu, &normal(shape([2, 2, 1, n, 2 * n, dim, dim]), 13), &masked(mask));
        }
    }
}

/// Loops are short, whatever the lengths: software drivers end long ones without a word.
#[test]
fn lengths_beyond_65536() {
    let Some(gpu) = gpu() else { return };
    for (m, n) in [(70_001, 3), (2, 70_001)] {
        let inputs = normal(shape([1, 1, 1, m, n, 4, 4]), 16);
        let config = masked(Mask::GlobalWindow { window: 50_000, global: 2 });
        let got = weigh(&gpu, &inputs, &config, DType::F32);
        let want = dense::forward_with_probs(inputs.to_f64().unwrap().view(), &config).unwrap();
        // Relative, with logits below 10: the sum of few roundings of the logit and of exp.
        for (got, want) in got.iter().zip(&want.probs.unwrap()) {
            assert!((f64::from(*got) - want).abs() <= 2e-5 * want, "{m} {n}: {got} {want}");
        }
    }
}

proptest! {
    #![proptest_config(common::cases(12))]

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
        let got = weigh(&gpu, &inputs, &config, DType::F32);
        judge(&inputs, &config, &got).map_err(TestCaseError::fail)?;
    }
}
