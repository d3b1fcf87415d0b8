//! Linear attention with decay in blocks against its recurrence in f64 on the host.

mod common;

use attn_core::ndarray::{Array2, Array4, ArrayView2, Axis, s};
use attn_core::testing::{Values, fill};
use attn_wgpu::linear_attention::{Cotangents, Grads, Inputs, LinearAttention, Output};
use attn_wgpu::{DType, Gpu, Result, Tensor};
use common::rows::round;
use common::{cases, download, gpu, upload};
use proptest::prelude::*;
use proptest::sample::select;

#[derive(Debug, Clone)]
struct Case {
    /// batch, heads_kv, group, tokens, dim_qk, dim_v.
    extents: [usize; 6],
    slopes: Vec<f64>,
    block: usize,
    dtype: DType,
    with_state: bool,
    seed: u64,
}

/// Numbers that the device gets, exactly: q, k, v, kv, d_out, d_kv.
struct Host([Array4<f64>; 6]);

impl Case {
    fn shapes(&self) -> [[usize; 4]; 6] {
        let [batch, heads_kv, group, tokens, d, e] = self.extents;
        let heads = heads_kv * group;
        let kv = [batch, heads, d, e];
        let out = [batch, heads, tokens, e];
        let (k, v) = ([batch, heads_kv, tokens, d], [batch, heads_kv, tokens, e]);
        [[batch, heads, tokens, d], k, v, kv, out, kv]
    }

    fn data(&self) -> Vec<Vec<f32>> {
        let of = |(i, shape): (usize, [usize; 4])| {
            let count = shape.iter().product();
            let data = fill(self.seed, i as u64, Values::Normal, count);
            let is_state = i == 3 || i == 5;
            round(&data, if is_state { DType::F32 } else { self.dtype })
        };
        self.shapes().into_iter().enumerate().map(of).collect()
    }

    fn host(&self, data: &[Vec<f32>]) -> Host {
        let shapes = self.shapes();
        let mut arrays = [(); 6].map(|()| Array4::zeros((0, 0, 0, 0)));
        for (i, array) in arrays.iter_mut().enumerate() {
            let data = data[i].iter().map(|&x| f64::from(x)).collect();
            *array = Array4::from_shape_vec(shapes[i], data).unwrap();
        }
        Host(arrays)
    }

    fn run(&self, gpu: &Gpu, data: &[Vec<f32>]) -> Result<(Output, Grads)> {
        let shapes = self.shapes();
        let dtype = |i: usize| if i == 3 || i == 5 { DType::F32 } else { self.dtype };
        let up = |i: usize| upload(gpu, &data[i], &shapes[i], dtype(i)).unwrap();
        let [q, k, v, kv, d_out, d_kv] = [up(0), up(1), up(2), up(3), up(4), up(5)];
        let attention = LinearAttention::new(gpu, &self.slopes)?.with_block(self.block)?;
        let inputs = Inputs::new(&q, &k, &v);
        let inputs = if self.with_state { inputs.with_state(&kv) } else { inputs };
        let (output, saved) = attention.forward_saved(inputs)?;
        let plain = attention.forward(inputs)?;
        assert_eq!(bits(&plain.out), bits(&output.out), "forward with and without saving");
        assert_eq!(bits(&plain.kv), bits(&output.kv));
        let grads = attention.backward(&saved, Cotangents::new(&d_out).with_state(&d_kv))?;
        Ok((output, grads))
    }
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    download(tensor).unwrap().into_iter().map(f32::to_bits).collect()
}

