//! Choices by row against a sort on the host.

mod common;

use attn_core::testing::{Values, bits as random, fill};
use attn_wgpu::select::{Cover, Wanted, cover_rows, top_k_bits, top_k_rows};
use attn_wgpu::{DType, Error, Gpu, Tensor};
use common::{cases, gpu, open};
use proptest::prelude::*;

/// Rows as they come: plain, all equal, with ties, NaN, infinities and both zeros, and in a narrow
/// range of keys.
fn scores(seed: u64, rows: usize, width: usize) -> Vec<f32> {
    let mut data = fill(seed, 0, Values::Normal, rows * width);
    for (number, row) in data.chunks_mut(width.max(1)).enumerate() {
        match (seed >> (3 * (number % 20))) % 8 {
            0 => row.fill(-1.5),
            1 => row.iter_mut().for_each(|x| *x = x.round()),
            2 => row.iter_mut().step_by(3).for_each(|x| *x = f32::NAN),
            3 => row.fill(f32::NAN),
            4 => row.iter_mut().step_by(2).for_each(|x| *x = f32::INFINITY.copysign(*x)),
            5 => row.iter_mut().for_each(|x| *x = if *x > 0.5 { *x } else { 0f32.copysign(*x) }),
            6 => row.iter_mut().for_each(|x| *x = 1.0 + *x * 1e-6),
            _ => {}
        }
    }
    data
}

/// Elements by rank: the largest first, of equals the first, NaN last.
fn ranked(row: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    let rank = |i: &usize| (row[*i].is_nan(), row[*i]);
    order.sort_by(|a, b| {
        let ((a_nan, a), (b_nan, b)) = (rank(a), rank(b));
        a_nan.cmp(&b_nan).then(b.partial_cmp(&a).unwrap_or(std::cmp::Ordering::Equal))
    });
    order
}

fn chosen(row: &[f32], count: usize) -> Vec<u32> {
    let mut found: Vec<u32> = ranked(row)[..count].iter().map(|&i| i as u32).collect();
    found.sort_unstable();
    found
}

fn bits_of(indices: &[u32], width: usize) -> Vec<u32> {
    let mut words = vec![0; width.div_ceil(32)];
    indices.iter().for_each(|&i| words[i as usize / 32] |= 1 << (i % 32));
    words
}

