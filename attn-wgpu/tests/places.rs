//! Where things lie: results in views, parts of a call, keys and workgroups beyond 16 bits. Each test holds
//! lines that `cargo xtask mutate` found to be held by none.

mod common;

use attn_core::dense::{self, Config};
use attn_core::testing::HostInputs;
use attn_core::{BitMask, Mask, Modifier};
use attn_wgpu::attention::{Attention, Cotangents, Saved, Want, merge};
use attn_wgpu::{DType, Gpu, Tensor, wgpu};
use common::{
    Uploaded, attend, check, cotangents, gpu, gradients, judge, judge_gradients, masked, normal,
    open, place, shape,
};

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.to_vec().unwrap()
}

/// A tensor that begins `offset` elements behind the place where bindings may begin, and all of its memory.
fn shifted(gpu: &Gpu, data: &[f32], shape: &[usize], offset: usize) -> (Tensor, Tensor) {
    let padded = [vec![7.0; offset], data.to_vec(), vec![7.0; 3]].concat();
    let all = Tensor::from_slice(gpu, &padded, &[padded.len()]).unwrap();
    (all.narrow(0, offset, data.len()).unwrap().reshape(shape).unwrap(), all)
}

/// Statistics of rows that begin at offsets unlike each other: of lse, of its cotangent, of column sums.
#[test]
fn statistics_in_views() {
    let Some(gpu) = gpu() else { return };
    for m in [2, 12] {
        let inputs = normal(shape([2, 4, 2, m, 13, 16, 16]), 1).with_random_sinks(1);
        let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
        let attention = Attention::new(&gpu, masked(Mask::Causal)).unwrap();
        let plain = attention.forward(uploaded.view()).unwrap();
        let empty = vec![0.0; 2 * 4 * m];
        let (lse, around) = shifted(&gpu, &empty, &[2, 4, m], 5);
        let out = Tensor::zeros(&gpu, &inputs.shape.out(), DType::F32).unwrap();
        attention.forward_into(uploaded.view(), &out, Some(&lse)).unwrap();
        assert_eq!(floats(&out), floats(&plain.out), "{m}");
        assert_eq!(floats(&lse), floats(&plain.lse), "{m}");
        let around = floats(&around);
        assert!(around[..5].iter().chain(&around[5 + 8 * m..]).all(|&x| x == 7.0), "{m}");

        let sums = attention.column_sums(uploaded.view(), &plain.lse).unwrap();
        let (target, around) = shifted(&gpu, &[0.0; 2 * 4 * 13], &[2, 4, 13], 9);
        attention.column_sums_into(uploaded.view(), &lse, &target).unwrap();
        assert_eq!(floats(&target), floats(&sums), "{m}");
        let around = floats(&around);
        assert!(around[..9].iter().chain(&around[9 + 8 * 13..]).all(|&x| x == 7.0), "{m}");

        let (d_out, d_lse) = cotangents(&inputs.shape, 2);
        let d_out = Tensor::from_slice(&gpu, &d_out, &inputs.shape.out()).unwrap();
        let (view, _) = shifted(&gpu, &d_lse, &[2, 4, m], 3);
        let d_lse = Tensor::from_slice(&gpu, &d_lse, &[2, 4, m]).unwrap();
        let backward = |lse: &Tensor, d_lse: &Tensor| {
            let saved = Saved::new(uploaded.view(), &plain.out, lse);
            let cotangents = Cotangents { out: &d_out, lse: Some(d_lse) };
            let grads = attention.backward(&saved, cotangents).unwrap();
            [&grads.dq, &grads.dk, &grads.dv, &grads.d_sinks.unwrap()].map(floats)
        };
        assert!(backward(&lse, &view) == backward(&plain.lse, &d_lse), "{m}");
    }
}

/// Column sums are near those of the definition: each is at most the number of queries.
fn check_column_sums(gpu: &Gpu, inputs: &HostInputs, config: &Config) {
    let arrays = inputs.to_f64().unwrap();
    let reference = dense::forward(arrays.view(), config).unwrap();
    let want = dense::column_sums(arrays.view(), config, &reference).unwrap();
    let uploaded = Uploaded::new(gpu, inputs).unwrap();
    let attention = Attention::new(gpu, config.clone()).unwrap();
    let output =
        attention.forward_with(uploaded.view(), Want::nothing().with_column_sums()).unwrap();
    for (got, want) in floats(&output.column_sums.unwrap()).iter().zip(&want) {
        assert!((f64::from(*got) - want).abs() < 1e-5, "{got} {want}");
    }
}

