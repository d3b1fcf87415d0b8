//! The device against the reference: both forms, their gradients, and streams.

use attn_core::testing::{Values, fill};
use attn_flowformer::{
    Config, Cotangents, Error, Flowformer, Gpu, Inputs, State, Targets, Tensor, reference,
};
use attn_wgpu::testing::{Frame, Place, gpu};
use attn_wgpu::{DType, ops};
use ndarray::{Array, Array2, Array4, ArrayD, Axis, Dimension, s};

use crate::support::{Data, Shape, array, config};

/// Tolerances of the golden files, relative to the largest element.
const OUT: f64 = 1e-5;
const GRAD: f64 = 5e-5;

fn upload<D: Dimension>(gpu: &Gpu, x: &Array<f64, D>) -> Tensor {
    Tensor::from_array(gpu, &x.mapv(|x| x as f32).view().into_dyn()).unwrap()
}

/// The same numbers `[batch, tokens, heads, dim]` in memory, behind some others.
fn upload_strided(gpu: &Gpu, x: &Array4<f64>) -> Tensor {
    let (batch, heads, tokens, dim) = x.dim();
    let mut wide = Array4::from_elem((batch, tokens + 1, heads, dim + 3), f32::NAN);
    let inside = x.mapv(|x| x as f32).permuted_axes([0, 2, 1, 3]);
    wide.slice_mut(s![.., 1.., .., 1..=dim]).assign(&inside);
    let all = Tensor::from_array(gpu, &wide.view().into_dyn()).unwrap();
    let view = all.narrow(1, 1, tokens).unwrap().narrow(3, 1, dim).unwrap();
    view.permute(&[0, 2, 1, 3]).unwrap()
}

fn download(x: &Tensor) -> ArrayD<f64> {
    ops::convert(x, DType::F32).unwrap().to_array::<f32>().unwrap().mapv(f64::from)
}

/// Relative to the largest element. Of a single token all that flows back cancels but for epsilon, and what is
/// left is of the rounding of its terms, which are of about 1: hence a floor.
fn close<D: Dimension>(what: &str, got: &Tensor, want: &Array<f64, D>, bound: f64) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    let largest = want.iter().fold(1e-2, |largest: f64, x| largest.max(x.abs()));
    for (i, (got, want)) in download(got).iter().zip(want).enumerate() {
        assert!((got - want).abs() <= bound * largest, "{what}[{i}]: {got} and not {want}");
    }
}

fn flags(gpu: &Gpu, valid: &Option<Array2<bool>>) -> Option<Tensor> {
    let valid = valid.as_ref()?.mapv(u32::from);
    Some(Tensor::from_array(gpu, &valid.view().into_dyn()).unwrap())
}