fn widths() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..40, 120usize..140, 1000usize..1030, 4090usize..4110, Just(8209usize)]
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn top_k_is_that_of_a_sort(
        rows in 1usize..7, width in widths(), share in 0.0f64..1.3, seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let data = scores(seed, rows, width);
        let x = Tensor::from_slice(&gpu, &data, &[rows, width]).unwrap();
        let capacity = ((share * width as f64) as usize).min(width);
        let wanted: Vec<u32> = (0..rows as u64)
            .map(|i| (random(seed, 1, i) % (capacity as u64 + 5)) as u32)
            .collect();
        let each = Tensor::from_slice(&gpu, &wanted, &[rows]).unwrap();
        for (same, wanted_now) in [(true, Wanted::Same(capacity)), (false, Wanted::Each(&each))] {
            let found = top_k_rows(&x, wanted_now, capacity).unwrap();
            let bits = top_k_bits(&x, wanted_now).unwrap();
            let counts = found.counts.to_vec::<u32>().unwrap();
            let bit_counts = bits.counts.to_vec::<u32>().unwrap();
            let (indices, bits) =
                (found.indices.to_vec::<u32>().unwrap(), bits.bits.to_vec::<u32>().unwrap());
            for (number, row) in data.chunks(width).enumerate() {
                let asked = if same { capacity } else { wanted[number] as usize };
                let count = asked.min(capacity);
                let mut want = chosen(row, count);
                prop_assert_eq!(counts[number] as usize, count);
                want.resize(capacity, u32::MAX);
                let start = number * capacity;
                prop_assert_eq!(&indices[start..start + capacity], &want[..], "row {}", number);

                let count = asked.min(width);
                prop_assert_eq!(bit_counts[number] as usize, count);
                let words = width.div_ceil(32);
                let got = &bits[number * words..(number + 1) * words];
                prop_assert_eq!(got, &bits_of(&chosen(row, count), width)[..], "row {}", number);
            }
        }
        // A row alone, and a view of columns.
        let whole = top_k_rows(&x, Wanted::Same(capacity), capacity).unwrap();
        let last = top_k_rows(&x.narrow(0, rows - 1, 1).unwrap(), Wanted::Same(capacity), capacity);
        let last = last.unwrap().indices.to_vec::<u32>().unwrap();
        let whole = whole.indices.to_vec::<u32>().unwrap();
        prop_assert_eq!(&last[..], &whole[(rows - 1) * capacity..]);
        let half = width / 2;
        let view = x.narrow(1, width - half, half).unwrap();
        let found = top_k_rows(&view, Wanted::Same(3.min(half)), 3.min(half)).unwrap();
        let found = found.indices.to_vec::<u32>().unwrap();
        for (number, row) in data.chunks(width).enumerate() {
            let want = chosen(&row[width - half..], 3.min(half));
            prop_assert_eq!(&found[number * want.len()..(number + 1) * want.len()], &want[..]);
        }
    }

    /// Numbers whose sums are exact in any order: multiples of 1/64 below 2^17 in all.
    #[test]
    fn covers_are_those_of_a_sort(
        rows in 1usize..7, width in widths(), share in -0.1f64..1.2, seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let mut data: Vec<f32> = (0..(rows * width) as u64)
            .map(|i| (random(seed, 0, i) % 1024) as f32 / 64.0)
            .collect();
        for (number, row) in data.chunks_mut(width).enumerate() {
            match (seed >> (2 * number)) % 4 {
                0 => row.iter_mut().step_by(3).for_each(|x| *x = f32::NAN),
                1 => row.iter_mut().for_each(|x| *x = x.round()),
                2 => row.iter_mut().skip(width / 20).for_each(|x| *x *= -1.0),
                _ => {}
            }
        }
        let x = Tensor::from_slice(&gpu, &data, &[rows, width]).unwrap();
        let weight = |x: f32| if x > 0.0 { f64::from(x) } else { 0.0 };
        let mean = data.iter().map(|&x| weight(x)).sum::<f64>() / rows as f64;
        let gamma = (64.0 * share * mean).round() / 64.0;
        let at_most = cover_rows(&x, gamma as f32, Cover::AtMost).unwrap();
        let at_least = cover_rows(&x, gamma as f32, Cover::AtLeast).unwrap();
        let (at_most, at_least) =
            (at_most.to_vec::<u32>().unwrap(), at_least.to_vec::<u32>().unwrap());
        for (number, row) in data.chunks(width).enumerate() {
            let mut sorted: Vec<f64> = row.iter().map(|&x| weight(x)).collect();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let sums = sorted.iter().scan(0.0, |sum, x| { *sum += x; Some(*sum) });
            let sums: Vec<f64> = sums.collect();
            let most = sums.iter().filter(|&&sum| sum <= gamma).count();
            prop_assert_eq!(at_most[number] as usize, most, "at most, row {}", number);
            let reached = sums.iter().position(|&sum| sum >= gamma).map_or(width, |i| i + 1);
            let least = if gamma <= 0.0 { 0 } else { reached };
            prop_assert_eq!(at_least[number] as usize, least, "at least, row {}", number);
        }
    }

    /// Softmax rows: the sum of what was chosen is right up to rounding.
    #[test]
    fn covers_of_probabilities(width in widths(), gamma in 0.3f32..0.999, seed in any::<u64>()) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let logits = fill(seed, 0, Values::Normal, width);
        let weights: Vec<f64> = logits.iter().map(|&x| f64::from(3.0 * x).exp()).collect();
        let total: f64 = weights.iter().sum();
        let data: Vec<f32> = weights.iter().map(|&x| (x / total) as f32).collect();
        let x = Tensor::from_slice(&gpu, &data, &[1, width]).unwrap();
        let mut sorted: Vec<f64> = data.iter().map(|&x| f64::from(x)).collect();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let sum = |count: usize| sorted[..count].iter().sum::<f64>();
        // Sums of up to 8209 numbers in f32, in parts of 256.
        let (gamma_64, slack) = (f64::from(gamma), 2e-6);
        let most = cover_rows(&x, gamma, Cover::AtMost).unwrap().to_vec::<u32>().unwrap()[0] as usize;
        prop_assert!(sum(most) <= gamma_64 + slack);
        prop_assert!(most == width || sum(most + 1) > gamma_64 - slack);
        let least = cover_rows(&x, gamma, Cover::AtLeast).unwrap().to_vec::<u32>().unwrap()[0] as usize;
        prop_assert!(least == width || sum(least) >= gamma_64 - slack);
        prop_assert!(least > 0 && sum(least - 1) < gamma_64 + slack);
    }
}

/// Three equal elements whose quotients with the sum round up to 3 or beyond: what the search found
/// counts, not the quotient.
#[test]
fn rounded_quotients_do_not_contradict_the_sum() {
    let Some(gpu) = gpu() else { return };
    let values = (0..4000).map(|i| 0.1 + 1e-5 * i as f32);
    let (mut below, mut above) = (0, 0);
    for x in values {
        let sum = x + x + x;
        let under = f32::from_bits(sum.to_bits() - 1);
        let row = Tensor::from_slice(&gpu, &[x; 3], &[1, 3]).unwrap();
        if under / x >= 3.0 && below < 9 {
            below += 1;
            let count = cover_rows(&row, under, Cover::AtMost).unwrap().to_vec::<u32>().unwrap();
            assert_eq!(count, [2], "{x}");
        }
        if sum / x > 3.0 && above < 9 {
            above += 1;
            let count = cover_rows(&row, sum, Cover::AtLeast).unwrap().to_vec::<u32>().unwrap();
            assert_eq!(count, [3], "{x}");
        }
    }
    println!("{below} and {above} rows");
    assert!(below > 0 || above > 0);
}

