//! Scans, row products and column sums against loops in f64.
#![allow(missing_docs)]

mod common;

use attn_core::testing::{Values, fill};
use attn_wgpu::scan::{
    Columns, Recurrence, RowDot, SoftmaxScan, SoftmaxState, column_sums, recurrence,
    recurrence_into, row_dot, row_dot_into, softmax_fold, softmax_scan, softmax_scan_into,
};
use attn_wgpu::{DType, Gpu, Tensor, ops};
use half::{bf16, f16};

use common::gpu;

/// Relative to what the terms add up to without their signs. A tile's terms are added one after the other,
/// and so are the totals: some dozen roundings of 6e-8, and those of `exp2`.
const BOUND: f64 = 3e-6;

/// Extents: batch, heads, heads of the shared tensor, tokens, width.
#[derive(Debug, Clone, Copy)]
struct Shape(usize, usize, usize, usize, usize);

/// One token, few, around tiles (32, 1024 = 32 tiles, 4096: larger tiles), no multiple of four.
const SHAPES: [Shape; 9] = [
    Shape(1, 1, 1, 1, 1),
    Shape(2, 3, 3, 7, 5),
    Shape(1, 2, 1, 31, 4),
    Shape(2, 4, 2, 32, 8),
    Shape(1, 2, 2, 33, 12),
    Shape(2, 2, 1, 97, 7),
    Shape(1, 1, 1, 1025, 64),
    Shape(1, 2, 1, 4099, 6),
    Shape(3, 2, 2, 64, 16),
];

fn normals(seed: u64, count: usize) -> Vec<f32> {
    fill(seed, 0, Values::Normal, count)
}

/// The numbers as the device has them, in a type, behind one row of something else, heads behind tokens.
fn upload(gpu: &Gpu, data: &[f32], shape: [usize; 4], dtype: DType) -> (Tensor, Vec<f64>) {
    let [batch, heads, tokens, width] = shape;
    let rounded: Vec<f32> = match dtype {
        DType::F16 => data.iter().map(|&x| f16::from_f32(x).to_f32()).collect(),
        DType::BF16 => data.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
        _ => data.to_vec(),
    };
    let mut wide = vec![f32::NAN; batch * (tokens + 1) * heads * width];
    for (i, &x) in rounded.iter().enumerate() {
        let (row, d) = (i / width, i % width);
        let (plane, t) = (row / tokens, row % tokens);
        let (b, h) = (plane / heads, plane % heads);
        wide[((b * (tokens + 1) + t + 1) * heads + h) * width + d] = x;
    }
    let wide = Tensor::from_slice(gpu, &wide, &[batch, tokens + 1, heads, width]).unwrap();
    let wide = ops::convert(&wide, dtype).unwrap();
    let view = wide.narrow(1, 1, tokens).unwrap().permute(&[0, 2, 1, 3]).unwrap();
    (view, rounded.into_iter().map(f64::from).collect())
}

fn f32s(gpu: &Gpu, data: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(gpu, data, shape).unwrap()
}

fn read(x: &Tensor) -> Vec<f64> {
    let x = ops::convert(x, DType::F32).unwrap();
    x.to_vec::<f32>().unwrap().into_iter().map(f64::from).collect()
}

/// Each number within `bound` times its scale.
fn close(what: &str, got: &[f64], want: &[(f64, f64)], bound: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&got, &(want, scale))) in got.iter().zip(want).enumerate() {
        let right = got == want || (got - want).abs() <= bound * (scale + 1e-30);
        assert!(right, "{what}[{i}]: {got} and not {want}, scale {scale}");
    }
}

