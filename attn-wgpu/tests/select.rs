//! Selection primitives against the host: sums, sorting, lists.

mod common;

use attn_core::testing::bits as random;
use attn_wgpu::select::{
    Sorted, counting_sort, gather_lists, scan_u32, scan_u32_into, transpose_csr,
};
use attn_wgpu::{DType, Gpu, Tensor, wgpu};
use common::{cases, gpu, open};
use proptest::prelude::*;

fn numbers(seed: u64, count: usize, below: u64) -> Vec<u32> {
    (0..count as u64).map(|i| (random(seed, 0, i) % below) as u32).collect()
}

fn prefix_sums(values: &[u32]) -> Vec<u32> {
    let mut sum = 0u32;
    let sums = values.iter().map(|&value| {
        sum = sum.wrapping_add(value);
        sum
    });
    std::iter::once(0).chain(sums).collect()
}

fn up(gpu: &Gpu, data: &[u32]) -> Tensor {
    Tensor::from_slice(gpu, data, &[data.len()]).unwrap()
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn prefix_sums_are_those_of_the_host(
        count in prop_oneof![0usize..70, 240usize..280, 500usize..2100, 8150usize..8250],
        below in prop_oneof![Just(2u64), Just(1 << 32)], seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let values = numbers(seed, count, below);
        let got = scan_u32(&up(&gpu, &values)).unwrap().to_vec::<u32>().unwrap();
        prop_assert_eq!(got, prefix_sums(&values));
    }

    #[test]
    fn sorting_is_that_of_the_host(
        count in prop_oneof![0usize..70, 250usize..260, 2040usize..2060, 5000usize..5010],
        classes in prop_oneof![0usize..3, 15usize..19, 255usize..260, Just(70_000usize)],
        seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let mut keys = numbers(seed, count, classes as u64 + 2);
        if seed % 3 == 0 {
            keys.iter_mut().step_by(7).for_each(|key| *key = u32::MAX);
        }
        let Sorted { offsets, order, .. } = counting_sort(&up(&gpu, &keys), classes).unwrap();
        let mut want: Vec<u32> = (0..count as u32).collect();
        want.sort_by_key(|&i| keys[i as usize].min(classes as u32));
        prop_assert_eq!(order.to_vec::<u32>().unwrap(), want);
        let mut counts = vec![0; classes];
        keys.iter().filter(|&&k| (k as usize) < classes).for_each(|&k| counts[k as usize] += 1);
        prop_assert_eq!(offsets.to_vec::<u32>().unwrap(), prefix_sums(&counts));
    }

    #[test]
    fn lists_and_their_transpose_are_those_of_the_host(
        planes in 1usize..4, width in prop_oneof![0usize..20, 100usize..400],
        classes in 1usize..20, spare in 0usize..5, seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let class = numbers(seed, planes * width, classes as u64 + 1);
        let table = Tensor::from_slice(&gpu, &class, &[planes, width]).unwrap();
        let lists = gather_lists(&table, classes).unwrap();
        let (mut members, mut offsets) = (Vec::new(), vec![0]);
        for plane in 0..planes {
            for wanted in 0..classes {
                let is = |&i: &usize| class[plane * width + i] as usize == wanted;
                members.extend((0..width).filter(is).map(|i| i as u32));
                offsets.push(members.len() as u32);
            }
        }
        prop_assert_eq!(&lists.offsets.to_vec::<u32>().unwrap(), &offsets);
        let positions = lists.positions.to_vec::<u32>().unwrap();
        prop_assert_eq!(&positions[..members.len()], &members[..]);

        // Some entries stand behind the last row, and the last column is not there.
        let capacity = members.len() + spare;
        let mut col = members.clone();
        col.resize(capacity, 0);
        let columns = width.saturating_sub(1);
        let found =
            transpose_csr(&up(&gpu, &offsets), &up(&gpu, &col), planes, columns).unwrap();
        let row = |entry: usize| offsets.partition_point(|&o| o as usize <= entry) - 1;
        let mut entries: Vec<usize> =
            (0..members.len()).filter(|&e| (col[e] as usize) < columns).collect();
        let column = |&entry: &usize| row(entry) / classes * columns + col[entry] as usize;
        entries.sort_by_key(column);
        let mut counts = vec![0; planes * columns];
        entries.iter().for_each(|entry| counts[column(entry)] += 1);
        prop_assert_eq!(found.offsets.to_vec::<u32>().unwrap(), prefix_sums(&counts));
        let got_rows = found.rows.to_vec::<u32>().unwrap();
        let mut want: Vec<u32> = entries.iter().map(|&entry| row(entry) as u32).collect();
        want.resize(capacity, u32::MAX);
        prop_assert_eq!(got_rows, want);
        let got = found.entries.to_vec::<u32>().unwrap();
        let want: Vec<u32> = entries.iter().map(|&entry| entry as u32).collect();
        prop_assert_eq!(&got[..want.len()], &want[..]);
    }
}