/// Everything of one call, in a type.
fn check(gpu: &Gpu, data: &Data, config: &Config, dtype: DType, strided: bool) {
    let half = match dtype {
        DType::F16 => 1e-3,
        DType::BF16 => 8e-3,
        _ => 0.0,
    };
    // The reference gets what the device has.
    let place = |x: &Array4<f64>| {
        let placed = if strided { upload_strided(gpu, x) } else { upload(gpu, x) };
        ops::convert(&placed, dtype).unwrap()
    };
    let (q, k, v) = (place(&data.q), place(&data.k), place(&data.v));
    let back = |x: &Tensor| download(x).into_dimensionality().unwrap();
    let data = Data { q: back(&q), k: back(&k), v: back(&v), ..data.clone() };
    let want = data.run(config);
    let (valid_q, valid_k) = (flags(gpu, &data.valid_q), flags(gpu, &data.valid_k));
    let mut inputs = Inputs::new(&q, &k, &v);
    (inputs.valid_q, inputs.valid_k) = (valid_q.as_ref(), valid_k.as_ref());
    let flowformer = Flowformer::new(gpu, config.clone()).unwrap();
    let (output, saved) = flowformer.forward_saved(inputs).unwrap();
    let what = format!("{:?} {:?} {dtype:?} {config:?}", data.q.dim(), data.k.dim());
    assert_eq!(output.out.dtype(), dtype);
    close(&format!("out {what}"), &output.out, &want.out, OUT + half);
    // Without a query the reference has sums of keys for none, and the device has none.
    if let Some(flows) = &output.flows {
        close(&format!("memory {what}"), &output.memory, &want.memory, OUT);
        close(&format!("sink {what}"), &flows.conserved_sink, &want.flows.conserved_sink, OUT);
        close(
            &format!("source {what}"),
            &flows.conserved_source,
            &want.flows.conserved_source,
            OUT,
        );
        close(&format!("alloc {what}"), &flows.allocation, &want.flows.allocation, OUT);
        close(&format!("comp {what}"), &flows.competition, &want.flows.competition, OUT);
    }
    let d_out = place(&array(7, 9, want.out.dim()));
    let host: Array4<f64> = back(&d_out);
    let cotangents = reference::Cotangents { out: host.view() };
    let want = reference::backward(data.inputs(), config, cotangents).unwrap();
    let grads = flowformer.backward(&saved, Cotangents { out: &d_out }).unwrap();
    close(&format!("dq {what}"), &grads.dq, &want.dq, GRAD + half);
    close(&format!("dk {what}"), &grads.dk, &want.dk, GRAD + half);
    close(&format!("dv {what}"), &grads.dv, &want.dv, GRAD + half);

    // The same in callers' tensors, and with the output at another place.
    let like = [&output.out, &grads.dq, &grads.dk, &grads.dv];
    let dims = like.map(|like| like.shape()[3] % 4 == 0);
    let width = if dims.iter().all(|whole| *whole) { 4 } else { 1 };
    for place in Place::all(&[1, 1, 1, width], dtype) {
        let frames = like.map(|like| Frame::new(gpu, like.shape(), dtype, place));
        let [out, dq, dk, dv] = frames.each_ref().map(|frame| &frame.target);
        let (_, saved) = flowformer.forward_saved_into(inputs, out).unwrap();
        let saved = saved.with_out(&output.out).unwrap();
        let targets = Targets { dq: Some(dq), dk: Some(dk), dv: Some(dv) };
        flowformer.backward_into(&saved, Cotangents { out: &d_out }, targets).unwrap();
        for (frame, want) in frames.iter().zip(like) {
            frame.check(&format!("{place:?} {what}"), want);
        }
    }
}

#[test]
fn targets_that_do_not_fit() {
    let Some(gpu) = gpu() else { return };
    let data = Data::new(shape([1, 2, 1, 5, 7, 4, 8]), 1);
    let (q, k, v) = (upload(&gpu, &data.q), upload(&gpu, &data.k), upload(&gpu, &data.v));
    let flowformer = Flowformer::new(&gpu, config(false, None)).unwrap();
    let (output, saved) = flowformer.forward_saved(Inputs::new(&q, &k, &v)).unwrap();
    let refused = flowformer.forward_into(Inputs::new(&q, &k, &v), &q);
    assert!(matches!(refused, Err(Error::Core(attn_core::Error::Shape { arg: "out", .. }))));
    let targets = Targets { dk: Some(&q), ..Targets::default() };
    let refused = flowformer.backward_into(&saved, Cotangents { out: &output.out }, targets);
    assert!(matches!(refused, Err(Error::Core(attn_core::Error::Shape { arg: "dk", .. }))));
    let integers = Tensor::zeros(&gpu, q.shape(), DType::U32).unwrap();
    let targets = Targets { dq: Some(&integers), ..Targets::default() };
    let refused = flowformer.backward_into(&saved, Cotangents { out: &output.out }, targets);
    assert!(matches!(refused, Err(Error::Core(attn_core::Error::Dtype { arg: "dq", .. }))));
}

fn shape(extents: [usize; 7]) -> Shape {
    let [batch, heads, heads_kv, queries, keys, dim_qk, dim_v] = extents;
    Shape { batch, heads, heads_kv, queries, keys, dim_qk, dim_v }
}

#[test]
fn smoke_both_forms_are_those_of_the_reference() {
    let Some(gpu) = gpu() else { return };
    let full = Data::new(shape([2, 3, 3, 11, 23, 6, 10]), 1);
    check(&gpu, &full, &config(false, None), DType::F32, false);
    let shared = Data::new(shape([2, 4, 2, 19, 13, 8, 5]), 2).padded(false, 3);
    check(&gpu, &shared, &config(false, Some(1.0)), DType::F32, true);
    let causal = Data::new(shape([2, 2, 1, 37, 37, 8, 8]), 4);
    check(&gpu, &causal, &config(true, Some(1.0)), DType::F32, true);
    let padded = Data::new(shape([2, 2, 2, 29, 29, 5, 6]), 5).padded(true, 6);
    check(&gpu, &padded, &config(true, None), DType::F32, false);
}

