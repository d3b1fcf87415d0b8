//! Sets of blocks as bits against sets on the host.

mod common;

use attn_core::testing::bits as random;
use attn_wgpu::select::{
    Wanted, bits_causal, bits_causal_into, bits_from_indices, bits_or, bits_or_into, bits_shift_or,
    bits_shift_or_into, bits_to_csr, popcount_rows, top_k_rows,
};
use attn_wgpu::{DType, Gpu, Tensor};
use common::{cases, gpu, open};
use proptest::prelude::*;

fn words(seed: u64, stream: u64, count: usize) -> Vec<u32> {
    let word = |i| match random(seed, stream + 10, i) % 5 {
        0 => 0,
        1 => u32::MAX,
        _ => random(seed, stream, i) as u32,
    };
    (0..count as u64).map(word).collect()
}

fn has(words: &[u32], block: i64) -> bool {
    let word = usize::try_from(block / 32).ok().and_then(|word| words.get(word));
    block >= 0 && word.is_some_and(|word| word >> (block % 32) & 1 == 1)
}

fn columns(words: &[u32]) -> Vec<u32> {
    (0..32 * words.len() as i64).filter(|&j| has(words, j)).map(|j| j as u32).collect()
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn sets_of_blocks_are_those_of_the_host(
        planes in 1usize..4, rows in 1usize..90, width in 1usize..6, first in -40i32..200,
        seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let (upright, lines) = (words(seed, 0, planes * width), words(seed, 1, planes * width));
        let other = words(seed, 2, planes * rows * width);
        let up = |data: &[u32], shape: &[usize]| Tensor::from_slice(&gpu, data, shape).unwrap();
        let shape = [planes, rows, width];
        let repeated = up(&upright, &[planes, 1, width]).expand(&shape).unwrap();
        let shifted = bits_shift_or(&repeated, &up(&lines, &[planes, width]), first).unwrap();
        let cut = bits_causal(&shifted, first).unwrap();
        let both = bits_or(&cut, &up(&other, &shape)).unwrap();
        let counts = popcount_rows(&both).unwrap().to_vec::<u32>().unwrap();
        let [shifted, cut, both] = [shifted, cut, both].map(|t| t.to_vec::<u32>().unwrap());
        for (row, &count) in counts.iter().enumerate() {
            let (plane, i) = (row / rows, (row % rows) as i64 + i64::from(first));
            let of = |data: &[u32], row: usize| data[row * width..(row + 1) * width].to_vec();
            for j in 0..32 * width as i64 {
                let on = has(&of(&upright, plane), j) || has(&of(&lines, plane), i - j);
                prop_assert_eq!(has(&of(&shifted, row), j), on, "row {} block {}", row, j);
                let on = on && j <= i;
                prop_assert_eq!(has(&of(&cut, row), j), on, "row {} block {}", row, j);
                let on = on || has(&of(&other, row), j);
                prop_assert_eq!(has(&of(&both, row), j), on, "row {} block {}", row, j);
            }
            prop_assert_eq!(count as usize, columns(&of(&both, row)).len());
        }
    }

    #[test]
    fn rows_of_numbers_and_bits(
        rows in 1usize..40, width in 1usize..6, share in 0.0f64..1.4, count in 0usize..40,
        seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let set = words(seed, 0, rows * width);
        let bits = Tensor::from_slice(&gpu, &set, &[rows, width]).unwrap();
        let all: Vec<Vec<u32>> = set.chunks(width).map(columns).collect();
        let nnz: usize = all.iter().map(Vec::len).sum();
        let capacity = (share * nnz as f64) as usize;
        let csr = bits_to_csr(&bits, capacity).unwrap();
        let mut ends = vec![0];
        for row in &all {
            ends.push((ends[ends.len() - 1] + row.len()).min(capacity));
        }
        let row_ptr = csr.row_ptr.to_vec::<u32>().unwrap();
        prop_assert_eq!(row_ptr.iter().map(|&x| x as usize).collect::<Vec<_>>(), ends);
        let mut want: Vec<u32> = all.concat();
        want.resize(capacity, u32::MAX);
        prop_assert_eq!(csr.col.to_vec::<u32>().unwrap(), want);

        let n = 32 * width - (seed % 31) as usize;
        let scores: Vec<f32> = (0..(rows * n) as u64).map(|i| random(seed, 3, i) as f32).collect();
        let scores = Tensor::from_slice(&gpu, &scores, &[rows, n]).unwrap();
        let count = count.min(n);
        let wanted: Vec<u32> = (0..rows as u64).map(|i| (random(seed, 4, i) % 40) as u32).collect();
        let wanted = Tensor::from_slice(&gpu, &wanted, &[rows]).unwrap();
        let chosen = top_k_rows(&scores, Wanted::Each(&wanted), count).unwrap();
        let got = bits_from_indices(&chosen.indices, &chosen.counts, n).unwrap().to_vec::<u32>().unwrap();
        let indices = chosen.indices.to_vec::<u32>().unwrap();
        for row in 0..rows {
            let mut want: Vec<u32> = indices[row * count..(row + 1) * count].to_vec();
            want.retain(|&i| i != u32::MAX);
            prop_assert_eq!(columns(&got[row * width..(row + 1) * width]), want);
        }
    }
}