fn check_recurrence(gpu: &Gpu, shape: Shape, dtype: DType, a: bool, first: bool, reversed: bool) {
    let Shape(batch, heads, shared, tokens, width) = shape;
    let (x, host) = upload(
        gpu,
        &normals(1, batch * shared * tokens * width),
        [batch, shared, tokens, width],
        dtype,
    );
    let factors: Vec<f32> =
        normals(2, batch * heads * tokens).iter().map(|x| (-x.abs() / 8.0).exp()).collect();
    let begin = normals(3, batch * heads * width);
    let (on_a, on_first) =
        (f32s(gpu, &factors, &[batch, heads, tokens]), f32s(gpu, &begin, &[batch, heads, width]));
    let mut call = Recurrence::new(&x).with_heads(heads);
    if a {
        call = call.with_coefficients(&on_a);
    }
    if first {
        call = call.with_first(Some(&on_first));
    }
    if reversed {
        call = call.reversed();
    }
    let scanned = recurrence(call).unwrap();
    let mut want = vec![(0.0, 0.0); batch * heads * tokens * width];
    let mut last = vec![(0.0, 0.0); batch * heads * width];
    for plane in 0..batch * heads {
        let source = plane / heads * shared + plane % heads / (heads / shared);
        for d in 0..width {
            let begin = if first { f64::from(begin[plane * width + d]) } else { 0.0 };
            let (mut h, mut scale) = (begin, begin.abs());
            for step in 0..tokens {
                let t = if reversed { tokens - 1 - step } else { step };
                let factor = if a { f64::from(factors[plane * tokens + t]) } else { 1.0 };
                let x = host[(source * tokens + t) * width + d];
                (h, scale) = (factor * h + x, factor * scale + x.abs());
                want[(plane * tokens + t) * width + d] = (h, scale);
            }
            last[plane * width + d] = (h, scale);
        }
    }
    let what = format!("{shape:?} {dtype:?} a {a} first {first} reversed {reversed}");
    close(&what, &read(&scanned.h), &want, BOUND);
    close(&what, &read(&scanned.last), &last, BOUND);
    let wide = Tensor::full(gpu, &[batch, heads, tokens, 2 * width], 0f32).unwrap();
    let target = wide.narrow(3, width, width).unwrap();
    recurrence_into(call, &target).unwrap();
    assert_eq!(target.to_vec::<f32>().unwrap(), scanned.h.to_vec::<f32>().unwrap(), "{what}");
}

#[test]
fn smoke_recurrences_are_loops() {
    let Some(gpu) = gpu() else { return };
    for (i, shape) in SHAPES.into_iter().enumerate() {
        let dtype = [DType::F32, DType::F16, DType::BF16][i % 3];
        check_recurrence(&gpu, shape, dtype, i % 2 == 0, i % 4 < 2, i % 3 == 0);
    }
}

#[test]
fn recurrences_in_every_form() {
    let Some(gpu) = gpu() else { return };
    for bits in 0..8 {
        for shape in [Shape(2, 4, 2, 29, 5), Shape(1, 2, 1, 131, 8)] {
            check_recurrence(&gpu, shape, DType::F32, bits & 1 > 0, bits & 2 > 0, bits & 4 > 0);
        }
    }
}

/// What [`softmax_scan`] computes, in f64, each number with its scale; and the final element.
struct Host {
    out: Vec<(f64, f64)>,
    lse: Vec<(f64, f64)>,
    last: Vec<[f64; 2]>,
    weighted: Vec<(f64, f64)>,
}

fn softmax_loop(
    shape: Shape,
    scores: &[f32],
    v: &[f64],
    first: Option<(&[f32], &[f32], &[f32])>,
) -> Host {
    let Shape(batch, heads, shared, tokens, width) = shape;
    let planes = batch * heads;
    let mut host = Host {
        out: vec![(0.0, 0.0); planes * tokens * width],
        lse: Vec::new(),
        last: Vec::new(),
        weighted: Vec::new(),
    };
    for plane in 0..planes {
        let source = plane / heads * shared + plane % heads / (heads / shared);
        let (mut m, mut u, mut w) = (f64::NEG_INFINITY, 0.0, vec![(0.0, 0.0); width]);
        if let Some((max, sum, weighted)) = first {
            m = if max[plane] <= -1e30 { m } else { f64::from(max[plane]) };
            u = f64::from(sum[plane]);
            let weighted = &weighted[plane * width..(plane + 1) * width];
            w = weighted.iter().map(|&x| (f64::from(x), f64::from(x).abs())).collect();
        }
        for t in 0..tokens {
            let s = f64::from(scores[plane * tokens + t]);
            if s > -1e30 {
                let top = m.max(s);
                let (kept, own) = ((m - top).exp(), (s - top).exp());
                u = u * kept + own;
                for (d, w) in w.iter_mut().enumerate() {
                    let x = v[(source * tokens + t) * width + d];
                    *w = (w.0 * kept + own * x, w.1 * kept + own * x.abs());
                }
                m = top;
            }
            let lse = m + u.ln();
            host.lse.push((lse, lse.abs().max(1.0)));
            for (d, w) in w.iter().enumerate() {
                let share = |w: f64| if u > 0.0 { w / u } else { 0.0 };
                host.out[(plane * tokens + t) * width + d] = (share(w.0), share(w.1));
            }
        }
        host.last.push([m, u]);
        host.weighted.extend(w);
    }
    host
}