#[test]
fn every_number_of_tokens_up_to_17_and_primes() {
    let Some(gpu) = gpu() else { return };
    for tokens in (0..=17).chain([31, 32, 33, 67, 127]) {
        let clamp = [None, Some(1.0), Some(10.0)][tokens % 3];
        let data = |keys| Data::new(shape([1, 2, 1, tokens, keys, 4, 8]), tokens as u64);
        check(&gpu, &data(tokens), &config(true, clamp), DType::F32, false);
        check(&gpu, &data(tokens * 2 / 3 + 1), &config(false, clamp), DType::F32, false);
    }
}

/// More tokens than one part of a product.
#[test]
fn many_tokens_in_parts() {
    let Some(gpu) = gpu() else { return };
    let data = Data::new(shape([1, 2, 2, 700, 1031, 16, 12]), 8);
    check(&gpu, &data, &config(false, None), DType::F32, false);
    check(&gpu, &data.padded(false, 9), &config(false, None), DType::F32, false);
    let data = Data::new(shape([1, 1, 1, 521, 521, 16, 12]), 8);
    check(&gpu, &data, &config(true, None), DType::F32, false);
}

#[test]
fn half_types_are_storage() {
    let Some(gpu) = gpu() else { return };
    for dtype in [DType::F16, DType::BF16] {
        let data = Data::new(shape([2, 2, 1, 33, 33, 8, 8]), 3);
        check(&gpu, &data, &config(false, None), dtype, false);
        check(&gpu, &data, &config(true, None), dtype, false);
        let odd = Data::new(shape([1, 2, 2, 18, 18, 7, 5]), 4).padded(true, 2);
        check(&gpu, &odd, &config(true, Some(5.0)), dtype, false);
    }
}

/// What padding holds changes no bit, and in the causal form neither does a later token.
#[test]
fn what_does_not_count_is_not_read() {
    let Some(gpu) = gpu() else { return };
    for causal in [false, true] {
        let data = Data::new(shape([2, 2, 1, 45, 45, 8, 6]), 3).padded(true, 4);
        let valid = data.valid_q.clone().unwrap();
        let mut planted = data.clone();
        for ((b, t), counts) in valid.indexed_iter() {
            for x in [&mut planted.q, &mut planted.k, &mut planted.v] {
                if !counts {
                    x.slice_mut(s![b, .., t, ..]).fill(f64::NAN);
                }
            }
        }
        let flowformer = Flowformer::new(&gpu, config(causal, None)).unwrap();
        let on_valid = flags(&gpu, &data.valid_q).unwrap();
        let run = |data: &Data| {
            let (q, k, v) = (upload(&gpu, &data.q), upload(&gpu, &data.k), upload(&gpu, &data.v));
            let inputs = Inputs::new(&q, &k, &v).with_valid(&on_valid);
            let (output, saved) = flowformer.forward_saved(inputs).unwrap();
            let grads = flowformer.backward(&saved, Cotangents { out: &output.out }).unwrap();
            [output.out, grads.dq, grads.dk, grads.dv].map(|x| download(&x))
        };
        let want = run(&data);
        assert_eq!(run(&planted), want, "causal {causal}");
        if causal {
            let mut later = data.clone();
            for x in [&mut later.q, &mut later.k, &mut later.v] {
                x.slice_mut(s![.., .., 30.., ..]).fill(f64::NAN);
            }
            let rows = |x: &ArrayD<f64>| x.slice_axis(Axis(2), (..30).into()).to_owned();
            assert_eq!(rows(&run(&later)[0]), rows(&want[0]));
        }
    }
}

/// Flows of 8,192 tokens are conserved, what enters sinks sums to the number of sources and the other way round, and
/// the output is that of f64.
#[test]
fn many_tokens_are_exact() {
    let Some(gpu) = gpu() else { return };
    let tokens = 8192;
    let data = Data::new(shape([1, 1, 1, tokens, tokens, 64, 64]), 5);
    let flowformer = Flowformer::new(&gpu, Config::new()).unwrap();
    let (q, k, v) = (upload(&gpu, &data.q), upload(&gpu, &data.k), upload(&gpu, &data.v));
    let output = flowformer.forward(Inputs::new(&q, &k, &v)).unwrap();
    let flows = output.flows.unwrap();
    for (name, flow) in [
        ("sinks", &flows.conserved_sink),
        ("sources", &flows.conserved_source),
        ("competition", &flows.competition),
    ] {
        let error = (download(flow).sum() / tokens as f64 - 1.0).abs();
        println!("{name}: {error:.1e}");
        assert!(error < 1e-4, "{name}: {error:e}");
    }
    let error = l2(&download(&output.out), &data.run(&Config::new()).out.into_dyn());
    println!("output: {error:.1e}");
    assert!(error <= 1e-5, "{error:e}");
}

