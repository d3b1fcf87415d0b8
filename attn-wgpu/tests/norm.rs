//! Norms and elementwise functions against f64 on the host.

mod common;

use attn_core::testing::{Values, fill};
use attn_wgpu::norm::{
    RmsNorm, layer_norm, layer_norm_into, rms_norm, rms_norm_add, rms_norm_add_into, rms_norm_into,
    simple_rms_norm, simple_rms_norm_backward, simple_rms_norm_backward_into, simple_rms_norm_into,
};
use attn_wgpu::{Activation, DType, Error, Tensor, ops};
use common::rows::{bits, close, floats, round};
use common::{cases, download, gpu, upload};
use half::{bf16, f16};
use proptest::prelude::*;

/// Rows of at most 16,384 products of rounded factors, and one rounding of the result.
const TOLERANCE: f64 = 2e-6;

fn rms(x: &[f32], weight: &[f32], eps: f64, offset: f64) -> Vec<f64> {
    let width = weight.len();
    let row = |row: &[f32]| {
        let square: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
        let root = (square / width as f64 + eps).sqrt();
        let out = |(&x, &w): (&f32, &f32)| f64::from(x) / root * (offset + f64::from(w));
        row.iter().zip(weight).map(out).collect::<Vec<f64>>()
    };
    x.chunks(width).flat_map(row).collect()
}