fn state(gpu: &Gpu, shape: Shape, parts: (&[f32], &[f32], &[f32])) -> SoftmaxState {
    let Shape(batch, heads, _, _, width) = shape;
    let heads_of = |x: &[f32]| f32s(gpu, x, &[batch, heads]);
    let weighted = f32s(gpu, parts.2, &[batch, heads, width]);
    SoftmaxState::from_parts(&heads_of(parts.0), &heads_of(parts.1), &weighted).unwrap()
}

fn check_softmax(gpu: &Gpu, shape: Shape, dtype: DType, first: bool, masked: bool, spread: f32) {
    let Shape(batch, heads, shared, tokens, width) = shape;
    let planes = batch * heads;
    let mut values = normals(1, batch * shared * tokens * width);
    let mut scores: Vec<f32> = normals(2, planes * tokens).iter().map(|x| x * spread).collect();
    if masked {
        for t in (0..tokens).filter(|t| t % 3 == 0 || *t < tokens / 2) {
            // A masked value is never read.
            for plane in 0..planes {
                scores[plane * tokens + t] = -3e38;
            }
            for plane in 0..batch * shared {
                values[(plane * tokens + t) * width..][..width].fill(f32::NAN);
            }
        }
    }
    let (v, host_v) = upload(gpu, &values, [batch, shared, tokens, width], dtype);
    let on_scores = f32s(gpu, &scores, &[batch, heads, tokens]);
    let mut max = normals(3, planes);
    let mut sum: Vec<f32> = normals(4, planes).iter().map(|x| 1.0 + x.abs()).collect();
    let mut weighted = normals(5, planes * width);
    // One of them has seen nothing.
    (max[0], sum[0]) = (-3e38, 0.0);
    weighted[..width].fill(0.0);
    let parts = (&max[..], &sum[..], &weighted[..]);
    let before = first.then(|| state(gpu, shape, parts));
    let host = softmax_loop(shape, &scores, &host_v, first.then_some(parts));
    let SoftmaxScan { out, lse, last, .. } =
        softmax_scan(&on_scores, &v, before.as_ref(), DType::F32).unwrap();
    let what = format!("{shape:?} {dtype:?} first {first} masked {masked} spread {spread}");
    close(&format!("out {what}"), &read(&out), &host.out, BOUND);
    close(&format!("lse {what}"), &read(&lse), &host.lse, BOUND);
    let folded = softmax_fold(&on_scores, &v, before.as_ref()).unwrap();
    for state in [&last, &folded] {
        close(&format!("w {what}"), &read(&state.weighted().unwrap()), &host.weighted, BOUND);
        let (max, sum) = (read(&state.max().unwrap()), read(&state.sum().unwrap()));
        for (i, [m, u]) in host.last.iter().enumerate() {
            assert!(
                if m.is_finite() { max[i] == *m } else { max[i] <= -1e30 },
                "{what}: {} {m}",
                max[i]
            );
            assert!((sum[i] - u).abs() <= BOUND * u, "{what}: {} {u}", sum[i]);
        }
    }
    // Outputs of the state are those of the last token.
    let (state_out, state_lse) = last.read_out().unwrap();
    let of_last = |x: &[(f64, f64)], width: usize| -> Vec<(f64, f64)> {
        (0..planes)
            .flat_map(|plane| x[((plane + 1) * tokens - 1) * width..][..width].to_vec())
            .collect()
    };
    close(&what, &read(&state_out), &of_last(&host.out, width), BOUND);
    close(&what, &read(&state_lse), &of_last(&host.lse, 1), BOUND);
    // Into half types, and into others' memory.
    let half = softmax_scan(&on_scores, &v, before.as_ref(), DType::BF16).unwrap();
    close(&what, &read(&half.out), &host.out, 0.005);
    let wide = Tensor::full(gpu, &[batch, tokens, heads, width], 0f32).unwrap();
    let target = wide.permute(&[0, 2, 1, 3]).unwrap();
    let into_lse = Tensor::full(gpu, &[batch, heads, tokens], 0f32).unwrap();
    softmax_scan_into(&on_scores, &v, before.as_ref(), &target, &into_lse).unwrap();
    assert_eq!(target.to_vec::<f32>().unwrap(), out.to_vec::<f32>().unwrap());
    assert_eq!(into_lse.to_vec::<f32>().unwrap(), lse.to_vec::<f32>().unwrap());
}

