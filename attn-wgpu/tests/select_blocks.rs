//! Summaries and scores of blocks, and the attention of the last queries, against f64 on the host.

mod common;

use attn_core::testing::{Values, fill};
use attn_wgpu::select::{BlockScores, Pool, PoolKind, Probe, Short, block_scores, pool, probe};
use attn_wgpu::{DType, Gpu, Tensor};
use common::rows::{close, floats, round};
use common::{cases, gpu, open, upload};
use proptest::prelude::*;

/// A tensor `[batch, heads, tokens, dim]` as a view of `[batch, tokens, heads, dim + 1]`, so that no
/// row is aligned, or as it is.
fn place(gpu: &Gpu, data: &[f32], shape: [usize; 4], dtype: DType, aligned: bool) -> Tensor {
    if aligned {
        return upload(gpu, data, &shape, dtype).unwrap();
    }
    let [batch, heads, tokens, dim] = shape;
    let mut spread = vec![f32::NAN; batch * tokens * heads * (dim + 1)];
    for (row, values) in data.chunks(dim.max(1)).enumerate() {
        let (token, head) = (row % tokens, row / tokens % heads);
        let at = ((row / tokens / heads * tokens + token) * heads + head) * (dim + 1);
        spread[at..at + dim].copy_from_slice(values);
    }
    let spread = upload(gpu, &spread, &[batch, tokens, heads, dim + 1], dtype).unwrap();
    spread.narrow(3, 0, dim).unwrap().permute(&[0, 2, 1, 3]).unwrap()
}

/// Logits `[planes, queries, keys]` in f64, a plane a query head.
fn products(
    q: &[f32],
    k: &[f32],
    q_shape: [usize; 4],
    k_shape: [usize; 4],
    scale: f64,
) -> Vec<Vec<f64>> {
    let ([batch, heads, queries, dim], [_, heads_kv, keys, _]) = (q_shape, k_shape);
    let mut rows = Vec::new();
    for (entry, head) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        let plane = (entry * heads_kv + head / (heads / heads_kv)) * keys;
        for query in 0..queries {
            let q_row = &q[((entry * heads + head) * queries + query) * dim..][..dim];
            let dot = |key: usize| -> f64 {
                let k_row = &k[(plane + key) * dim..][..dim];
                scale
                    * q_row
                        .iter()
                        .zip(k_row)
                        .map(|(&a, &b)| f64::from(a) * f64::from(b))
                        .sum::<f64>()
            };
            rows.push((0..keys).map(dot).collect());
        }
    }
    rows
}

/// Softmax of the first `visible` elements, 0 elsewhere.
fn softmax(row: &[f64], visible: usize) -> Vec<f64> {
    let seen = &row[..visible.min(row.len())];
    let top = seen.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = seen.iter().map(|x| (x - top).exp()).sum();
    let mut weights: Vec<f64> = seen.iter().map(|x| (x - top).exp() / sum).collect();
    weights.resize(row.len(), 0.0);
    weights
}

