//! Softmax and the choice of elements against f64 on the host.

mod common;

use attn_core::testing::{Values, fill, uniform};
use attn_wgpu::sample::{Sampling, argmax, sample, top_k};
use attn_wgpu::softmax::{log_softmax_gather, log_sum_exp, softmax, softmax_into};
use attn_wgpu::{DType, Error, Gpu, Tensor, norm};
use common::rows::{bits, close, floats, round};
use common::{cases, download, gpu, open, upload};
use half::f16;
use proptest::prelude::*;

fn wide(data: &[f32]) -> Vec<f64> {
    data.iter().map(|&x| f64::from(x)).collect()
}

fn lse(row: &[f64]) -> f64 {
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if top == f64::NEG_INFINITY {
        top
    } else {
        top + row.iter().map(|x| (x - top).exp()).sum::<f64>().ln()
    }
}

fn softmax_of(row: &[f64]) -> Vec<f64> {
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weight = |x: &f64| if top == f64::NEG_INFINITY { 0.0 } else { (x - top).exp() };
    let sum: f64 = row.iter().map(weight).sum();
    row.iter().map(|x| weight(x) / sum.max(1e-300)).collect()
}

/// Of one element: its difference from the top first, which a large top would swallow.
fn log_softmax_of(row: &[f64], element: usize) -> f64 {
    let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (row[element] - top) - row.iter().map(|x| (x - top).exp()).sum::<f64>().ln()
}

/// Rows as they come: plain, of equal elements, partly or wholly -inf, and huge.
fn logits(seed: u64, rows: usize, width: usize, dtype: DType) -> Vec<f32> {
    let mut data = fill(seed, 0, Values::Normal, rows * width);
    for (number, row) in data.chunks_mut(width).enumerate() {
        match (seed >> (3 * number)) % 8 {
            1 => row.fill(2.5),
            2 => row.iter_mut().step_by(2).for_each(|x| *x = f32::NEG_INFINITY),
            3 => row.fill(f32::NEG_INFINITY),
            4 => row.iter_mut().for_each(|x| *x *= 200.0),
            5 if dtype == DType::F32 => row.iter_mut().for_each(|x| *x = 1e30f32.copysign(*x)),
            6 => row.iter_mut().for_each(|x| *x = x.round()),
            _ => row.iter_mut().for_each(|x| *x *= 4.0),
        }
    }
    round(&data, dtype)
}