#[test]
fn smoke_softmax_scans_are_loops() {
    let Some(gpu) = gpu() else { return };
    for (i, shape) in SHAPES.into_iter().enumerate() {
        let dtype = [DType::F32, DType::BF16, DType::F16][i % 3];
        check_softmax(&gpu, shape, dtype, i % 2 == 0, i % 3 == 1, [1.0, 4.0][i % 2]);
    }
}

/// Scores of 200 and more, and of 1e4: differences alone matter.
#[test]
fn large_scores() {
    let Some(gpu) = gpu() else { return };
    for spread in [200.0, 1e4] {
        check_softmax(&gpu, Shape(2, 2, 1, 77, 8), DType::F32, true, false, spread);
        check_softmax(&gpu, Shape(2, 2, 1, 77, 8), DType::F32, false, true, spread);
    }
}

#[test]
fn nothing_but_masks_is_nothing() {
    let Some(gpu) = gpu() else { return };
    for tokens in [5, 100] {
        let scores = Tensor::full(&gpu, &[1, 2, tokens], -3e38f32).unwrap();
        let v = Tensor::full(&gpu, &[1, 2, tokens, 4], f32::NAN).unwrap();
        let scan = softmax_scan(&scores, &v, None, DType::F32).unwrap();
        assert!(read(&scan.out).iter().all(|&x| x == 0.0));
        assert!(read(&scan.lse).iter().all(|&x| x == f64::NEG_INFINITY));
        let (out, lse) = softmax_fold(&scores, &v, None).unwrap().read_out().unwrap();
        assert!(read(&out).iter().all(|&x| x == 0.0));
        assert!(read(&lse).iter().all(|&x| x == f64::NEG_INFINITY));
    }
}