/// Both profiles of every head.
fn profiles(rows: &[Vec<f64>], queries: usize, keys: usize) -> [Vec<f64>; 2] {
    let mut found = [Vec::new(), Vec::new()];
    for plane in rows.chunks(queries) {
        let (mut columns, mut distances) = (vec![0.0; keys], vec![0.0; keys]);
        for (i, row) in plane.iter().enumerate() {
            let visible = (keys + i + 1).saturating_sub(queries);
            for (t, p) in softmax(row, visible).into_iter().enumerate().take(visible) {
                columns[t] += p / queries as f64;
                distances[visible - 1 - t] += p / queries as f64;
            }
        }
        found[0].extend(columns);
        found[1].extend(distances);
    }
    found
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn pools_are_those_of_f64(
        batch in 1usize..3, heads in 1usize..4, tokens in 0usize..200, dim in 1usize..20,
        block in prop_oneof![1usize..5, 15usize..40, Just(1000usize)], first in any::<bool>(),
        dtype in floats(), aligned in any::<bool>(), seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let shape = [batch, heads, tokens, dim];
        let data = round(&fill(seed, 0, Values::Normal, shape.iter().product()), dtype);
        let x = place(&gpu, &data, shape, dtype, aligned);
        let lack = if first { tokens.div_ceil(block) * block - tokens } else { 0 };
        for kind in [PoolKind::Mean, PoolKind::Sum, PoolKind::Max, PoolKind::Min] {
            let short = if first { Short::First } else { Short::Last };
            let got = pool(&x, &Pool { short, ..Pool::new(block, kind) }).unwrap();
            let mut want = Vec::new();
            for plane in data.chunks((tokens * dim).max(1)) {
                for number in 0..tokens.div_ceil(block) {
                    let start = (number * block).saturating_sub(lack);
                    let end = ((number + 1) * block - lack).min(tokens);
                    for d in 0..dim {
                        let values = (start..end).map(|t| f64::from(plane[t * dim + d]));
                        want.push(match kind {
                            PoolKind::Max => values.fold(f64::NEG_INFINITY, f64::max),
                            PoolKind::Min => values.fold(f64::INFINITY, f64::min),
                            PoolKind::Sum => values.sum(),
                            _ => values.sum::<f64>() / (end - start) as f64,
                        });
                    }
                }
            }
            prop_assert_eq!(got.shape(), [batch, heads, tokens.div_ceil(block), dim]);
            // Sums of up to 200 numbers of size 1 in f32.
            close(&format!("{kind:?}"), &got, &want, 1e-6, 2e-5)?;
        }
    }

    #[test]
    fn profiles_are_those_of_f64(
        batch in 1usize..3, heads_kv in 1usize..3, group in 1usize..4,
        queries in prop_oneof![1usize..40, Just(64usize)],
        keys in prop_oneof![1usize..50, 100usize..400], dim in prop_oneof![Just(16usize), 1usize..20],
        dtype in floats(), aligned in any::<bool>(), sharp in any::<bool>(), seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let (q_shape, k_shape) = ([batch, heads_kv * group, queries, dim], [batch, heads_kv, keys, dim]);
        let numbers = |stream, shape: [usize; 4]| {
            round(&fill(seed, stream, Values::Normal, shape.iter().product()), dtype)
        };
        let (q, k) = (numbers(0, q_shape), numbers(1, k_shape));
        let scale = if sharp { 2.5 } else { 0.25 };
        let Probe { columns, distances, .. } = probe(
            &place(&gpu, &q, q_shape, dtype, aligned),
            &place(&gpu, &k, k_shape, dtype, aligned),
            scale,
        ).unwrap();
        let rows = products(&q, &k, q_shape, k_shape, f64::from(scale));
        let want = profiles(&rows, queries, keys);
        // Logits of up to some 60 have an error of 1e-7 of that, and so have their exponentials.
        close("columns", &columns, &want[0], 5e-5, 1e-7)?;
        close("distances", &distances, &want[1], 5e-5, 1e-7)?;
    }

    #[test]
    fn block_scores_are_those_of_f64(
        batch in 1usize..3, heads_kv in 1usize..3, group in 1usize..4, queries in 0usize..40,
        keys in 0usize..70, dim in 1usize..20, causal in any::<bool>(),
        align in prop_oneof![Just(1usize), Just(4), Just(32)], seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let (q_shape, k_shape) = ([batch, heads_kv * group, queries, dim], [batch, heads_kv, keys, dim]);
        let numbers = |stream, shape: [usize; 4]| {
            fill(seed, stream, Values::Normal, shape.iter().product())
        };
        let (q, k) = (numbers(0, q_shape), numbers(1, k_shape));
        for softmax_on in [false, true] {
            let config = BlockScores { causal, softmax: softmax_on, align, ..BlockScores::new(0.7) };
            let got = block_scores(
                &Tensor::from_slice(&gpu, &q, &q_shape).unwrap(),
                &Tensor::from_slice(&gpu, &k, &k_shape).unwrap(),
                &config,
            ).unwrap();
            let width = keys.next_multiple_of(align);
            prop_assert_eq!(got.shape(), [batch, heads_kv * group, queries, width]);
            let nothing = if softmax_on { 0.0 } else { f32::NEG_INFINITY };
            let got = got.to_vec::<f32>().unwrap();
            let rows = products(&q, &k, q_shape, k_shape, f64::from(0.7f32));
            for (number, row) in rows.iter().enumerate() {
                let visible = if causal { (keys + number % queries + 1).saturating_sub(queries) } else { keys };
                let want = if softmax_on { softmax(row, visible) } else { row.clone() };
                for (j, &x) in got[number * width..(number + 1) * width].iter().enumerate() {
                    if j < visible {
                        let error = (f64::from(x) - want[j]).abs();
                        prop_assert!(error <= 2e-5 * (1.0 + want[j].abs()), "{} {}", number, j);
                    } else {
                        prop_assert_eq!(x.to_bits(), f32::to_bits(nothing), "{} {}", number, j);
                    }
                }
            }
        }
    }
}

/// Queries in front of the first key, distances that few queries have, and one key.
#[test]
fn profiles_of_few_keys() {
    let Some(gpu) = gpu() else { return };
    for (queries, keys) in [(40, 50), (40, 20), (5, 1), (33, 33)] {
        let (q_shape, k_shape) = ([1, 2, queries, 8], [1, 1, keys, 8]);
        let numbers =
            |stream, shape: [usize; 4]| fill(3, stream, Values::Normal, shape.iter().product());
        let (q, k) = (numbers(0, q_shape), numbers(1, k_shape));
        let found = probe(
            &Tensor::from_slice(&gpu, &q, &q_shape).unwrap(),
            &Tensor::from_slice(&gpu, &k, &k_shape).unwrap(),
            1.0,
        );
        let found = found.unwrap();
        let want = profiles(&products(&q, &k, q_shape, k_shape, 1.0), queries, keys);
        close("columns", &found.columns, &want[0], 1e-5, 1e-7).unwrap();
        close("distances", &found.distances, &want[1], 1e-5, 1e-7).unwrap();
    }
}

