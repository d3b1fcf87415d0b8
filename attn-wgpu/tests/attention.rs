//! Dense attention on the device against the f64 reference, over tables and random cases.

mod common;

use attn_core::testing::{HostInputs, Values, plant, strategies};
use attn_core::{Lengths, Mask};
use attn_wgpu::Tensor;
use attn_wgpu::attention::{Attention, Inputs};
use common::{Uploaded, attend, check, gpu, judge, masked, normal, shape};
use proptest::prelude::*;

/// Masks with every form of row, for `n` tokens.
fn masks(n: usize) -> Vec<Mask> {
    let cu = vec![0, n / 3, n / 3, n / 2, n];
    vec![
        Mask::Full,
        Mask::Causal,
        Mask::Window { left: 5, right: 0 },
        Mask::Window { left: 3, right: 70 },
        Mask::documents(&cu, Mask::Causal),
        Mask::documents(&cu, Mask::Full),
        Mask::SinkWindow { left: 6, sinks: 2 },
        Mask::GlobalWindow { window: 4, global: 3 },
        Mask::PrefixLm { prefix: n / 4 },
        Mask::ShareQuestion { cu: cu.clone() },
        Mask::CausalBlockwise { cu: cu.clone() },
        Mask::BlockCausalDocuments { cu, block: 8 },
    ]
}

// fla-org/flash-linear-attention#88: very short sequences fail; ml-explore/mlx#3585, #2626: odd
// lengths and masked tails are wrong.
#[test]
fn lengths_under_every_mask() {
    let Some(gpu) = gpu() else { return };
    for n in (1..=17).chain([63, 64, 65, 127, 129]) {
        for mask in masks(n) {
            check(&gpu, &normal(shape([1, 2, 1, n, n, 64, 64]), n as u64), &masked(mask));
        }
    }
    for mask in masks(1000) {
        check(&gpu, &normal(shape([1, 3, 1, 1000, 1000, 64, 64]), 1000), &masked(mask));
    }
}

// OpenNLPLab/TransnormerLLM#9, 66RING/tiny-flash-attention#12, ggml-org/llama.cpp#23020: head
// dims that are not powers of two are refused or wrong.
#[test]
fn head_dims() {
    let Some(gpu) = gpu() else { return };
    for dim in [1, 3, 40, 63, 64, 72, 96, 127, 128, 192, 256] {
        for n in [5, 70] {
            let inputs = normal(shape([2, 2, 2, n, n, dim, dim]), dim as u64);
            check(&gpu, &inputs, &masked(Mask::Causal));
        }
    }
}

#[test]
fn unequal_head_dims() {
    let Some(gpu) = gpu() else { return };
    for (dim_qk, dim_v) in [(192, 128), (1, 256), (63, 1), (24, 96)] {
        let inputs = normal(shape([1, 2, 1, 33, 47, dim_qk, dim_v]), 7);
        check(&gpu, &inputs, &masked(Mask::Causal));
    }
}

// flashinfer-ai/flashinfer#140, #558, #996, #2684, #3563, #4316; mlc-ai/mlc-llm#2543: ratios of
// query heads to key heads other than powers of two are refused or wrong.
#[test]
fn grouped_query_ratios() {
    let Some(gpu) = gpu() else { return };
    for ratio in [1, 2, 3, 5, 6, 7, 8, 9, 16] {
        for heads_kv in [1, 2] {
            let inputs = normal(shape([2, ratio * heads_kv, heads_kv, 33, 33, 16, 16]), 3);
            check(&gpu, &inputs, &masked(Mask::Causal));
        }
    }
}