/// No token, and no element of a value.
#[test]
fn extents_of_zero() {
    let Some(gpu) = gpu() else { return };
    let empty = |shape: &[usize]| Tensor::zeros(&gpu, shape, DType::F32).unwrap();
    let scan = softmax_scan(&empty(&[2, 3, 0]), &empty(&[2, 3, 0, 4]), None, DType::F32).unwrap();
    assert_eq!(scan.out.shape(), [2, 3, 0, 4]);
    assert!(read(&scan.last.max().unwrap()).iter().all(|&m| m <= -1e30));
    assert_eq!(read(&scan.last.weighted().unwrap()), [0.0; 24]);
    for tokens in [9, 90] {
        let shape = Shape(1, 2, 2, tokens, 0);
        let scores = normals(1, 2 * tokens);
        let on_scores = f32s(&gpu, &scores, &[1, 2, tokens]);
        let scan = softmax_scan(&on_scores, &empty(&[1, 2, tokens, 0]), None, DType::F32).unwrap();
        close("lse", &read(&scan.lse), &softmax_loop(shape, &scores, &[], None).lse, BOUND);
    }
    assert_eq!(
        read(&row_dot(RowDot::new(&empty(&[1, 2, 3, 0]), &empty(&[1, 2, 3, 0]))).unwrap()),
        [0.0; 6]
    );
    let (scores, v) = (empty(&[1, 2, 3]), empty(&[1, 2, 3, 0]));
    let lse = Tensor::full(&gpu, &[1, 2, 3], 9f32).unwrap();
    softmax_scan_into(&scores, &v, None, &empty(&[1, 2, 3, 0]), &lse).unwrap();
    close("lse", &read(&lse), &[1.0, 2.0, 3.0, 1.0, 2.0, 3.0].map(|t: f64| (t.ln(), 1.0)), BOUND);
    let first = f32s(&gpu, &normals(1, 8), &[1, 2, 4]);
    let scanned =
        recurrence(Recurrence::new(&empty(&[1, 2, 0, 4])).with_first(Some(&first))).unwrap();
    assert_eq!(scanned.last.to_vec::<f32>().unwrap(), first.to_vec::<f32>().unwrap());
    assert_eq!(read(&column_sums(Columns::new(&empty(&[1, 2, 0, 3]))).unwrap()), [0.0; 6]);
}

#[test]
fn smoke_column_sums_and_row_products() {
    let Some(gpu) = gpu() else { return };
    for (i, shape) in SHAPES.into_iter().enumerate() {
        let Shape(batch, heads, shared, tokens, width) = shape;
        let dtype = [DType::F16, DType::F32, DType::BF16][i % 3];
        let (x, host) = upload(
            &gpu,
            &normals(1, batch * shared * tokens * width),
            [batch, shared, tokens, width],
            dtype,
        );
        let weights = normals(2, batch * heads * tokens);
        let on_weights = f32s(&gpu, &weights, &[batch, heads, tokens]);
        let call = Columns::new(&x).with_weights(&on_weights).with_factor(0.5).with_shift(0.25);
        let got = read(&column_sums(call).unwrap());
        let source = |plane: usize| plane / heads * shared + plane % heads / (heads / shared);
        let mut want = Vec::new();
        for plane in 0..batch * heads {
            for d in 0..width {
                let term = |t| {
                    let x = host[(source(plane) * tokens + t) * width + d] + 0.25;
                    0.5 * f64::from(weights[plane * tokens + t]) * x
                };
                want.push(((0..tokens).map(term).sum(), (0..tokens).map(|t| term(t).abs()).sum()));
            }
        }
        close(&format!("columns {shape:?}"), &got, &want, BOUND);

        // A row for all tokens and the whole batch, and rows that do not count.
        let y = normals(3, heads * width);
        let on_y = f32s(&gpu, &y, &[1, heads, 1, width]);
        let counts: Vec<u32> = (0..batch * tokens).map(|t| u32::from(t % 4 != 1)).collect();
        let valid = Tensor::from_slice(&gpu, &counts, &[batch, tokens]).unwrap();
        let call =
            RowDot::new(&x, &on_y).with_factor(-2.0).with_shift(0.5).with_valid(Some(&valid), 7.0);
        let mut want = Vec::new();
        for plane in 0..batch * heads {
            for t in 0..tokens {
                let term = |d: usize| {
                    let x = host[(source(plane) * tokens + t) * width + d] + 0.5;
                    -2.0 * x * (f64::from(y[plane % heads * width + d]) + 0.5)
                };
                let sum = ((0..width).map(term).sum(), (0..width).map(|d| term(d).abs()).sum());
                let counts = counts[plane / heads * tokens + t] > 0;
                want.push(if counts { sum } else { (7.0, 1.0) });
            }
        }
        let got = row_dot(call).unwrap();
        close(&format!("rows {shape:?}"), &read(&got), &want, BOUND);
        let wide = Tensor::full(&gpu, &[batch, tokens, heads], 0f32).unwrap();
        let target = wide.permute(&[0, 2, 1]).unwrap();
        row_dot_into(call, &target).unwrap();
        assert_eq!(target.to_vec::<f32>().unwrap(), got.to_vec::<f32>().unwrap());
    }
}