fn layer(x: &[f32], weight: &[f32], bias: &[f32], eps: f64) -> Vec<f64> {
    let width = weight.len();
    let row = |row: &[f32]| {
        let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / width as f64;
        let var = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / width as f64;
        let root = (var + eps).sqrt();
        let out = |i: usize| {
            (f64::from(row[i]) - mean) / root * f64::from(weight[i]) + f64::from(bias[i])
        };
        (0..width).map(out).collect::<Vec<f64>>()
    };
    x.chunks(width).flat_map(row).collect()
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn norms_are_those_of_f64(
        extents in prop::array::uniform3(1usize..4),
        width in prop_oneof![1usize..40, 60usize..70, Just(576), 1000usize..1100],
        source in floats(),
        target in floats(),
        seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let [a, b, c] = extents;
        let shape = [a, b, c, width];
        let data = round(&fill(seed, 0, Values::Normal, a * b * c * width), source);
        let more = round(&fill(seed, 1, Values::Normal, a * b * c * width), source);
        let weight = fill(seed, 2, Values::Normal, width);
        let bias = fill(seed, 3, Values::Normal, width);
        let x = upload(&gpu, &data, &shape, source).unwrap();
        let delta = upload(&gpu, &more, &shape, source).unwrap();
        let w = Tensor::from_slice(&gpu, &weight, &[width]).unwrap();
        let v = Tensor::from_slice(&gpu, &bias, &[width]).unwrap();

        let config = RmsNorm::new(1e-5).with_weight_offset(1.0).with_dtype(target);
        let got = rms_norm(&x, &w, &config).unwrap();
        prop_assert_eq!(got.dtype(), target);
        close("rms", &got, &rms(&data, &weight, 1e-5, 1.0), TOLERANCE, 1e-6)?;

        let got = layer_norm(&x, &w, &v, 1e-5).unwrap();
        // A deviation is as exact as the mean that it is taken from.
        let want = layer(&data, &weight, &bias, 1e-5);
        close("layer", &got, &want, TOLERANCE, 3e-6 * if width == 1 { 1e3 } else { 10.0 })?;

        let sums: Vec<f32> = data.iter().zip(&more).map(|(a, b)| a + b).collect();
        let sums = round(&sums, source);
        let (sum, out) = rms_norm_add(&x, &delta, &w, &config).unwrap();
        prop_assert_eq!(download(&sum).unwrap(), sums.clone());
        let separate = rms_norm(&sum, &w, &config).unwrap();
        prop_assert_eq!(bits(&out), bits(&separate));
        close("add", &out, &rms(&sums, &weight, 1e-5, 1.0), TOLERANCE, 1e-6)?;

        // A row alone, a view of heads, and a target of the caller's.
        let last = x.narrow(0, a - 1, 1).unwrap().narrow(2, c - 1, 1).unwrap();
        let alone = rms_norm(&last, &w, &config).unwrap();
        let whole = rms_norm(&x, &w, &config).unwrap();
        let same = whole.narrow(0, a - 1, 1).unwrap().narrow(2, c - 1, 1).unwrap();
        prop_assert_eq!(bits(&alone), bits(&same));
        let swapped = rms_norm(&x.permute(&[0, 2, 1, 3]).unwrap(), &w, &config).unwrap();
        prop_assert_eq!(bits(&swapped.permute(&[0, 2, 1, 3]).unwrap()), bits(&whole));
        let target = Tensor::uninit(&gpu, &shape, target).unwrap();
        rms_norm_into(&x, &w, &config, &target).unwrap();
        prop_assert_eq!(bits(&target), bits(&whole));
        let sum_target = Tensor::uninit(&gpu, &shape, source).unwrap();
        rms_norm_add_into(&x, &delta, &w, &config, &sum_target, &target).unwrap();
        prop_assert_eq!(bits(&target), bits(&out));
        prop_assert_eq!(bits(&sum_target), bits(&sum));
        layer_norm_into(&x, &w, &v, 1e-5, &target).unwrap();
        close("layer into", &target, &want, TOLERANCE, 3e-6 * if width == 1 { 1e3 } else { 10.0 })?;
    }

    #[test]
    fn the_norm_without_weights_and_its_derivative_are_those_of_f64(
        extents in prop::array::uniform3(1usize..4),
        width in prop_oneof![1usize..40, 60usize..70, Just(576), 1000usize..1100],
        dtype in floats(),
        seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let [a, b, c] = extents;
        let shape = [a, b, c, width];
        let count = a * b * c * width;
        let data = round(&fill(seed, 0, Values::Normal, count), dtype);
        let by = round(&fill(seed, 1, Values::Normal, count), dtype);
        let x = upload(&gpu, &data, &shape, dtype).unwrap();
        let dy = upload(&gpu, &by, &shape, dtype).unwrap();
        let y = simple_rms_norm(&x, 1e-5).unwrap();
        close("y", &y, &rms(&data, &vec![1.0; width], 1e-5, 0.0), TOLERANCE, 1e-6)?;

        let row = |(x, dy): (&[f32], &[f32])| {
            let squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
            let root = (squares / width as f64 + 1e-5).sqrt().recip();
            let pairs = || x.iter().zip(dy).map(|(&x, &dy)| (f64::from(x) * root, f64::from(dy)));
            let mean = pairs().map(|(y, dy)| y * dy).sum::<f64>() / width as f64;
            pairs().map(|(y, dy)| root * (dy - y * mean)).collect::<Vec<f64>>()
        };
        let want: Vec<f64> = data.chunks(width).zip(by.chunks(width)).flat_map(row).collect();
        let dx = simple_rms_norm_backward(&x, &dy, 1e-5).unwrap();
        // Of one element nearly nothing is left, and its root is up to 300 where it is small.
        let left = if width == 1 { 1e-3 } else { 2e-5 };
        close("dx", &dx, &want, TOLERANCE, left)?;

        // A view of heads, and targets of the caller's.
        let swapped = |x: &Tensor| x.permute(&[0, 2, 1, 3]).unwrap();
        let same = simple_rms_norm_backward(&swapped(&x), &swapped(&dy), 1e-5).unwrap();
        prop_assert_eq!(bits(&swapped(&same)), bits(&dx));
        let target = Tensor::uninit(&gpu, &shape, dtype).unwrap();
        simple_rms_norm_into(&x, 1e-5, &target).unwrap();
        prop_assert_eq!(bits(&target), bits(&y));
        simple_rms_norm_backward_into(&x, &dy, 1e-5, &target).unwrap();
        prop_assert_eq!(bits(&target), bits(&dx));
    }

    #[test]
    fn elementwise_functions_are_those_of_f64(
        extents in prop::array::uniform3(0usize..6),
        width in 1usize..30,
        dtype in floats(),
        seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let [a, b, c] = extents;
        let shape = [a, b, c, 2 * width];
        let data = round(&fill(seed, 0, Values::Normal, a * b * c * 2 * width), dtype);
        let both = upload(&gpu, &data, &shape, dtype).unwrap();
        // Two halves of one tensor.
        let left = both.narrow(3, 0, width).unwrap();
        let right = both.narrow(3, width, width).unwrap();
        let halves = |start: usize| -> Vec<f64> {
            let row = |row: &[f32]| row[start..start + width].iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            data.chunks(2 * width).flat_map(row).collect()
        };
        let (l, r) = (halves(0), halves(width));
        let zip = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
            l.iter().zip(&r).map(|(&a, &b)| f(a, b)).collect()
        };
        close("add", &ops::add(&left, &right).unwrap(), &zip(&|a, b| a + b), 1e-6, 1e-6)?;
        for activation in Activation::ALL {
            let got = ops::gated(&left, &right, activation).unwrap();
            let want = zip(&|a, b| activation.reference(a) * b);
            close(activation.name(), &got, &want, 5e-6, 5e-6)?;
            let target = Tensor::uninit(&gpu, &[a, b, c, width], dtype).unwrap();
            ops::gated_into(&left, &right, activation, &target).unwrap();
            prop_assert_eq!(bits(&target), bits(&got));
        }
        let got = ops::soft_cap(&left, 1.5).unwrap();
        let want: Vec<f64> = l.iter().map(|x| 1.5 * (x / 1.5).tanh()).collect();
        close("soft cap", &got, &want, 2e-6, 1e-7)?;
        let got = ops::scale(&left, -0.75).unwrap();
        let want: Vec<f64> = l.iter().map(|x| -0.75 * x).collect();
        close("scale", &got, &want, 1e-7, 1e-7)?;
        let target = Tensor::uninit(&gpu, &[a, b, c, width], dtype).unwrap();
        ops::scale_into(&left, -0.75, &target).unwrap();
        prop_assert_eq!(bits(&target), bits(&got));
    }

    #[test]
    fn conversion_rounds_to_nearest_even(words in prop::collection::vec(any::<u32>(), 1..300)) {
        let Some(gpu) = gpu() else { return Ok(()) };
        // Every exponent that halves have, and ties between neighbours.
        let values: Vec<f32> = words
            .iter()
            .flat_map(|&word| {
                let half = f16::from_bits(word as u16).to_f32();
                let next = f16::from_bits((word as u16).wrapping_add(1)).to_f32();
                let wide = f32::from_bits(word);
                let wide = if wide.is_subnormal() { 0.0 } else { wide };
                [half, (half + next) / 2.0, wide, bf16::from_bits((word >> 16) as u16).to_f32()]
            })
            .filter(|x| !x.is_subnormal())
            .collect();
        let x = Tensor::from_slice(&gpu, &values, &[values.len()]).unwrap();
        let canonical = |x: f32| if x.is_nan() { None } else { Some(x.to_bits()) };
        for dtype in [DType::F16, DType::BF16] {
            let got = download(&ops::convert(&x, dtype).unwrap()).unwrap();
            let want = round(&values, dtype);
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                prop_assert_eq!(canonical(*got), canonical(*want), "{} to {:?}", values[i], dtype);
            }
            let back = ops::convert(&ops::convert(&x, dtype).unwrap(), DType::F32).unwrap();
            let back = back.to_vec::<f32>().unwrap();
            for (got, want) in back.iter().zip(&want).filter(|(_, want)| !want.is_subnormal()) {
                prop_assert_eq!(canonical(*got), canonical(*want));
            }
        }
    }
}