// gittensor-ai-lab/sparkinfer#3, hyprstream/hyprstream#1521, flashinfer#348,
// pytorch/executorch#21749, onnx/onnx#8054, Mikyx-1/TinyLLM#17: causal masks are misaligned when
// the queries are the tail of longer keys.
#[test]
fn causal_masks_are_aligned_bottom_right() {
    let Some(gpu) = gpu() else { return };
    for (m, n) in [(2, 3), (3, 2), (1, 1), (1, 129), (5, 64), (64, 5), (129, 1000)] {
        for mask in [
            Mask::Causal,
            Mask::Window { left: 7, right: 2 },
            Mask::SinkWindow { left: 5, sinks: 4 },
            Mask::PrefixLm { prefix: 3 },
        ] {
            check(&gpu, &normal(shape([1, 2, 1, m, n, 64, 64]), 5), &masked(mask));
        }
    }
}

/// The rows of a long prefill computed in chunks are those of one call.
#[test]
fn chunked_prefill_equals_one_call() {
    let Some(gpu) = gpu() else { return };
    let (n, heads, dim) = (140, 2, 16);
    let inputs = normal(shape([1, heads, 1, n, n, dim, dim]), 11);
    let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
    let attention = Attention::new(&gpu, masked(Mask::Causal)).unwrap();
    let mut start = 0;
    for length in [1, 7, 64, 65, 3] {
        let end = start + length;
        let q = uploaded.q.narrow(2, start, length).unwrap();
        let (k, v) = (uploaded.k.narrow(2, 0, end).unwrap(), uploaded.v.narrow(2, 0, end).unwrap());
        let chunk = attention.forward(Inputs::new(&q, &k, &v)).unwrap();
        let cut = |data: &[f32], heads: usize, from: usize, to: usize| -> Vec<f32> {
            (0..heads)
                .flat_map(|h| &data[(h * n + from) * dim..(h * n + to) * dim])
                .copied()
                .collect()
        };
        let part = HostInputs {
            shape: shape([1, heads, 1, length, end, dim, dim]),
            q: cut(&inputs.q, heads, start, end),
            k: cut(&inputs.k, 1, 0, end),
            v: cut(&inputs.v, 1, 0, end),
            sinks: None,
        };
        let got =
            common::Result32 { out: chunk.out.to_vec().unwrap(), lse: chunk.lse.to_vec().unwrap() };
        judge(&format!("chunk {start}..{end}"), &part, attention.config(), &got).unwrap();
        start = end;
    }
    assert_eq!(start, n);
}

// flashinfer-ai/flashinfer#4484, #4051; vllm-project/vllm#27491: without keys the output must be 0
// and the log-sum-exp -inf.
#[test]
fn no_keys_and_no_queries() {
    let Some(gpu) = gpu() else { return };
    let got =
        attend(&gpu, &normal(shape([2, 4, 2, 5, 0, 16, 6]), 0), &masked(Mask::Causal)).unwrap();
    assert_eq!(got.out, vec![0.0; 2 * 4 * 5 * 6]);
    assert!(got.lse.iter().all(|x| x.to_bits() == 0xFF80_0000), "{:?}", got.lse);
    for extents in [[0, 4, 2, 5, 5, 16, 16], [2, 0, 0, 5, 5, 16, 16], [2, 4, 2, 0, 5, 16, 16]] {
        let got = attend(&gpu, &normal(shape(extents), 0), &masked(Mask::Full)).unwrap();
        assert!(got.out.is_empty() && got.lse.is_empty());
    }
}

// tracel-ai/burn#4697, robertknight/rten#1321, ml-explore/mlx#2608, pytorch/pytorch#131060: rows
// without an allowed key give NaN.
#[test]
fn rows_without_keys_are_zero() {
    let Some(gpu) = gpu() else { return };
    let inputs = normal(shape([1, 2, 1, 70, 6, 64, 64]), 2);
    let got = attend(&gpu, &inputs, &masked(Mask::Causal)).unwrap();
    let empty = 64;
    for head in 0..2 {
        let out = &got.out[head * 70 * 64..][..empty * 64];
        assert!(out.iter().all(|x| x.to_bits() == 0), "head {head}");
        let lse = &got.lse[head * 70..][..empty];
        assert!(lse.iter().all(|x| x.to_bits() == 0xFF80_0000), "head {head}");
        assert!(got.lse[head * 70 + empty].is_finite());
    }
    check(&gpu, &inputs, &masked(Mask::Causal));
}