/// More rows than one dimension of a dispatch has workgroups, of four dimensions, and rows so wide that
/// their loops come near the limit of a software driver.
#[test]
fn many_rows_and_wide_ones() {
    let Some(gpu) = gpu() else { return };
    let (rows, width) = (3 * 70_001, 5);
    let data = scores(11, rows, width);
    let x = Tensor::from_slice(&gpu, &data, &[3, 1, 70_001, width]).unwrap();
    let found = top_k_rows(&x, Wanted::Same(2), 2).unwrap();
    assert_eq!(found.indices.shape(), [3, 1, 70_001, 2]);
    let got = found.indices.to_vec::<u32>().unwrap();
    for (row, got) in data.chunks(width).zip(got.chunks(2)) {
        assert_eq!(got, chosen(row, 2), "{row:?}");
    }
    let width = 300_007;
    for seed in [1, 7] {
        let data = scores(seed, 2, width);
        let x = Tensor::from_slice(&gpu, &data, &[2, width]).unwrap();
        let found = top_k_bits(&x, Wanted::Same(70_000)).unwrap().bits.to_vec::<u32>().unwrap();
        for (row, got) in data.chunks(width).zip(found.chunks(width.div_ceil(32))) {
            assert_eq!(got, bits_of(&chosen(row, 70_000), width));
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = gpu() else { return };
    let x = Tensor::zeros(&gpu, &[2, 3], DType::F32).unwrap();
    let whole = Tensor::zeros(&gpu, &[2, 3], DType::U32).unwrap();
    let halves = Tensor::zeros(&gpu, &[2, 3], DType::F16).unwrap();
    assert!(top_k_rows(&x, Wanted::Same(1), 4).is_err());
    assert!(top_k_rows(&x, Wanted::Each(&whole), 2).is_err());
    assert!(top_k_rows(&whole, Wanted::Same(1), 1).is_err());
    assert!(top_k_rows(&halves, Wanted::Same(1), 1).is_err());
    assert!(cover_rows(&x, f32::NAN, Cover::AtMost).is_err());
    let wide = Tensor::zeros(&gpu, &[1, 1 << 24], DType::F32).unwrap();
    let found = cover_rows(&wide, 1.0, Cover::AtMost);
    let refused = matches!(&found, Err(Error::Limit { .. }));
    assert!(refused || found.unwrap().to_vec::<u32>().unwrap() == [1 << 24]);
}

#[test]
fn nothing_of_nothing() {
    let Some(gpu) = gpu() else { return };
    for shape in [[0, 5], [3, 0], [0, 0]] {
        let x = Tensor::zeros(&gpu, &shape, DType::F32).unwrap();
        let found = top_k_rows(&x, Wanted::Same(2), shape[1].min(2)).unwrap();
        assert_eq!(found.counts.to_vec::<u32>().unwrap(), vec![0; shape[0]]);
        assert_eq!(top_k_bits(&x, Wanted::Same(2)).unwrap().bits.len(), 0);
        let counts = cover_rows(&x, 0.5, Cover::AtLeast).unwrap();
        assert_eq!(counts.to_vec::<u32>().unwrap(), vec![0; shape[0]]);
    }
    let x = Tensor::zeros(&gpu, &[2, 3], DType::F32).unwrap();
    let found = top_k_rows(&x, Wanted::Same(2), 0).unwrap();
    assert_eq!(found.counts.to_vec::<u32>().unwrap(), [0, 0]);
}

/// On plain devices, from buffers full of NaN, and equal from run to run.
#[test]
fn smoke_poisoned_and_plain() {
    let plain = Gpu::builder().disable("subgroup").disable("immediates").webgpu_limits();
    let Some(gpu) = open(plain.poison(true)) else { return };
    for (rows, width) in [(5, 7), (3, 500), (2, 5000)] {
        let data = scores(0x1234_5678, rows, width);
        let x = Tensor::from_slice(&gpu, &data, &[rows, width]).unwrap();
        let count = width / 3;
        let run = || top_k_rows(&x, Wanted::Same(count), count + 1).unwrap();
        let got = run().indices.to_vec::<u32>().unwrap();
        assert_eq!(got, run().indices.to_vec::<u32>().unwrap());
        for (row, got) in data.chunks(width).zip(got.chunks(count + 1)) {
            assert_eq!(&got[..count], chosen(row, count));
            assert_eq!(got[count], u32::MAX);
        }
    }
}