/// A modifier that tells batch entries and heads apart sees those of the call in column sums, too.
#[test]
fn column_sums_know_their_batch_and_head() {
    let Some(gpu) = gpu() else { return };
    let Some(split) = open(Gpu::builder().max_work_per_dispatch(1.0)) else { return };
    let config = masked(Mask::Causal).with_modifier(place());
    let inputs = normal(shape([3, 4, 2, 15, 21, 16, 16]), 3);
    for gpu in [gpu, split] {
        check_column_sums(&gpu, &inputs, &config);
    }
}

/// A modifier with a derivative that tells batch entries, heads, keys and scores apart.
fn factor() -> Modifier {
    let factor = |at: &attn_core::ModifierArgs| {
        let plane = 1.0 + 0.5 * at.head as f64 - 0.25 * at.batch as f64;
        plane + 0.0625 * (at.key % 4) as f64
    };
    let text = "1.0 + 0.5 * f32(head) - 0.25 * f32(batch) + 0.0625 * f32(key % 4)";
    Modifier::score("factor", format!("return score * ({text} + 0.0625 * score);"))
        .with_derivative(format!("return {text} + 0.125 * score;"))
        .with_host(move |score, at| score * (factor(at) + 0.0625 * score))
        .with_host_derivative(move |score, at| factor(at) + 0.125 * score)
}

/// And in the backward pass, also where it is split by batch entries and heads. Keys are told apart, too.
#[test]
fn gradients_know_their_batch_and_head() {
    let Some(gpu) = gpu() else { return };
    let Some(split) = open(Gpu::builder().max_work_per_dispatch(1.0)) else { return };
    let config = masked(Mask::Causal).with_modifier(factor());
    let inputs = normal(shape([3, 4, 2, 15, 21, 16, 16]), 6);
    let (d_out, d_lse) = cotangents(&inputs.shape, 7);
    for gpu in [gpu, split] {
        let got = gradients(&gpu, &inputs, &config, &d_out, Some(&d_lse)).unwrap();
        judge_gradients("place", &inputs, &config, &d_out, Some(&d_lse), &got).unwrap();
    }
}

/// Keys are counted inside their document, and under bits from the first on; scores come from the soft cap.
#[test]
fn modifiers_in_documents_and_under_bits() {
    let Some(gpu) = gpu() else { return };
    let (m, n) = (15, 25);
    let inputs = normal(shape([1, 2, 1, m, n, 16, 16]), 19);
    let (d_out, d_lse) = cotangents(&inputs.shape, 20);
    let odd = Modifier::mask("odd", "return key % 2 == 1 || key == position;")
        .with_host(|_, at| f64::from(u8::from(at.key % 2 == 1 || at.key as i64 == at.position)));
    let documents =
        Mask::Documents { cu_q: vec![0, 6, m], cu_k: vec![0, 9, n], inner: Box::new(Mask::Causal) };
    let bits = Mask::Bits(BitMask::from_fn(m, n, |query, key| (query + key) % 3 != 0));
    for config in [documents, bits].map(masked) {
        check(&gpu, &inputs, &config.clone().with_modifier(odd.clone()));
        let config = config.with_soft_cap(2.0).with_modifier(factor());
        check(&gpu, &inputs, &config);
        let got = gradients(&gpu, &inputs, &config, &d_out, Some(&d_lse)).unwrap();
        judge_gradients("documents", &inputs, &config, &d_out, Some(&d_lse), &got).unwrap();
    }
}

/// Each head has its own sink, also where a call of few queries is split by heads.
#[test]
fn parts_of_a_call_know_their_sinks() {
    let Some(gpu) = gpu() else { return };
    let Some(split) = open(Gpu::builder().max_work_per_dispatch(1.0)) else { return };
    for m in [1, 9] {
        let inputs = normal(shape([2, 6, 3, m, 40, 16, 16]), 4).with_random_sinks(5);
        let config = masked(Mask::Causal);
        let whole = attend(&gpu, &inputs, &config).unwrap();
        judge("sinks", &inputs, &config, &whole).unwrap();
        assert!(attend(&split, &inputs, &config).unwrap().bits() == whole.bits(), "{m}");
    }
}