// pytorch/pytorch#101967: NaN in masked keys and values poisons the output.
#[test]
fn nan_in_masked_keys_and_values_changes_nothing() {
    let Some(gpu) = gpu() else { return };
    let (m, n, dim) = (70, 90, 16);
    let lengths = Lengths::new(m, n);
    let documents = Mask::Documents {
        cu_q: vec![0, 20, 40, m],
        cu_k: vec![0, 30, 30, n],
        inner: Box::new(Mask::Causal),
    };
    let masks = [
        Mask::Causal,
        Mask::Window { left: 4, right: 1 },
        documents,
        Mask::SinkWindow { left: 3, sinks: 2 },
        Mask::GlobalWindow { window: 3, global: 2 },
        Mask::ShareQuestion { cu: vec![0, 9, 50, n] },
    ];
    for mask in masks {
        let config = masked(mask.clone());
        let clean = normal(shape([1, 1, 1, m, n, dim, dim]), 21);
        let want = attend(&gpu, &clean, &config).unwrap();
        // One query at a time: everything that it does not see is poison.
        for query in (0..m).step_by(3) {
            for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut dirty = clean.clone();
                let hidden: Vec<usize> = (0..n)
                    .filter(|&key| !mask.allows(lengths, query, key))
                    .flat_map(|key| key * dim..(key + 1) * dim)
                    .collect();
                plant(&mut dirty.k, hidden.iter().copied(), poison).unwrap();
                plant(&mut dirty.v, hidden, poison).unwrap();
                let got = attend(&gpu, &dirty, &config).unwrap();
                let row = query * dim..(query + 1) * dim;
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&got.out[row.clone()]), bits(&want.out[row]), "{mask:?} {query}");
                assert_eq!(got.lse[query].to_bits(), want.lse[query].to_bits(), "{mask:?} {query}");
            }
        }
    }
}

/// NaN in a row's own query, or in a key that it sees, touches no other row.
#[test]
fn nan_in_one_query_touches_no_other_row() {
    let Some(gpu) = gpu() else { return };
    let (n, dim) = (70, 64);
    let clean = normal(shape([1, 2, 1, n, n, dim, dim]), 22);
    let want = attend(&gpu, &clean, &masked(Mask::Causal)).unwrap();
    for query in [0, 1, 17, 69] {
        let mut dirty = clean.clone();
        plant(&mut dirty.q, query * dim..(query + 1) * dim, f32::NAN).unwrap();
        let got = attend(&gpu, &dirty, &masked(Mask::Causal)).unwrap();
        for row in (0..2 * n).filter(|&row| row != query) {
            let (a, b) = (&got.out[row * dim..][..dim], &want.out[row * dim..][..dim]);
            assert!(a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()), "{query} {row}");
        }
    }
}

// ohdearquant/lattice#6, karpathy/nanochat#844: future tokens leak into the past.
#[test]
fn causal_outputs_do_not_depend_on_later_tokens() {
    let Some(gpu) = gpu() else { return };
    let (n, dim) = (130, 16);
    let clean = normal(shape([1, 1, 1, n, n, dim, dim]), 23);
    let want = attend(&gpu, &clean, &masked(Mask::Causal)).unwrap();
    for changed in [1, 31, 64, 65, 129] {
        let mut other = clean.clone();
        for data in [&mut other.q, &mut other.k, &mut other.v] {
            plant(data, changed * dim..(changed + 1) * dim, 3.5).unwrap();
        }
        let got = attend(&gpu, &other, &masked(Mask::Causal)).unwrap();
        assert_eq!(got.out[..changed * dim], want.out[..changed * dim], "{changed}");
        assert_ne!(got.out[changed * dim..], want.out[changed * dim..], "{changed}");
    }
}