/// Activations of real models have rows of norm 23,300, and sums of squares beyond any half type;
/// squares of 1e25 are beyond f32.
#[test]
fn large_rows_keep_their_digits() {
    let Some(gpu) = gpu() else { return };
    for (width, size) in [(576, 23_300.0 / 24.0), (16_384, 1e17), (16_384, 1e25), (577, 3e38)] {
        let data: Vec<f32> =
            fill(1, 0, Values::Normal, 2 * width).iter().map(|x| (x / 6.0) * size).collect();
        let weight = fill(1, 1, Values::Normal, width);
        let x = Tensor::from_slice(&gpu, &data, &[2, width]).unwrap();
        let w = Tensor::from_slice(&gpu, &weight, &[width]).unwrap();
        for dtype in [DType::F32, DType::F16] {
            let got = rms_norm(&x, &w, &RmsNorm::new(1e-6).with_dtype(dtype)).unwrap();
            close("large", &got, &rms(&data, &weight, 1e-6, 0.0), 3e-6, 1e-6).unwrap();
        }
    }
    for x in [0.0f32, 1e-20] {
        let zeros = Tensor::full(&gpu, &[3, 5], x).unwrap();
        let w = Tensor::full(&gpu, &[5], 1f32).unwrap();
        let got = rms_norm(&zeros, &w, &RmsNorm::new(1e-6)).unwrap();
        close("tiny", &got, &[f64::from(x) * 1e3; 15], 1e-5, 1e-30).unwrap();
    }
}

#[test]
fn wrong_calls_are_refused() {
    let Some(gpu) = gpu() else { return };
    let x = Tensor::zeros(&gpu, &[2, 8], DType::F32).unwrap();
    let w = Tensor::zeros(&gpu, &[8], DType::F32).unwrap();
    let short = Tensor::zeros(&gpu, &[7], DType::F32).unwrap();
    let ids = Tensor::zeros(&gpu, &[2, 8], DType::U32).unwrap();
    let deep = Tensor::zeros(&gpu, &[1, 1, 1, 1, 8], DType::F32).unwrap();
    let config = RmsNorm::new(1e-6);
    for (arg, result) in [
        ("weight", rms_norm(&x, &short, &config)),
        ("x", rms_norm(&ids, &w, &config)),
        ("x", rms_norm(&deep, &w, &config)),
        ("eps", rms_norm(&x, &w, &RmsNorm::new(f32::NAN))),
        ("dtype", rms_norm(&x, &w, &config.with_dtype(DType::U32))),
        ("bias", layer_norm(&x, &w, &short, 0.0)),
        ("delta", rms_norm_add(&x, &w, &w, &config).map(|pair| pair.0)),
        ("out", rms_norm_into(&x, &w, &config, &w).map(|()| x.clone())),
        ("b", ops::add(&x, &w)),
        ("soft_cap", ops::soft_cap(&x, 0.0)),
        ("x", ops::scale(&deep, 2.0)),
    ] {
        match result {
            Err(Error::Core(error)) => {
                assert!(error.to_string().contains(&format!("`{arg}`")), "{error}")
            }
            other => panic!("{arg}: {other:?}"),
        }
    }
    let empty = Tensor::zeros(&gpu, &[0, 8], DType::F16).unwrap();
    assert_eq!(rms_norm(&empty, &w, &config).unwrap().shape(), [0, 8]);
    let empty = Tensor::zeros(&gpu, &[3, 0], DType::F16).unwrap();
    let none = Tensor::zeros(&gpu, &[0], DType::F32).unwrap();
    assert_eq!(rms_norm(&empty, &none, &config).unwrap().shape(), [3, 0]);
}