/// Relative to the whole.
fn l2(got: &ArrayD<f64>, want: &ArrayD<f64>) -> f64 {
    ((got - want).mapv(|x| x * x).sum() / want.mapv(|x| x * x).sum()).sqrt()
}

/// 8,192 tokens one by one are those tokens at once.
#[test]
fn token_by_token() {
    let Some(gpu) = gpu() else { return };
    let (tokens, dim) = (8192, 64);
    let tensor = |stream| {
        let data = fill(10, stream, Values::Normal, tokens * dim);
        Tensor::from_slice(&gpu, &data, &[1, 1, tokens, dim]).unwrap()
    };
    let (q, k, v) = (tensor(0), tensor(1), tensor(2));
    let flowformer = Flowformer::new(&gpu, Config::causal()).unwrap();
    let whole = flowformer.forward(Inputs::new(&q, &k, &v)).unwrap().out;
    let all = Tensor::zeros(&gpu, whole.shape(), DType::F32).unwrap();
    let mut state = State::empty(&gpu, [1, 1, dim, dim]).unwrap();
    for t in 0..tokens {
        let part = |x: &Tensor| x.narrow(2, t, 1).unwrap();
        let (q, k, v) = (part(&q), part(&k), part(&v));
        let output = flowformer.decode(&mut state, Inputs::new(&q, &k, &v)).unwrap();
        ops::copy(&output.out, &part(&all)).unwrap();
    }
    let error = l2(&download(&all), &download(&whole));
    println!("token by token: {error:.1e}");
    assert!(error <= 1e-5, "{error:e}");
}

/// A source that all queries look for wins the competition: by more than a fifth without a clamp, and by nothing with
/// one that the others reach, too.
#[test]
fn competition_is_selective() {
    let Some(gpu) = gpu() else { return };
    let (tokens, dim, marked) = (64, 16, 20);
    let mut data = Data::new(shape([1, 1, 1, tokens, tokens, dim, dim]), 11);
    data.q.slice_mut(s![.., .., .., ..dim / 2]).fill(1.0);
    data.k.slice_mut(s![.., .., marked, ..dim / 2]).fill(4.0);
    let (q, k, v) = (upload(&gpu, &data.q), upload(&gpu, &data.k), upload(&gpu, &data.v));
    let of = |clamp| {
        let flowformer = Flowformer::new(&gpu, config(false, clamp)).unwrap();
        let output = flowformer.forward(Inputs::new(&q, &k, &v)).unwrap();
        let competition = download(&output.flows.unwrap().competition);
        let mut others: Vec<f64> = competition.iter().copied().collect();
        let own = others.remove(marked);
        (own, others.into_iter().fold(f64::NEG_INFINITY, f64::max))
    };
    let (own, others) = of(None);
    println!("{own:.2} and at most {others:.2}");
    assert!(own > 1.2 && own > others, "{own} and {others}");
    let (own, others) = of(Some(1.0));
    println!("clamped: {own:.2} and at most {others:.2}");
    assert_eq!(own, others);
}