/// Output, last state, gradients by q, k, v and the first state.
fn recurrence(case: &Case, Host([q, k, v, kv, d_out, d_kv]): &Host) -> [Array4<f64>; 6] {
    let [batch, heads_kv, group, tokens, ..] = case.extents;
    let mut out = Array4::zeros(d_out.dim());
    let mut last = Array4::zeros(kv.dim());
    let mut grads = [q, k, v].map(|x| Array4::zeros(x.dim()));
    let mut d_first = Array4::zeros(kv.dim());
    let head = |x: &Array4<f64>, b: usize, h: usize| x.slice(s![b, h, .., ..]).to_owned();
    for (b, h) in (0..batch).flat_map(|b| (0..heads_kv * group).map(move |h| (b, h))) {
        let lambda = (-case.slopes[h]).exp();
        let g = h / group;
        let (q, k, v) = (head(q, b, h), head(k, b, g), head(v, b, g));
        let d_out = head(d_out, b, h);
        let mut state =
            if case.with_state { head(kv, b, h) } else { Array2::zeros((q.ncols(), v.ncols())) };
        let mut states = Vec::new();
        for t in 0..tokens {
            state = lambda * state
                + outer(k.row(t).insert_axis(Axis(1)), v.row(t).insert_axis(Axis(0)));
            out.slice_mut(s![b, h, t, ..]).assign(&q.row(t).dot(&state));
            states.push(state.clone());
        }
        last.slice_mut(s![b, h, .., ..]).assign(&state);
        let mut after = head(d_kv, b, h);
        let [dq, dk, dv] = &mut grads;
        for t in (0..tokens).rev() {
            after += &outer(q.row(t).insert_axis(Axis(1)), d_out.row(t).insert_axis(Axis(0)));
            dq.slice_mut(s![b, h, t, ..]).assign(&states[t].dot(&d_out.row(t)));
            let (mut dk, mut dv) = (dk.slice_mut(s![b, g, t, ..]), dv.slice_mut(s![b, g, t, ..]));
            dk += &after.dot(&v.row(t));
            dv += &k.row(t).dot(&after);
            after *= lambda;
        }
        d_first.slice_mut(s![b, h, .., ..]).assign(&after);
    }
    let [dq, dk, dv] = grads;
    [out, last, dq, dk, dv, d_first]
}

fn outer(a: ArrayView2<'_, f64>, b: ArrayView2<'_, f64>) -> Array2<f64> {
    a.dot(&b)
}

const NAMES: [&str; 6] = ["out", "kv", "dq", "dk", "dv", "d_kv"];

/// Relative L2 distance: f32 sums of up to a few hundred products, of which each block and each state is
/// one, reach 3e-7; halves round once more, at the end.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 6e-4,
        DType::BF16 => 5e-3,
        _ => 2e-6,
    }
}

fn results(output: &Output, grads: &Grads) -> [Tensor; 6] {
    let Grads { dq, dk, dv, d_kv, .. } = grads.clone();
    [output.out.clone(), output.kv.clone(), dq, dk, dv, d_kv]
}

fn check(case: &Case, gpu: &Gpu) {
    let data = case.data();
    let (output, grads) = case.run(gpu, &data).unwrap();
    let want = recurrence(case, &case.host(&data));
    let got = results(&output, &grads);
    for ((name, got), want) in NAMES.into_iter().zip(&got).zip(&want) {
        assert_eq!(got.shape(), want.shape(), "{name}");
        let numbers = download(got).unwrap();
        assert!(numbers.iter().all(|x| x.is_finite()), "{name} of {case:?}");
        let error: f64 =
            numbers.iter().zip(want).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum::<f64>().sqrt();
        let size = want.iter().map(|x| x * x).sum::<f64>().sqrt();
        let bound = tolerance(got.dtype()) * size + 1e-30;
        assert!(error <= bound, "{name}: {:e} of {case:?}", error / size);
    }
}

fn case() -> impl Strategy<Value = Case> {
    let tokens = prop_oneof![0..=17usize, 60..=70usize, select(vec![97, 127, 128, 131, 200])];
    let dim = || prop_oneof![1..=9usize, select(vec![0, 16, 31, 64, 67])];
    let sizes = (1..=2usize, 1..=2usize, 1..=3usize, tokens, dim(), dim());
    let slope = select(vec![0.0, 1e-5, 0.0039, 0.1, 0.7, 3.0, 1e4]);
    let block = select(vec![1, 7, 16, 32, 64, 64, 64, 1024]);
    let dtype = select(vec![DType::F32, DType::F32, DType::F16, DType::BF16]);
    (sizes, prop::collection::vec(slope, 6), block, dtype, any::<bool>(), any::<u64>()).prop_map(
        |((batch, heads_kv, group, tokens, d, e), mut slopes, block, dtype, with_state, seed)| {
            slopes.truncate(heads_kv * group);
            let extents = [batch, heads_kv, group, tokens, d, e];
            Case { extents, slopes, block, dtype, with_state, seed }
        },
    )
}