fn widths() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..40, 120usize..140, 1000usize..1030]
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn softmax_is_that_of_f64(
        rows in 1usize..7, width in widths(), dtype in floats(), seed in any::<u64>(),
        cap in prop::option::of(5f32..50.0),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let data = logits(seed, rows, width, dtype);
        let x = upload(&gpu, &data, &[rows, width], dtype).unwrap();
        let want: Vec<Vec<f64>> = data.chunks(width).map(wide).collect();
        // A logit of size 800 has an error of 1e-7 of it before it is an exponent.
        let got = softmax(&x).unwrap();
        let flat: Vec<f64> = want.iter().flat_map(|row| softmax_of(row)).collect();
        close("softmax", &got, &flat, 3e-4, 1e-7)?;

        let sums = log_sum_exp(&x).unwrap().to_vec::<f32>().unwrap();
        let targets: Vec<u32> = (0..rows).map(|i| (seed >> i) as u32 % (width as u32 + 1)).collect();
        let ids = Tensor::from_slice(&gpu, &targets, &[rows]).unwrap();
        let found = log_softmax_gather(&x, &ids, cap).unwrap().to_vec::<f32>().unwrap();
        for (i, row) in want.iter().enumerate() {
            let same = |got: f32, want: f64| {
                f64::from(got) == want || (f64::from(got) - want).abs() <= 2e-6 * want.abs() + 5e-6
            };
            prop_assert!(same(sums[i], lse(row)), "lse {} {}", sums[i], lse(row));
            let capped: Vec<f64> = match cap {
                Some(cap) => row.iter().map(|x| f64::from(cap) * (x / f64::from(cap)).tanh()).collect(),
                None => row.clone(),
            };
            match capped.get(targets[i] as usize) {
                None => prop_assert!(found[i].is_nan()),
                Some(&x) if x == f64::NEG_INFINITY => prop_assert_eq!(found[i], f32::NEG_INFINITY),
                Some(_) => {
                    let want = log_softmax_of(&capped, targets[i] as usize);
                    prop_assert!(same(found[i], want), "{} {}", found[i], want);
                }
            }
        }

        // A row alone, other dimensions, a column view, and a caller's target.
        let last = x.narrow(0, rows - 1, 1).unwrap();
        let whole = bits(&got);
        prop_assert_eq!(&bits(&softmax(&last).unwrap()), &whole[(rows - 1) * width..]);
        let target = Tensor::uninit(&gpu, &[rows, width], dtype).unwrap();
        softmax_into(&x, &target).unwrap();
        prop_assert_eq!(&bits(&target), &whole);
        let strided = Tensor::uninit(&gpu, &[1, width, rows, 4], DType::F32).unwrap();
        let strided = strided.permute(&[0, 2, 3, 1]).unwrap();
        let expanded = upload(&gpu, &data, &[1, rows, 1, width], dtype).unwrap();
        let expanded = expanded.expand(&[1, rows, 4, width]).unwrap();
        softmax_into(&expanded, &strided).unwrap();
        let got = download(&strided.narrow(2, 3, 1).unwrap()).unwrap();
        if dtype == DType::F32 {
            prop_assert_eq!(got.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), whole);
        }
    }

    #[test]
    fn choices_are_those_of_a_sort(
        rows in 1usize..5, width in widths(), dtype in floats(), seed in any::<u64>(), share in 0f64..1.0,
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let mut data = logits(seed, rows, width, dtype);
        for (i, x) in data.iter_mut().enumerate() {
            match (seed >> (i % 60)) % 16 {
                3 => *x = f32::from_bits(0xffc0_0001),
                4 => *x = f32::NAN,
                5 => *x = -0.0,
                6 => *x = 0.0,
                _ => {}
            }
        }
        let x = upload(&gpu, &data, &[rows, width], dtype).unwrap();
        let order: Vec<Vec<u32>> = data.chunks(width).map(sorted).collect();
        let got = argmax(&x).unwrap().to_vec::<u32>().unwrap();
        let want: Vec<u32> = order.iter().map(|row| row[0]).collect();
        prop_assert_eq!(&got, &want);
        let k = ((width as f64 * share * share) as usize).max(1);
        let (values, elements) = top_k(&x, k).unwrap();
        let elements = elements.to_vec::<u32>().unwrap();
        let want: Vec<u32> = order.iter().flat_map(|row| row[..k].to_vec()).collect();
        prop_assert_eq!(&elements, &want);
        for (i, value) in values.to_vec::<f32>().unwrap().into_iter().enumerate() {
            let want = data[i / k * width + elements[i] as usize];
            prop_assert!(value == want || (value.is_nan() && want.is_nan()), "{value} {want}");
        }
    }

    #[test]
    fn samples_are_those_of_the_definition(
        rows in 1usize..5, width in widths(), dtype in floats(), seed in any::<u64>(),
        temperature in 0.2f32..3.0,
        k in prop::option::of(1usize..60),
        top_p in prop_oneof![Just(1f32), 0f32..1.0],
        min_p in prop_oneof![Just(0f32), 0f32..0.5],
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let data = logits(seed, rows, width, dtype);
        let sampling = Sampling { temperature, top_k: k, top_p, min_p };
        judge(&gpu, &data, width, dtype, &sampling, seed)?;
    }
}

/// Numbers of elements, the largest first.
fn sorted(row: &[f32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..row.len() as u32).collect();
    order.sort_by(|&a, &b| {
        let (x, y) = (row[a as usize], row[b as usize]);
        match (x.is_nan(), y.is_nan()) {
            (false, false) => y.partial_cmp(&x).unwrap(),
            (a_nan, b_nan) => a_nan.cmp(&b_nan),
        }
        .then(a.cmp(&b))
    });
    order
}