#[test]
fn smoke_streams_are_the_whole_text() {
    let Some(gpu) = gpu() else { return };
    for clamp in [None, Some(1.0)] {
        let data = Data::new(shape([2, 4, 2, 67, 67, 6, 5]), 6).padded(true, 7);
        let config = config(true, clamp);
        let want = data.run(&config);
        let flowformer = Flowformer::new(&gpu, config).unwrap();
        let mut state = State::empty(&gpu, [2, 4, 6, 5]).unwrap();
        let bytes = state.bytes();
        let mut start = 0;
        for cut in [1, 2, 2, 9, 50, 67] {
            let part = data.part(start, cut);
            let (q, k, v) = (upload(&gpu, &part.q), upload(&gpu, &part.k), upload(&gpu, &part.v));
            let valid = flags(&gpu, &part.valid_q).unwrap();
            let inputs = Inputs::new(&q, &k, &v).with_valid(&valid);
            let output = flowformer.decode(&mut state, inputs).unwrap();
            let rows = want.out.slice(s![.., .., start..cut, ..]).to_owned();
            close("part", &output.out, &rows, OUT);
            start = cut;
            let name = format!("attn-flowformer-{}-{cut}.safetensors", std::process::id());
            let path = std::env::temp_dir().join(name);
            state.save(&path).unwrap();
            let loaded = State::load(&gpu, &path).unwrap();
            std::fs::remove_file(&path).unwrap();
            for pair in [
                (state.k_hat(), loaded.k_hat()),
                (state.memory().unwrap(), loaded.memory().unwrap()),
            ] {
                assert_eq!(download(&pair.0), download(&pair.1));
            }
            state = loaded;
        }
        close("memory", &state.memory().unwrap(), &want.memory, OUT);
        assert_eq!(state.bytes(), bytes);
    }
}

/// 70,000 tokens in blocks are those tokens at once; the state does not grow.
#[test]
fn a_long_stream() {
    let Some(gpu) = gpu() else { return };
    let (tokens, block, dim) = (70_000, 5_000, 16);
    let tensor = |stream| {
        let data = fill(9, stream, Values::Normal, tokens * dim);
        Tensor::from_slice(&gpu, &data, &[1, 1, tokens, dim]).unwrap()
    };
    let (q, k, v) = (tensor(0), tensor(1), tensor(2));
    let flowformer = Flowformer::new(&gpu, Config::causal()).unwrap();
    let whole = flowformer.forward(Inputs::new(&q, &k, &v)).unwrap();
    let mut state = State::empty(&gpu, [1, 1, dim, dim]).unwrap();
    let bytes = state.bytes();
    let mut worst = 0f64;
    for start in (0..tokens).step_by(block) {
        let part = |x: &Tensor| x.narrow(2, start, block).unwrap();
        let (q, k, v) = (part(&q), part(&k), part(&v));
        let output = flowformer.decode(&mut state, Inputs::new(&q, &k, &v)).unwrap();
        let (got, want) = (download(&output.out), download(&part(&whole.out)));
        let largest = want.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        let error = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        worst = worst.max(error / largest);
    }
    println!("{tokens} tokens in blocks: {worst:.1e}");
    assert!(worst <= OUT, "{worst:e}");
    assert_eq!(state.bytes(), bytes);
    assert_eq!(state.tokens().to_vec::<f32>().unwrap(), [tokens as f32]);
}

#[test]
fn wrong_arguments_are_errors() {
    let Some(gpu) = gpu() else { return };
    let f = |shape: &[usize]| Tensor::zeros(&gpu, shape, DType::F32).unwrap();
    let (q, k, v) = (f(&[2, 4, 5, 8]), f(&[2, 2, 6, 8]), f(&[2, 2, 6, 4]));
    let says = |result: Result<(), Error>, word: &str| {
        let text = result.unwrap_err().to_string();
        assert!(text.contains(word), "{text}");
    };
    let full = Flowformer::new(&gpu, Config::new()).unwrap();
    let causal = Flowformer::new(&gpu, Config::causal()).unwrap();
    let inputs = Inputs::new(&q, &k, &v);
    says(causal.forward(inputs).map(drop), "causal");
    says(full.prefill(inputs).map(drop), "causal");
    says(full.forward(inputs.with_valid(&f(&[2, 5]))).map(drop), "valid_q");
    says(full.forward(Inputs::new(&q, &k, &f(&[2, 2, 5, 4]))).map(drop), "`v`");
    let state = State::empty(&gpu, [2, 4, 8, 4]).unwrap();
    says(full.forward(inputs.with_state(&state)).map(drop), "causal");
    let other = State::empty(&gpu, [2, 4, 8, 5]).unwrap();
    let square = Inputs::new(&q, &q, &q);
    says(causal.forward(square.with_state(&other)).map(drop), "state");
    let (_, saved) = full.forward_saved(inputs).unwrap();
    says(full.backward(&saved, Cotangents { out: &v }).map(drop), "cotangents.out");
    assert!(Flowformer::new(&gpu, Config::new().with_clamp(0.0)).is_err());
}