fn plain(extents: [usize; 6], slopes: &[f64]) -> Case {
    let slopes = slopes.to_vec();
    Case { extents, slopes, block: 64, dtype: DType::F32, with_state: true, seed: 7 }
}

#[test]
fn smoke_blocks_are_the_recurrence() {
    let Some(gpu) = gpu() else { return };
    check(&plain([2, 1, 2, 131, 12, 16], &[0.0, 0.1]), &gpu);
    check(&plain([1, 2, 1, 65, 33, 67], &[0.0, 0.1]), &gpu);
    check(&Case { dtype: DType::F16, ..plain([1, 1, 1, 70, 64, 64], &[0.01]) }, &gpu);
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn any_call_is_the_recurrence(case in case()) {
        let Some(gpu) = gpu() else { return Ok(()) };
        check(&case, &gpu);
    }
}

fn ups(gpu: &Gpu, case: &Case) -> [Tensor; 6] {
    let (data, shapes) = (case.data(), case.shapes());
    [0, 1, 2, 3, 4, 5].map(|i| {
        let dtype = if i == 3 || i == 5 { DType::F32 } else { case.dtype };
        upload(gpu, &data[i], &shapes[i], dtype).unwrap()
    })
}

fn distance(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.shape(), want.shape());
    let pairs = || download(got).unwrap().into_iter().zip(download(want).unwrap());
    let error: f64 = pairs().map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let size: f64 = pairs().map(|(_, b)| f64::from(b).powi(2)).sum();
    (error / size).sqrt()
}

/// Token by token from a state, and in pieces of any length, equals one call.
#[test]
fn tokens_one_by_one_are_one_call() {
    let Some(gpu) = gpu() else { return };
    for (case, bound) in [
        (plain([2, 2, 2, 40, 64, 68], &[0.0, 0.1, 0.5, 0.01]), 1e-6),
        (plain([1, 2, 1, 40, 9, 7], &[0.0, 0.1]), 1e-6),
        (Case { dtype: DType::BF16, ..plain([1, 1, 1, 40, 8, 8], &[0.1]) }, 1e-2),
    ] {
        let [q, k, v, kv, ..] = ups(&gpu, &case);
        let attention = LinearAttention::new(&gpu, &case.slopes).unwrap();
        let want = attention.forward(Inputs::new(&q, &k, &v).with_state(&kv)).unwrap();
        let state = Tensor::uninit(&gpu, kv.shape(), DType::F32).unwrap();
        attn_wgpu::ops::copy(&kv, &state).unwrap();
        let mut at = 0;
        for count in [1, 1, 5, 1, 0, 8, 17, 1, 6] {
            let part = |x: &Tensor| x.narrow(2, at, count).unwrap();
            let (q, k, v) = (part(&q), part(&k), part(&v));
            let shape = part(&want.out).shape().to_vec();
            let out = Tensor::uninit(&gpu, &shape, case.dtype).unwrap();
            attention.decode_into(Inputs::new(&q, &k, &v), &state, &out).unwrap();
            if count > 0 {
                assert!(distance(&out, &part(&want.out)) <= bound, "{at} + {count}");
            }
            at += count;
        }
        assert_eq!(at, 40);
        assert!(distance(&state, &want.kv) <= bound.min(1e-6));
    }
}