// ml-explore/mlx#3452: one sequence alone and the same in a batch differ.
#[test]
fn a_batch_entry_and_a_head_are_the_same_alone_bit_for_bit() {
    let Some(gpu) = gpu() else { return };
    for (n, dim, mask) in
        [(65, 64, Mask::Causal), (7, 40, Mask::Full), (130, 16, Mask::PrefixLm { prefix: 9 })]
    {
        let all = shape([3, 6, 2, n, n, dim, dim]);
        let inputs = normal(all, 31);
        let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
        let attention = Attention::new(&gpu, masked(mask)).unwrap();
        let whole = attention.forward(uploaded.view()).unwrap();
        let (out, lse): (Vec<f32>, Vec<f32>) =
            (whole.out.to_vec().unwrap(), whole.lse.to_vec().unwrap());
        for batch in 0..3 {
            for head in [0, 2, 3, 5] {
                let part = |tensor: &Tensor, head: usize| {
                    tensor.narrow(0, batch, 1).unwrap().narrow(1, head, 1).unwrap()
                };
                let (q, k, v) = (
                    part(&uploaded.q, head),
                    part(&uploaded.k, head / 3),
                    part(&uploaded.v, head / 3),
                );
                let alone = attention.forward(Inputs::new(&q, &k, &v)).unwrap();
                let plane = batch * 6 + head;
                assert_eq!(alone.out.to_vec::<f32>().unwrap(), out[plane * n * dim..][..n * dim]);
                assert_eq!(alone.lse.to_vec::<f32>().unwrap(), lse[plane * n..][..n]);
            }
        }
    }
}

// Dao-AILab/flash-attention#384, #414, #429, #2244: two runs differ.
#[test]
fn two_runs_are_bit_equal() {
    let Some(gpu) = gpu() else { return };
    let inputs = normal(shape([2, 9, 3, 200, 200, 64, 64]), 41);
    let first = attend(&gpu, &inputs, &masked(Mask::Causal)).unwrap();
    for _ in 0..3 {
        assert_eq!(attend(&gpu, &inputs, &masked(Mask::Causal)).unwrap().bits(), first.bits());
    }
}

// ml-explore/mlx#2096, pytorch/pytorch#109517, microsoft/onnxruntime#26732: extreme logits give
// NaN or garbage; huggingface/candle#3727: equal logits sum to 2.
#[test]
fn extreme_and_equal_logits() {
    let Some(gpu) = gpu() else { return };
    for values in Values::ALL {
        for n in [3, 65, 200] {
            let inputs = HostInputs::random(shape([1, 2, 1, n, n, 64, 64]), 51, values);
            check(&gpu, &inputs, &masked(Mask::Causal));
        }
    }
    let inputs = HostInputs::random(shape([1, 1, 1, 2, 4096, 16, 16]), 52, Values::Constant);
    check(&gpu, &inputs, &masked(Mask::Full));
    // Logits near the largest f16, where half-precision implementations overflow.
    let mut inputs = normal(shape([1, 1, 1, 20, 20, 16, 16]), 53);
    inputs.q.iter_mut().for_each(|x| *x *= 60_000.0);
    check(&gpu, &inputs, &masked(Mask::Causal).with_scale(1.0));
}

#[test]
fn scale_zero_and_negative() {
    let Some(gpu) = gpu() else { return };
    for scale in [0.0, -0.5, 3.0] {
        check(
            &gpu,
            &normal(shape([1, 2, 1, 20, 20, 16, 16]), 54),
            &masked(Mask::Causal).with_scale(scale),
        );
    }
}