/// Bits of keys whose numbers need more than 16 bits, with the smallest head.
#[test]
fn bits_beyond_65536_keys() {
    let Some(gpu) = gpu() else { return };
    let n = 70_001;
    for m in [1, 9] {
        let bits = BitMask::from_fn(m, n, |query, key| key + 3 + query >= n);
        check(&gpu, &normal(shape([1, 1, 1, m, n, 4, 4]), 6), &masked(Mask::Bits(bits)));
    }
}

/// Head dims of which some lanes hold a vec4 less than others, which they must not count twice.
#[test]
fn heads_that_do_not_fill_their_lanes() {
    let Some(gpu) = gpu() else { return };
    for m in [2, 11] {
        let inputs = normal(shape([3, 2, 1, m, 21, 40, 72]), 10).with_random_sinks(2);
        let config = masked(Mask::Causal);
        check(&gpu, &inputs, &config);
        check_column_sums(&gpu, &inputs, &config);
        let (d_out, d_lse) = cotangents(&inputs.shape, 11);
        let got = gradients(&gpu, &inputs, &config, &d_out, Some(&d_lse)).unwrap();
        judge_gradients("lanes", &inputs, &config, &d_out, Some(&d_lse), &got).unwrap();
    }
}

/// Windows that are wider than a tile, all of whose rows see the keys in the middle, and windows that begin at
/// the row's own position.
#[test]
fn windows_wider_than_tiles_and_one_sided_ones() {
    let Some(gpu) = gpu() else { return };
    let inputs = normal(shape([1, 1, 1, 90, 95, 128, 128]), 15);
    let (d_out, d_lse) = cotangents(&inputs.shape, 16);
    for (left, right) in [(40, 3), (0, 40), (0, 0)] {
        let config = masked(Mask::Window { left, right });
        check(&gpu, &inputs, &config);
        let got = gradients(&gpu, &inputs, &config, &d_out, Some(&d_lse)).unwrap();
        judge_gradients("window", &inputs, &config, &d_out, Some(&d_lse), &got).unwrap();
    }
}

/// Keys that every query sees, in more than one chunk of few queries, before a window that is in the last one.
#[test]
fn sinks_beyond_a_chunk() {
    let Some(gpu) = gpu() else { return };
    for (sinks, left) in [(3, 5), (256, 5), (300, 5), (300, 700)] {
        let inputs = normal(shape([1, 2, 1, 3, 800, 16, 16]), 17);
        check(&gpu, &inputs, &masked(Mask::SinkWindow { left, sinks }));
    }
}

/// Parts whose sums of exponentials f32 does not hold, with rows that fill a buffer: nothing is read behind them.
#[test]
fn parts_of_small_weight() {
    let Some(gpu) = gpu() else { return };
    let part = |out: f32, lse: f32| {
        let out = Tensor::full(&gpu, &[1, 1, 128, 8], out).unwrap();
        (out, Tensor::full(&gpu, &[1, 1, 128], lse).unwrap())
    };
    let ((a, lse_a), (b, lse_b)) = (part(1.0, -900.0), part(4.0, -901.0));
    let merged = merge(&[(&a, &lse_a), (&b, &lse_b)]).unwrap();
    let sum = 1.0 + (-1.0f64).exp();
    let near = |got: Vec<f32>, want: f64| {
        // A few roundings of f32.
        assert!(got.iter().all(|&x| (f64::from(x) - want).abs() < 1e-6 * want.abs()), "{got:?}");
    };
    near(floats(&merged.out), (1.0 + 4.0 * (-1.0f64).exp()) / sum);
    near(floats(&merged.lse), -900.0 + sum.ln());
}

/// The soft cap has all digits but a few units of the last, below the bound of its series, and but a few more above,
/// where a difference is taken: with one key, the log-sum-exp is the capped logit.
#[test]
fn digits_of_the_soft_cap() {
    let Some(gpu) = gpu() else { return };
    let mut inputs = normal(shape([1, 32, 1, 1, 1, 4, 4]), 21);
    inputs.k = vec![1.0, 0.0, 0.0, 0.0];
    for (bound, tolerance) in [(0.25, 4e-7), (0.5, 2e-6)] {
        let x = |head: usize| bound - (head + 1) as f32 / 1024.0;
        for (head, q) in inputs.q.chunks_mut(4).enumerate() {
            // The scale is 1 / 2, and the cap 2.
            q.copy_from_slice(&[4.0 * x(head), 0.0, 0.0, 0.0]);
        }
        let got = attend(&gpu, &inputs, &masked(Mask::Causal).with_soft_cap(2.0)).unwrap();
        for (head, &lse) in got.lse.iter().enumerate() {
            let want = 2.0 * f64::from(x(head)).tanh();
            assert!((f64::from(lse) - want).abs() < tolerance * want, "{head}: {lse} {want}");
        }
    }
}