/// A call that is cut into runs and parts gives the same bits.
#[test]
fn parts_change_no_bit() {
    let Some(gpu) = gpu() else { return };
    let limits = wgpu_limits(1 << 16);
    let Some(small) = common::open(Gpu::builder().limits(limits)) else { return };
    let Some(weak) = common::open(Gpu::builder().max_work_per_dispatch(1e6)) else { return };
    // Heads that fit a small binding, and one that does not.
    for case in [
        plain([2, 2, 2, 500, 12, 20], &[0.0, 0.1, 0.5, 0.01]),
        plain([1, 1, 1, 300, 64, 64], &[0.01]),
    ] {
        let run = |gpu: &Gpu| {
            let (output, grads) = case.run(gpu, &case.data()).unwrap();
            results(&output, &grads).map(|tensor| bits(&tensor))
        };
        let want = run(&gpu);
        assert_eq!(run(&small), want, "small bindings");
        assert_eq!(run(&weak), want, "little work");
    }
}

fn wgpu_limits(binding: u64) -> attn_wgpu::wgpu::Limits {
    attn_wgpu::wgpu::Limits {
        max_storage_buffer_binding_size: binding,
        ..attn_wgpu::wgpu::Limits::default()
    }
}

/// A head gives the same bits alone and among others, in any layout.
#[test]
fn neighbours_and_layouts_change_no_bit() {
    let Some(gpu) = gpu() else { return };
    let case = plain([2, 3, 1, 70, 16, 24], &[0.0, 0.1, 0.5]);
    let [q, k, v, kv, d_out, d_kv] = ups(&gpu, &case);
    let all = case.run(&gpu, &case.data()).unwrap();
    let all = results(&all.0, &all.1);
    let alone = |x: &Tensor| x.narrow(0, 1, 1).unwrap().narrow(1, 2, 1).unwrap();
    let laid = |x: &Tensor| {
        let other = x.permute(&[0, 2, 1, 3]).unwrap().contiguous().unwrap();
        alone(&other.permute(&[0, 2, 1, 3]).unwrap())
    };
    let attention = LinearAttention::new(&gpu, &case.slopes[2..]).unwrap();
    let (q, k, v, kv) = (laid(&q), laid(&k), laid(&v), alone(&kv));
    let inputs = Inputs::new(&q, &k, &v).with_state(&kv);
    let (output, saved) = attention.forward_saved(inputs).unwrap();
    let (d_out, d_kv) = (laid(&d_out), alone(&d_kv));
    let grads = attention.backward(&saved, Cotangents::new(&d_out).with_state(&d_kv)).unwrap();
    for ((name, got), all) in NAMES.into_iter().zip(results(&output, &grads)).zip(&all) {
        assert_eq!(bits(&got), bits(&alone(all).contiguous().unwrap()), "{name}");
    }
    // The same in callers' tensors.
    let zeros = |shape: &[usize]| Tensor::zeros(&gpu, shape, DType::F32).unwrap();
    let (out, state) = (zeros(output.out.shape()), zeros(output.kv.shape()));
    let saved = attention.forward_saved_into(inputs, &out, &state).unwrap();
    assert_eq!((bits(&out), bits(&state)), (bits(&output.out), bits(&output.kv)));
    let again = attention.backward(&saved, Cotangents::new(&d_out).with_state(&d_kv)).unwrap();
    for (got, want) in results(&output, &again).iter().zip(results(&output, &grads)) {
        assert_eq!(bits(got), bits(&want));
    }
    // Into a strided tensor, and the state in place.
    let wide = Tensor::zeros(&gpu, &[1, 70, 3, 24], DType::F32).unwrap();
    let out = wide.permute(&[0, 2, 1, 3]).unwrap().narrow(1, 1, 1).unwrap();
    let state = kv.contiguous().unwrap();
    attention.forward_into(Inputs::new(&q, &k, &v).with_state(&state), &out, &state).unwrap();
    assert_eq!(bits(&out.contiguous().unwrap()), bits(&output.out));
    assert_eq!(bits(&state), bits(&output.kv));
}