/// Probabilities of the elements that are kept, if the bounds of top-p and min-p are moved by a
/// `slack`.
fn kept(row: &[f32], sampling: &Sampling, slack: f64) -> Vec<f64> {
    let scaled: Vec<f64> =
        row.iter().map(|&x| f64::from(x) / f64::from(sampling.temperature)).collect();
    let order = sorted(row);
    let mut keep = vec![false; row.len()];
    let most = sampling.top_k.unwrap_or(row.len()).min(row.len());
    let top = scaled[order[0] as usize];
    let weight = |i: u32| (scaled[i as usize] - top).exp();
    let total: f64 = order[..most].iter().map(|&i| weight(i)).sum();
    let mut mass = 0.0;
    for &i in &order[..most] {
        keep[i as usize] = weight(i) >= f64::from(sampling.min_p) * (1.0 - slack);
        mass += weight(i);
        if sampling.top_p < 1.0 && mass >= (f64::from(sampling.top_p) + slack) * total {
            break;
        }
    }
    let masses: Vec<f64> =
        (0..row.len()).map(|i| if keep[i] { weight(i as u32) } else { 0.0 }).collect();
    let total: f64 = masses.iter().sum();
    masses.iter().map(|mass| mass / total).collect()
}

/// A sample must be the one of the definition, up to the rounding of bounds in f32: its cumulative
/// probability must enclose the row's number under one of the slightly moved bounds.
fn judge(
    gpu: &Gpu,
    data: &[f32],
    width: usize,
    dtype: DType,
    sampling: &Sampling,
    seed: u64,
) -> Result<(), TestCaseError> {
    let rows = data.len() / width;
    let numbers: Vec<f32> =
        (0..rows).map(|i| uniform(seed, 9, i as u64) as f32 * 0.999_999).collect();
    let x = upload(gpu, data, &[rows, width], dtype).unwrap();
    let u = Tensor::from_slice(gpu, &numbers, &[rows]).unwrap();
    let got = sample(&x, sampling, &u).unwrap().to_vec::<u32>().unwrap();
    let again = sample(&x, sampling, &u).unwrap().to_vec::<u32>().unwrap();
    prop_assert_eq!(&got, &again);
    for (i, row) in data.chunks(width).enumerate() {
        let alone = x.narrow(0, i, 1).unwrap();
        let one = sample(&alone, sampling, &u.narrow(0, i, 1).unwrap()).unwrap();
        prop_assert_eq!(one.to_vec::<u32>().unwrap()[0], got[i]);
        let element = got[i] as usize;
        prop_assert!(element < width);
        if row.iter().all(|x| x.is_nan() || *x == f32::NEG_INFINITY) {
            prop_assert_eq!(got[i], sorted(row)[0]);
            continue;
        }
        let fits = [0.0, 1e-5, -1e-5].into_iter().any(|slack| {
            let masses = kept(row, sampling, slack);
            let before: f64 = masses[..element].iter().sum();
            let number = f64::from(numbers[i]);
            masses[element] > 0.0
                && before <= number + 2e-5
                && number <= before + masses[element] + 2e-5
        });
        prop_assert!(fits, "row {i}: element {element} of {width}, {sampling:?}");
    }
    Ok(())
}

#[test]
fn large_vocabularies() {
    let Some(gpu) = gpu() else { return };
    for (width, dtype) in [(49_152, DType::F32), (151_937, DType::F16), (262_144, DType::F32)] {
        let data = round(&fill(7, 0, Values::Normal, 2 * width), dtype);
        let data: Vec<f32> = data.iter().map(|x| x * 3.0).collect();
        let data = round(&data, dtype);
        let x = upload(&gpu, &data, &[2, width], dtype).unwrap();
        let order: Vec<Vec<u32>> = data.chunks(width).map(sorted).collect();
        let want: Vec<u32> = order.iter().map(|row| row[0]).collect();
        assert_eq!(argmax(&x).unwrap().to_vec::<u32>().unwrap(), want);
        let (_, elements) = top_k(&x, 50).unwrap();
        let want: Vec<u32> = order.iter().flat_map(|row| row[..50].to_vec()).collect();
        assert_eq!(elements.to_vec::<u32>().unwrap(), want);
        for sampling in [
            Sampling::default(),
            Sampling { top_k: Some(50), top_p: 0.9, ..Sampling::default() },
            Sampling { temperature: 0.7, top_p: 0.95, min_p: 0.01, ..Sampling::default() },
        ] {
            judge(&gpu, &data, width, dtype, &sampling, width as u64).unwrap();
        }
        let sums = log_sum_exp(&x).unwrap().to_vec::<f32>().unwrap();
        for (got, row) in sums.iter().zip(data.chunks(width)) {
            let want = lse(&wide(row));
            assert!((f64::from(*got) - want).abs() < 1e-5, "{got} {want}");
        }
    }
}

