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