/// Batch entries and heads alone and among others, and two runs: the same bits.
#[test]
fn heads_do_not_see_each_other() {
    let Some(gpu) = gpu() else { return };
    let shape = [2, 3, 1100, 8];
    let (v, _) = upload(&gpu, &normals(1, 2 * 3 * 1100 * 8), shape, DType::F32);
    let scores = f32s(&gpu, &normals(2, 2 * 3 * 1100), &shape[..3]);
    let run = |scores: &Tensor, v: &Tensor| {
        let scan = softmax_scan(scores, v, None, DType::F32).unwrap();
        let sums = recurrence(Recurrence::new(v).with_coefficients(scores)).unwrap();
        let columns = column_sums(Columns::new(v).with_weights(scores)).unwrap();
        [scan.out, scan.lse, sums.last, columns]
    };
    let all = run(&scores, &v);
    let part = |x: &Tensor| x.narrow(0, 1, 1).unwrap().narrow(1, 2, 1).unwrap();
    let alone = run(&part(&scores), &part(&v));
    let bits =
        |x: &Tensor| x.to_vec::<f32>().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for ((all, alone), again) in all.iter().zip(&alone).zip(&run(&scores, &v)) {
        assert_eq!(bits(&part(all)), bits(alone));
        assert_eq!(bits(all), bits(again));
    }
}

/// A later token changes no bit of an earlier output, not even a NaN.
#[test]
fn prefixes_do_not_see_what_follows() {
    let Some(gpu) = gpu() else { return };
    let (tokens, cut) = (150, 70);
    let mut values = normals(1, tokens * 4);
    let mut numbers = normals(2, tokens);
    let run = |values: &[f32], numbers: &[f32]| {
        let v = f32s(&gpu, values, &[1, 1, tokens, 4]);
        let scores = f32s(&gpu, numbers, &[1, 1, tokens]);
        let scan = softmax_scan(&scores, &v, None, DType::F32).unwrap();
        let sums = recurrence(Recurrence::new(&v).with_coefficients(&scores)).unwrap();
        [scan.out, sums.h].map(|x| x.narrow(2, 0, cut).unwrap().to_vec::<f32>().unwrap())
    };
    let before = run(&values, &numbers);
    values[cut * 4..].fill(f32::NAN);
    numbers[cut..].fill(f32::NAN);
    assert_eq!(run(&values, &numbers), before);
}

#[test]
fn wrong_arguments_are_errors() {
    let Some(gpu) = gpu() else { return };
    let f = |shape: &[usize]| Tensor::zeros(&gpu, shape, DType::F32).unwrap();
    let text = |error: attn_wgpu::Error| error.to_string();
    let v = f(&[1, 2, 5, 4]);
    for (scores, v) in [(f(&[1, 2, 4]), &v), (f(&[1, 3, 5]), &v), (f(&[1, 2, 5]), &f(&[1, 2, 5]))] {
        assert!(softmax_scan(&scores, v, None, DType::F32).is_err());
    }
    let other = SoftmaxState::empty(&gpu, 1, 2, 8).unwrap();
    let error = softmax_scan(&f(&[1, 2, 5]), &v, Some(&other), DType::F32).unwrap_err();
    assert!(text(error).contains("first"));
    let error = recurrence(Recurrence::new(&v).with_first(Some(&f(&[1, 2, 5])))).unwrap_err();
    assert!(text(error).contains("first"));
    let error = recurrence(Recurrence::new(&v).with_heads(3)).unwrap_err();
    assert!(text(error).contains("divides 3"));
    let later = SoftmaxState::empty(&gpu, 1, 2, 4).unwrap();
    assert!(text(later.merge(&other).unwrap_err()).contains("later"));
    let error = row_dot(RowDot::new(&v, &f(&[1, 2, 4, 4]))).unwrap_err();
    assert!(text(error).contains("`y`"));
    let error = column_sums(Columns::new(&v).with_weights(&f(&[1, 2, 4]))).unwrap_err();
    assert!(text(error).contains("weights"));
}