/// Three levels of tiles, more of them than fit one dimension of a dispatch, and no value read or
/// written beside views.
#[test]
fn prefix_sums_of_many_values_and_of_views() {
    let Some(gpu) = gpu() else { return };
    let values = numbers(7, 17_000_003, 1000);
    let got = scan_u32(&up(&gpu, &values)).unwrap().to_vec::<u32>().unwrap();
    assert_eq!(got, prefix_sums(&values));

    let whole = numbers(8, 3 * 999, 1 << 20);
    let table = up(&gpu, &whole);
    let (buffer, offset) = table.buffer();
    let flat =
        Tensor::from_buffer(&gpu, buffer.clone(), offset + 1, &[999], &[3], DType::U32).unwrap();
    let middle = flat.narrow(0, 5, 900).unwrap();
    let target = Tensor::full(&gpu, &[1000], 77u32).unwrap();
    scan_u32_into(&middle, &target.narrow(0, 9, 901).unwrap()).unwrap();
    let picked: Vec<u32> = whole.iter().skip(1).step_by(3).skip(5).take(900).copied().collect();
    let mut want = vec![77; 9];
    want.extend(prefix_sums(&picked));
    want.resize(1000, 77);
    assert_eq!(target.to_vec::<u32>().unwrap(), want);
}

/// Arguments that begin in the middle of a buffer, each elsewhere.
#[test]
fn views_of_larger_tensors() {
    let Some(gpu) = gpu() else { return };
    let (keys, classes) = (numbers(1, 900, 30), 29);
    let sorted = counting_sort(&up(&gpu, &keys).narrow(0, 100, 700).unwrap(), classes).unwrap();
    let mut want: Vec<u32> = (0..700).collect();
    want.sort_by_key(|&i| keys[100 + i as usize]);
    assert_eq!(sorted.order.to_vec::<u32>().unwrap(), want);

    let table = Tensor::from_slice(&gpu, &keys, &[9, 100]).unwrap().narrow(0, 2, 3).unwrap();
    let lists = gather_lists(&table, classes).unwrap();
    let mut members = Vec::new();
    for (plane, class) in (0..3).flat_map(|plane| (0..classes).map(move |class| (plane, class))) {
        let row = &keys[200 + 100 * plane..][..100];
        members.extend((0..100u32).filter(|&i| row[i as usize] as usize == class));
    }
    let found = lists.positions.to_vec::<u32>().unwrap();
    assert_eq!(found[..members.len()], members);

    // Rows of two entries each.
    let offsets: Vec<u32> = (0..60).map(|i| 2 * (i - i.min(9))).collect();
    let row_ptr = up(&gpu, &offsets).narrow(0, 9, 51).unwrap();
    let transposed =
        transpose_csr(&row_ptr, &up(&gpu, &keys).narrow(0, 300, 100).unwrap(), 1, 30).unwrap();
    let mut entries: Vec<u32> = (0..100).collect();
    entries.sort_by_key(|&entry| keys[300 + entry as usize]);
    let rows: Vec<u32> = entries.iter().map(|entry| entry / 2).collect();
    assert_eq!(transposed.entries.to_vec::<u32>().unwrap(), entries);
    assert_eq!(transposed.rows.to_vec::<u32>().unwrap(), rows);
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = gpu() else { return };
    let floats = Tensor::zeros(&gpu, &[4], DType::F32).unwrap();
    let table = Tensor::zeros(&gpu, &[4, 1], DType::U32).unwrap();
    assert!(scan_u32(&floats).is_err() && scan_u32(&table).is_err());
    let values = Tensor::zeros(&gpu, &[4], DType::U32).unwrap();
    assert!(scan_u32_into(&values, &values).is_err());
    assert!(counting_sort(&floats, 3).is_err() && gather_lists(&values, 3).is_err());
    assert!(counting_sort(&values, u32::MAX as usize).is_err());
    // Three rows in two planes, and no offsets at all.
    assert!(transpose_csr(&values, &values, 2, 3).is_err());
    let nothing = Tensor::zeros(&gpu, &[0], DType::U32).unwrap();
    assert!(transpose_csr(&nothing, &values, 1, 3).is_err());
}

/// Dispatches of few workgroups a dimension, with idle ones that would begin where the values end, and
/// more values than one lane may visit.
#[test]
fn folded_dispatches_change_nothing() {
    let limits = wgpu::Limits { max_compute_workgroups_per_dimension: 17, ..Default::default() };
    let Some(gpu) = open(Gpu::builder().limits(limits)) else { return };
    let values = numbers(2, 275 * 256, 12);
    let got = scan_u32(&up(&gpu, &values)).unwrap().to_vec::<u32>().unwrap();
    assert!(got == prefix_sums(&values));
    let sorted = counting_sort(&up(&gpu, &values), 12).unwrap();
    let mut want: Vec<u32> = (0..values.len() as u32).collect();
    want.sort_by_key(|&i| values[i as usize]);
    assert!(sorted.order.to_vec::<u32>().unwrap() == want);
}

/// On plain devices, from buffers full of NaN.
#[test]
fn smoke_poisoned_and_plain() {
    let plain = Gpu::builder().disable("subgroup").disable("immediates").webgpu_limits();
    let Some(gpu) = open(plain.poison(true)) else { return };
    let values = numbers(3, 5000, 9);
    let got = scan_u32(&up(&gpu, &values)).unwrap().to_vec::<u32>().unwrap();
    assert_eq!(got, prefix_sums(&values));
    let mut want: Vec<u32> = (0..5000).collect();
    want.sort_by_key(|&i| values[i as usize].min(7));
    let sorted = counting_sort(&up(&gpu, &values), 7).unwrap();
    assert_eq!(sorted.order.to_vec::<u32>().unwrap(), want);
}