/// A sum of 4,096 rounded halves is not 1; a sum in f32 is.
#[test]
fn many_equal_halves_sum_to_one() {
    let Some(gpu) = gpu() else { return };
    let x = Tensor::from_slice(&gpu, &[f16::from_f32(3.0); 4096], &[4096]).unwrap();
    let out = softmax(&x).unwrap().to_vec::<f16>().unwrap();
    assert_eq!(out.iter().map(|x| x.to_f64()).sum::<f64>(), 1.0);
}

/// The frequencies of samples are the probabilities.
#[test]
fn samples_follow_the_distribution() {
    let Some(gpu) = gpu() else { return };
    let row = [1.0f32, 0.0, -1.0, 2.0, 0.5];
    let count = 4000;
    let x = Tensor::from_slice(&gpu, &row, &[1, 5]).unwrap().expand(&[count, 5]).unwrap();
    let numbers: Vec<f32> = (0..count).map(|i| (i as f32 + 0.5) / count as f32).collect();
    let u = Tensor::from_slice(&gpu, &numbers, &[count]).unwrap();
    let sampling = Sampling { temperature: 0.8, ..Sampling::default() };
    let got = sample(&x, &sampling, &u).unwrap().to_vec::<u32>().unwrap();
    assert!(got.is_sorted());
    let want = kept(&row, &sampling, 0.0);
    for (element, want) in want.iter().enumerate() {
        let found = got.iter().filter(|&&e| e as usize == element).count() as f64;
        assert!((found - want * count as f64).abs() <= 1.0, "{element}: {found} {want}");
    }
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    assert_eq!(sample(&x, &greedy, &u).unwrap().to_vec::<u32>().unwrap(), vec![3; count]);
    let first = Sampling { top_k: Some(1), ..Sampling::default() };
    assert_eq!(sample(&x, &first, &u).unwrap().to_vec::<u32>().unwrap(), vec![3; count]);
    let first = Sampling { top_p: 0.0, ..Sampling::default() };
    assert_eq!(sample(&x, &first, &u).unwrap().to_vec::<u32>().unwrap(), vec![3; count]);
}

/// Rows share workgroups, and nothing else.
#[test]
fn a_nan_stays_in_its_row() {
    let Some(gpu) = gpu() else { return };
    for width in [3, 20, 100, 5000] {
        let mut data = fill(11, 0, Values::Normal, 7 * width);
        let weight = Tensor::full(&gpu, &[width], 1f32).unwrap();
        let u = Tensor::full(&gpu, &[7], 0.5f32).unwrap();
        let sampling = Sampling { top_k: Some(5), top_p: 0.9, min_p: 0.01, temperature: 0.9 };
        let run = |data: &[f32]| -> Vec<Vec<u32>> {
            let x = Tensor::from_slice(&gpu, data, &[7, width]).unwrap();
            let config = norm::RmsNorm::new(1e-6);
            vec![
                bits(&softmax(&x).unwrap()),
                bits(&log_sum_exp(&x).unwrap()),
                bits(&norm::rms_norm(&x, &weight, &config).unwrap()),
                bits(&norm::layer_norm(&x, &weight, &weight, 1e-6).unwrap()),
                argmax(&x).unwrap().to_vec().unwrap(),
                top_k(&x, 2).unwrap().1.to_vec().unwrap(),
                sample(&x, &sampling, &u).unwrap().to_vec().unwrap(),
            ]
        };
        let clean = run(&data);
        data[3 * width..4 * width].fill(f32::NAN);
        data[3 * width + width / 2] = f32::INFINITY;
        for (clean, dirty) in clean.iter().zip(run(&data)) {
            let row = clean.len() / 7;
            assert_eq!(clean[..3 * row], dirty[..3 * row], "{width}");
            assert_eq!(clean[4 * row..], dirty[4 * row..], "{width}");
        }
    }
}