/// Layouts other than row-major are views, not copies; outputs can be written into views.
#[test]
fn strided_inputs_and_outputs() {
    let Some(gpu) = gpu() else { return };
    let (b, h, hk, n) = (2, 4, 2, 37);
    for dim in [64, 40, 7] {
        let inputs = normal(shape([b, h, hk, n, n, dim, dim]), 61);
        let config = masked(Mask::Causal);
        let want = attend(&gpu, &inputs, &config).unwrap();
        let plain = Uploaded::new(&gpu, &inputs).unwrap();
        // [B, H, N, D] as a view of [B, N, H, D].
        let token_major = |tensor: &Tensor| {
            let copy = tensor.permute(&[0, 2, 1, 3]).unwrap().contiguous().unwrap();
            copy.permute(&[0, 2, 1, 3]).unwrap()
        };
        let (q, k, v) = (token_major(&plain.q), token_major(&plain.k), token_major(&plain.v));
        let attention = Attention::new(&gpu, config).unwrap();
        let strided = attention.forward(Inputs::new(&q, &k, &v)).unwrap();
        assert_eq!(strided.out.to_vec::<f32>().unwrap(), want.out, "dim {dim}");

        // Even the last dimension may be strided: it is packed.
        let transposed = |tensor: &Tensor| {
            let copy = tensor.permute(&[0, 1, 3, 2]).unwrap().contiguous().unwrap();
            copy.permute(&[0, 1, 3, 2]).unwrap()
        };
        let k = transposed(&plain.k);
        let strided = attention.forward(Inputs::new(&q, &k, &v)).unwrap();
        assert_eq!(strided.out.to_vec::<f32>().unwrap(), want.out, "dim {dim}, last stride");

        // Into a part of a larger tensor, of which the rest stays as it was.
        let target = Tensor::full(&gpu, &[b, n, h + 1, dim + 4], 7f32).unwrap();
        let view = target.narrow(2, 1, h).unwrap().narrow(3, 4, dim).unwrap();
        let view = view.permute(&[0, 2, 1, 3]).unwrap();
        attention.forward_into(plain.view(), &view, None).unwrap();
        assert_eq!(view.to_vec::<f32>().unwrap(), want.out, "dim {dim}, into");
        let all = target.to_vec::<f32>().unwrap();
        let untouched = all.iter().enumerate().filter(|(i, _)| {
            let (head, d) = (i / (dim + 4) % (h + 1), i % (dim + 4));
            head == 0 || d < 4
        });
        assert!(untouched.into_iter().all(|(_, &x)| x == 7.0), "dim {dim}");
    }
}

/// One key head for all queries by stride 0, as an expanded view.
#[test]
fn broadcast_inputs() {
    let Some(gpu) = gpu() else { return };
    let inputs = normal(shape([2, 3, 3, 19, 19, 16, 16]), 62);
    let plain = Uploaded::new(&gpu, &inputs).unwrap();
    let one = |t: &Tensor| t.narrow(0, 0, 1).unwrap().narrow(1, 0, 1).unwrap();
    let (k, v) = (one(&plain.k), one(&plain.v));
    let expand = |t: &Tensor| t.expand(&[2, 3, 19, 16]).unwrap();
    let copied = |t: &Tensor| {
        let data = t.to_vec::<f32>().unwrap().repeat(6);
        Tensor::from_slice(&gpu, &data, &[2, 3, 19, 16]).unwrap()
    };
    let attention = Attention::new(&gpu, masked(Mask::Causal)).unwrap();
    let (ke, ve, kc, vc) = (expand(&k), expand(&v), copied(&k), copied(&v));
    let expanded = attention.forward(Inputs::new(&plain.q, &ke, &ve)).unwrap();
    let copied = attention.forward(Inputs::new(&plain.q, &kc, &vc)).unwrap();
    assert_eq!(expanded.out.to_vec::<f32>().unwrap(), copied.out.to_vec::<f32>().unwrap());
}

proptest! {
    #![proptest_config(common::cases(64))]

    /// Any extents, mask and values. Dims come from a short list, since each pair is a pipeline.
    #[test]
    fn equals_the_reference(
        mut case in strategies::case(400_000),
        dims in prop::sample::select(vec![(64, 64), (16, 16), (3, 40), (63, 63), (128, 128)]),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        (case.shape.dim_qk, case.shape.dim_v) = dims;
        let inputs = case.inputs();
        let got = attend(&gpu, &inputs, &case.config).unwrap();
        let name = format!("{:?} {}", case.shape, case.config.mask.name());
        judge(&name, &inputs, &case.config, &got).map_err(TestCaseError::fail)?;
    }
}