/// More query heads of one key head than 15 bits hold.
#[test]
fn a_group_of_many_heads() {
    let Some(gpu) = gpu() else { return };
    for m in [1, 9] {
        check(&gpu, &normal(shape([1, 40_000, 1, m, 3, 4, 4]), 18), &masked(Mask::Causal));
    }
}

/// The largest heads, whose lanes are more than software drivers run in step: without subgroups they have to
/// wait for each other.
#[test]
fn lanes_wait_for_each_other() {
    let Some(gpu) = gpu() else { return };
    for m in [2, 9] {
        let inputs = normal(shape([1, 1, 1, m, 20, 256, 256]), 14);
        check(&gpu, &inputs, &masked(Mask::Causal));
    }
}

/// Lanes beyond a head dimension multiply by zero what must be finite: they read no other token.
#[test]
fn lanes_beyond_the_head_read_no_other_token() {
    let Some(gpu) = gpu() else { return };
    let (n, dim_qk, dim_v) = (21, 40, 72);
    for m in [2, 11] {
        // Nobody sees key 5, and query 1 sees nothing.
        let bits = BitMask::from_fn(m, n, |query, key| query != 1 && key != 5);
        let config = masked(Mask::Bits(bits));
        let clean = normal(shape([1, 1, 1, m, n, dim_qk, dim_v]), 12);
        let (d_out, d_lse) = cotangents(&clean.shape, 13);
        let (mut dirty, mut dirty_d_out) = (clean.clone(), d_out.clone());
        dirty.q[dim_qk..2 * dim_qk].fill(f32::NAN);
        dirty.k[5 * dim_qk..6 * dim_qk].fill(f32::NAN);
        dirty.v[5 * dim_v..6 * dim_v].fill(f32::NAN);
        dirty_d_out[dim_v..2 * dim_v].fill(f32::NAN);
        let want = attend(&gpu, &clean, &config).unwrap();
        assert!(attend(&gpu, &dirty, &config).unwrap().bits() == want.bits(), "{m}");
        let want = common::gradients(&gpu, &clean, &config, &d_out, Some(&d_lse)).unwrap();
        let got = common::gradients(&gpu, &dirty, &config, &dirty_d_out, Some(&d_lse)).unwrap();
        assert!(got == want, "{m}");
    }
}

/// A call in more workgroups than one dimension holds: those that the fold adds have no work, and do none.
#[test]
fn folded_dispatches_change_no_bit() {
    let Some(gpu) = gpu() else { return };
    let most = 7;
    let limits = wgpu::Limits { max_compute_workgroups_per_dimension: most, ..Default::default() };
    let Some(folding) = open(Gpu::builder().limits(limits)) else { return };
    assert_eq!(folding.capabilities().max_workgroups, most);
    // Planes times tiles, and heads, that fill no fold.
    for (heads, m) in [(13, 9), (13, 40), (17, 2), (8, 1)] {
        let inputs = normal(shape([1, heads, heads, m, 30, 16, 16]), 7).with_random_sinks(8);
        let config = masked(Mask::Causal);
        let (d_out, d_lse) = cotangents(&inputs.shape, 9);
        let run = |gpu: &Gpu| {
            let result = attend(gpu, &inputs, &config).unwrap();
            let grads = common::gradients(gpu, &inputs, &config, &d_out, Some(&d_lse)).unwrap();
            let uploaded = Uploaded::new(gpu, &inputs).unwrap();
            let lse = Tensor::from_slice(gpu, &result.lse, &inputs.shape.lse()).unwrap();
            let attention = Attention::new(gpu, config.clone()).unwrap();
            let sums = floats(&attention.column_sums(uploaded.view(), &lse).unwrap());
            (result, grads, sums)
        };
        assert!(run(&folding) == run(&gpu), "{heads} {m}");
    }
}
