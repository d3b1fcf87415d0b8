//! Selection primitives against the host: sums, sorting, lists.

mod common;

use attn_core::testing::bits as random;
use attn_wgpu::select::{scan_u32, scan_u32_into};
use attn_wgpu::{DType, Gpu, Tensor};
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

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = gpu() else { return };
    let floats = Tensor::zeros(&gpu, &[4], DType::F32).unwrap();
    let table = Tensor::zeros(&gpu, &[4, 1], DType::U32).unwrap();
    assert!(scan_u32(&floats).is_err() && scan_u32(&table).is_err());
    let values = Tensor::zeros(&gpu, &[4], DType::U32).unwrap();
    assert!(scan_u32_into(&values, &values).is_err());
}

/// On plain devices, from buffers full of NaN.
#[test]
fn smoke_poisoned_and_plain() {
    let plain = Gpu::builder().disable("subgroup").disable("immediates").webgpu_limits();
    let Some(gpu) = open(plain.poison(true)) else { return };
    let values = numbers(3, 5000, 9);
    let got = scan_u32(&up(&gpu, &values)).unwrap().to_vec::<u32>().unwrap();
    assert_eq!(got, prefix_sums(&values));
}