/// What is no number reaches only rows that read it, forward and backward.
#[test]
fn what_is_no_number_stays_in_its_rows() {
    let Some(gpu) = gpu() else { return };
    let case = plain([1, 1, 1, 131, 12, 20], &[0.1]);
    let data = case.data();
    let numbers =
        |(output, grads): (Output, Grads)| results(&output, &grads).map(|x| download(&x).unwrap());
    let want = numbers(case.run(&gpu, &data).unwrap());
    for (token, value) in [(0, f32::NAN), (37, f32::INFINITY), (64, f32::NAN), (130, f32::NAN)] {
        for (input, width) in [(0, 12), (1, 12), (2, 20), (4, 20)] {
            let mut data = data.clone();
            data[input][token * width + 3] = value;
            let got = numbers(case.run(&gpu, &data).unwrap());
            // Which rows may differ: those behind the token in `out`, those before it in dk and dv.
            for (result, width, range) in [
                (
                    0,
                    20,
                    if input == 0 {
                        token..token + 1
                    } else if input == 4 {
                        0..0
                    } else {
                        token..131
                    },
                ),
                (
                    2,
                    12,
                    if input == 4 {
                        token..token + 1
                    } else if input == 0 {
                        0..0
                    } else {
                        token..131
                    },
                ),
                (
                    3,
                    12,
                    if input == 2 {
                        token..token + 1
                    } else if input == 1 {
                        0..0
                    } else {
                        0..token + 1
                    },
                ),
                (
                    4,
                    20,
                    if input == 1 {
                        token..token + 1
                    } else if input == 2 {
                        0..0
                    } else {
                        0..token + 1
                    },
                ),
            ] {
                let rows = got[result].chunks(width).zip(want[result].chunks(width)).enumerate();
                for (row, (got, want)) in rows {
                    let what = format!(
                        "{value} at {token} of {}: row {row} of {}",
                        ["q", "k", "v", "", "d_out"][input],
                        NAMES[result]
                    );
                    if range.contains(&row) {
                        let is_own = input != 0 && input != 4 || result == 0 || result == 2;
                        assert!(!is_own || got.iter().any(|x| !x.is_finite()), "{what} hides it");
                    } else {
                        assert!(
                            got.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits()),
                            "{what}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn wrong_arguments_are_named() {
    let Some(gpu) = gpu() else { return };
    let zeros = |shape: [usize; 4], dtype| Tensor::zeros(&gpu, &shape, dtype).unwrap();
    let x = |shape| zeros(shape, DType::F32);
    for slopes in [&[][..], &[-1.0], &[f64::NAN], &[f64::INFINITY]] {
        assert!(LinearAttention::new(&gpu, slopes).is_err(), "{slopes:?}");
    }
    let attention = LinearAttention::new(&gpu, &[0.1, 0.2]).unwrap();
    for block in [0, 1025] {
        assert!(attention.clone().with_block(block).is_err());
    }
    let (q, half) = (x([1, 2, 3, 4]), zeros([1, 2, 3, 4], DType::F16));
    let named = |result: Result<Output>, name: &str| {
        let message = result.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(message.contains(name), "{message} does not name {name}");
    };
    named(attention.forward(Inputs::new(&x([1, 3, 3, 4]), &q, &q)), "heads");
    named(attention.forward(Inputs::new(&q, &x([1, 2, 4, 4]), &x([1, 2, 4, 4]))), "k");
    named(attention.forward(Inputs::new(&q, &x([1, 2, 3, 5]), &q)), "k");
    named(attention.forward(Inputs::new(&q, &half, &q)), "k");
    named(attention.forward(Inputs::new(&q, &q, &q).with_state(&x([1, 2, 4, 5]))), "kv");
    let kv = x([1, 2, 4, 4]);
    let inputs = Inputs::new(&q, &q, &q);
    assert!(attention.decode_into(inputs.with_state(&kv), &kv, &x([1, 2, 3, 4])).is_err());
    assert!(attention.forward_into(inputs, &x([1, 2, 3, 5]), &kv).is_err());
    assert!(attention.forward_saved_into(inputs, &q, &x([1, 2, 4, 5])).is_err());
    let (_, saved) = attention.forward_saved(inputs).unwrap();
    assert!(attention.backward(&saved, Cotangents::new(&half)).is_err());
    assert!(attention.backward(&saved, Cotangents::new(&q).with_state(&q)).is_err());
}