/// Several slabs of keys, each in two passes, of which the last is behind some queries; and the same
/// bits for a head alone.
#[test]
fn profiles_over_several_slabs() {
    let Some(gpu) = gpu() else { return };
    let (q_shape, k_shape) = ([1, 4, 100, 4], [1, 2, 10_418, 4]);
    let numbers =
        |stream, shape: [usize; 4]| fill(9, stream, Values::Normal, shape.iter().product());
    let (q, k) = (numbers(0, q_shape), numbers(1, k_shape));
    let (q_all, k_all) = (
        Tensor::from_slice(&gpu, &q, &q_shape).unwrap(),
        Tensor::from_slice(&gpu, &k, &k_shape).unwrap(),
    );
    let Probe { columns, distances, .. } = probe(&q_all, &k_all, 1.0).unwrap();
    let want = profiles(&products(&q, &k, q_shape, k_shape, 1.0), 100, 10_418);
    close("columns", &columns, &want[0], 1e-5, 1e-8).unwrap();
    close("distances", &distances, &want[1], 1e-5, 1e-8).unwrap();
    let alone =
        probe(&q_all.narrow(1, 2, 2).unwrap(), &k_all.narrow(1, 1, 1).unwrap(), 1.0).unwrap();
    for (all, alone) in [(&columns, &alone.columns), (&distances, &alone.distances)] {
        let all = all.narrow(1, 2, 2).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(all, alone.to_vec::<f32>().unwrap());
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = gpu() else { return };
    let zeros = |shape: &[usize]| Tensor::zeros(&gpu, shape, DType::F32).unwrap();
    let x = zeros(&[1, 3, 5, 4]);
    assert!(pool(&x, &Pool::new(0, PoolKind::Sum)).is_err());
    assert!(pool(&zeros(&[3, 5, 4]), &Pool::new(2, PoolKind::Sum)).is_err());
    for k in [&[1, 2, 5, 4][..], &[2, 3, 5, 4], &[1, 3, 5, 3], &[3, 5, 4]] {
        assert!(probe(&x, &zeros(k), 1.0).is_err(), "{k:?}");
        assert!(block_scores(&x, &zeros(k), &BlockScores::new(1.0)).is_err(), "{k:?}");
    }
    let config = BlockScores { align: 0, ..BlockScores::new(1.0) };
    assert!(block_scores(&x, &x, &config).is_err());
}

/// On plain devices, from buffers full of NaN, and of no extent.
#[test]
fn smoke_poisoned_and_plain() {
    let plain = Gpu::builder().disable("subgroup").disable("immediates").webgpu_limits();
    let Some(gpu) = open(plain.poison(true)) else { return };
    let (q_shape, k_shape) = ([1, 2, 7, 5], [1, 1, 61, 5]);
    let numbers =
        |stream, shape: [usize; 4]| fill(4, stream, Values::Normal, shape.iter().product());
    let (q, k) = (numbers(0, q_shape), numbers(1, k_shape));
    let (q_all, k_all) = (
        Tensor::from_slice(&gpu, &q, &q_shape).unwrap(),
        Tensor::from_slice(&gpu, &k, &k_shape).unwrap(),
    );
    let found = probe(&q_all, &k_all, 1.0).unwrap();
    let want = profiles(&products(&q, &k, q_shape, k_shape, 1.0), 7, 61);
    close("columns", &found.columns, &want[0], 1e-5, 1e-8).unwrap();
    close("distances", &found.distances, &want[1], 1e-5, 1e-8).unwrap();
    let blocks = pool(&k_all, &Pool::new(9, PoolKind::Mean)).unwrap();
    let scores = block_scores(&q_all, &blocks, &BlockScores::new(1.0)).unwrap();
    for (number, row) in scores.to_vec::<f32>().unwrap().chunks(7).enumerate() {
        let sum: f32 = row.iter().sum();
        assert!((sum - 1.0).abs() < 1e-5 && row[..=number % 7].iter().all(|&p| p > 0.0));
    }
    for (heads, queries, keys) in [(0, 3, 4), (2, 0, 4), (2, 3, 0)] {
        let q = Tensor::zeros(&gpu, &[1, heads, queries, 4], DType::F32).unwrap();
        let k = Tensor::zeros(&gpu, &[1, heads, keys, 4], DType::F32).unwrap();
        let found = probe(&q, &k, 1.0).unwrap();
        assert_eq!(found.columns.to_vec::<f32>().unwrap(), vec![0.0; heads * keys]);
        assert_eq!(found.distances.to_vec::<f32>().unwrap(), vec![0.0; heads * keys]);
    }
}