/// Rows that do not fit into one binding are done in parts.
#[test]
fn parts_of_large_tensors() {
    if gpu().is_none() {
        return;
    }
    let limits = attn_wgpu::wgpu::Limits {
        max_storage_buffer_binding_size: 4096,
        ..attn_wgpu::wgpu::Limits::default()
    };
    let Some(small) = open(Gpu::builder().limits(limits)) else { return };
    let data = fill(3, 0, Values::Normal, 3 * 7 * 5 * 100);
    let x = Tensor::from_slice(&small, &data, &[3, 7, 5, 100]).unwrap();
    let want: Vec<f64> = data.chunks(100).flat_map(|row| softmax_of(&wide(row))).collect();
    close("parts", &softmax(&x).unwrap(), &want, 1e-5, 1e-7).unwrap();
    let sums = log_sum_exp(&x).unwrap();
    assert_eq!(sums.shape(), [3, 7, 5]);
    let want: Vec<f64> = data.chunks(100).map(|row| lse(&wide(row))).collect();
    close("parts", &sums, &want, 1e-5, 1e-6).unwrap();
    let rows = x.reshape(&[105, 100]).unwrap();
    let order: Vec<Vec<u32>> = data.chunks(100).map(sorted).collect();
    let (_, elements) = top_k(&rows, 3).unwrap();
    let want: Vec<u32> = order.iter().flat_map(|row| row[..3].to_vec()).collect();
    assert_eq!(elements.to_vec::<u32>().unwrap(), want);
    let want: Vec<u32> = order.iter().map(|row| row[0]).collect();
    assert_eq!(argmax(&rows).unwrap().to_vec::<u32>().unwrap(), want);
    let wide_row = Tensor::zeros(&small, &[1, 4096], DType::F32).unwrap();
    assert!(matches!(softmax(&wide_row), Err(Error::Limit { .. })));
}

#[test]
fn wrong_calls_are_refused() {
    let Some(gpu) = gpu() else { return };
    let x = Tensor::zeros(&gpu, &[2, 8], DType::F32).unwrap();
    let ids = Tensor::zeros(&gpu, &[2], DType::U32).unwrap();
    let u = Tensor::zeros(&gpu, &[2], DType::F32).unwrap();
    let plain = Sampling::default();
    for (arg, result) in [
        ("x", softmax(&ids)),
        ("logits", argmax(&u)),
        ("k", top_k(&x, 9).map(|pair| pair.0)),
        ("targets", log_softmax_gather(&x, &u, None)),
        ("soft_cap", log_softmax_gather(&x, &ids, Some(-1.0))),
        ("uniform", sample(&x, &plain, &ids)),
        ("temperature", sample(&x, &Sampling { temperature: -1.0, ..plain }, &u)),
        ("top_k", sample(&x, &Sampling { top_k: Some(0), ..plain }, &u)),
        ("top_p", sample(&x, &Sampling { top_p: 1.5, ..plain }, &u)),
        ("min_p", sample(&x, &Sampling { min_p: f32::NAN, ..plain }, &u)),
    ] {
        match result {
            Err(Error::Core(error)) => {
                assert!(error.to_string().contains(&format!("`{arg}`")), "{error}")
            }
            other => panic!("{arg}: {other:?}"),
        }
    }
    let none = Tensor::zeros(&gpu, &[0, 8], DType::F32).unwrap();
    assert_eq!(argmax(&none).unwrap().len(), 0);
    let (values, _) = top_k(&x, 0).unwrap();
    assert_eq!(values.shape(), [2, 0]);
    let empty = Tensor::zeros(&gpu, &[2, 0], DType::F32).unwrap();
    assert_eq!(log_sum_exp(&empty).unwrap().to_vec::<f32>().unwrap(), [f32::NEG_INFINITY; 2]);
    assert!(softmax(&empty).unwrap().is_empty());
}