/// More words than one dimension of a dispatch has workgroups for.
#[test]
fn many_rows() {
    let Some(gpu) = gpu() else { return };
    let (rows, width) = (1_100_000, 9);
    let set = words(5, 0, rows * width);
    let bits = Tensor::from_slice(&gpu, &set, &[rows, width]).unwrap();
    let counts: Vec<u32> = set
        .chunks(width)
        .map(|row| row.iter().map(|word| word.count_ones()).sum::<u32>())
        .collect();
    assert_eq!(popcount_rows(&bits).unwrap().to_vec::<u32>().unwrap(), counts);
    let csr = bits_to_csr(&bits, 1000).unwrap();
    let want: Vec<u32> = set.chunks(width).flat_map(columns).take(1000).collect();
    assert_eq!(csr.col.to_vec::<u32>().unwrap(), want);
    let same = bits_or(&bits, &bits).unwrap();
    assert!(same.to_vec::<u32>().unwrap() == set);
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = gpu() else { return };
    let bits = Tensor::zeros(&gpu, &[2, 3], DType::U32).unwrap();
    let floats = Tensor::zeros(&gpu, &[2, 3], DType::F32).unwrap();
    let row = Tensor::zeros(&gpu, &[3], DType::U32).unwrap();
    assert!(bits_or(&bits, &row).is_err() && bits_or(&bits, &floats).is_err());
    assert!(bits_shift_or(&bits, &bits, 0).is_err() && bits_shift_or(&row, &row, 0).is_err());
    assert!(bits_causal(&floats, 0).is_err() && popcount_rows(&floats).is_err());
    // Rows of 8 million words, which no invocation of a software driver counts.
    let long = Tensor::zeros(&gpu, &[1, 1 << 23], DType::U32).unwrap();
    let counted = popcount_rows(&long);
    assert!(counted.is_err() || counted.unwrap().to_vec::<u32>().unwrap() == [0]);
}

/// Into the middle of a tensor of words, and into rows that are not next to each other.
#[test]
fn sets_into_a_callers_tensor() {
    let Some(gpu) = gpu() else { return };
    let (a, b) = (words(2, 0, 70), words(2, 1, 70));
    let up = |data: &[u32]| Tensor::from_slice(&gpu, data, &[35, 2]).unwrap();
    let whole = Tensor::full(&gpu, &[100], 77u32).unwrap();
    let middle = whole.narrow(0, 11, 70).unwrap().reshape(&[35, 2]).unwrap();
    bits_or_into(&up(&a), &up(&b), &middle).unwrap();
    let mut want = vec![77; 100];
    (0..70).for_each(|i| want[11 + i] = a[i] | b[i]);
    assert_eq!(whole.to_vec::<u32>().unwrap(), want);

    let wide = Tensor::full(&gpu, &[35, 3], 77u32).unwrap();
    let left = wide.narrow(1, 0, 2).unwrap();
    bits_causal_into(&up(&a), 20, &left).unwrap();
    let cut = bits_causal(&up(&a), 20).unwrap().to_vec::<u32>().unwrap();
    assert_eq!(left.to_vec::<u32>().unwrap(), cut);
    assert_eq!(wide.narrow(1, 2, 1).unwrap().to_vec::<u32>().unwrap(), vec![77; 35]);
    let lines = Tensor::from_slice(&gpu, &b[..2], &[2]).unwrap();
    bits_shift_or_into(&up(&a), &lines, -3, &left).unwrap();
    let shifted = bits_shift_or(&up(&a), &lines, -3).unwrap().to_vec::<u32>().unwrap();
    assert_eq!(left.to_vec::<u32>().unwrap(), shifted);
    assert!(bits_causal_into(&middle, 0, &middle).is_err());
    assert!(bits_or_into(&left, &left, &whole).is_err());
}

/// Bits, numbers and counts that begin in the middle of a buffer.
#[test]
fn views_of_larger_tensors() {
    let Some(gpu) = gpu() else { return };
    let set = words(6, 0, 60);
    let bits = Tensor::from_slice(&gpu, &set, &[20, 3]).unwrap().narrow(0, 7, 9).unwrap();
    let rows: Vec<Vec<u32>> = set[21..48].chunks(3).map(columns).collect();
    let counts: Vec<u32> = rows.iter().map(|row| row.len() as u32).collect();
    assert_eq!(popcount_rows(&bits).unwrap().to_vec::<u32>().unwrap(), counts);
    let nnz: u32 = counts.iter().sum();
    let csr = bits_to_csr(&bits, nnz as usize).unwrap();
    assert_eq!(csr.col.to_vec::<u32>().unwrap(), rows.concat());

    let mut table = vec![1; 11 * 96];
    for (row, numbers) in rows.iter().enumerate() {
        table[(row + 1) * 96..][..numbers.len()].copy_from_slice(numbers);
    }
    let indices = Tensor::from_slice(&gpu, &table, &[11, 96]).unwrap().narrow(0, 1, 9).unwrap();
    let mut all = vec![96; 5];
    all.extend(counts);
    let counts = Tensor::from_slice(&gpu, &all, &[14]).unwrap().narrow(0, 5, 9).unwrap();
    let again = bits_from_indices(&indices, &counts, 96).unwrap().to_vec::<u32>().unwrap();
    assert_eq!(again, set[21..48]);
}

/// On plain devices, from buffers full of NaN, and of no extent.
#[test]
fn smoke_poisoned_and_plain() {
    let plain = Gpu::builder().disable("subgroup").disable("immediates").webgpu_limits();
    let Some(gpu) = open(plain.poison(true)) else { return };
    let set = words(1, 0, 40);
    let bits = Tensor::from_slice(&gpu, &set, &[20, 2]).unwrap();
    let csr = bits_to_csr(&bits, 2000).unwrap();
    let mut want: Vec<u32> = set.chunks(2).flat_map(columns).collect();
    want.resize(2000, u32::MAX);
    assert_eq!(csr.col.to_vec::<u32>().unwrap(), want);
    for shape in [[0, 3], [3, 0]] {
        let bits = Tensor::zeros(&gpu, &shape, DType::U32).unwrap();
        let counts = popcount_rows(&bits).unwrap().to_vec::<u32>().unwrap();
        assert_eq!(counts, vec![0; shape[0]]);
        let row_ptr = bits_to_csr(&bits, 4).unwrap().row_ptr.to_vec::<u32>().unwrap();
        assert_eq!(row_ptr, vec![0; shape[0] + 1]);
        assert_eq!(bits_or(&bits, &bits_causal(&bits, 1).unwrap()).unwrap().len(), 0);
    }
}
