//! The device against the reference: everything that the attention computes.

use attn_aaren::{
    Aaren, Config, Cotangents, Error, Gpu, Inputs, State, Targets, Tensor, reference,
};
use attn_wgpu::testing::{Frame, Place, gpu};
use attn_wgpu::{DType, ops};
use half::{bf16, f16};
use ndarray::{Array, Array4, ArrayD, Dimension};

use crate::support::{Data, Shape, array};

/// Tolerances of the golden files, relative to the largest element.
const OUT: f64 = 1e-5;
const GRAD: f64 = 5e-5;

pub fn upload<D: Dimension>(gpu: &Gpu, x: &Array<f64, D>) -> Tensor {
    Tensor::from_array(gpu, &x.mapv(|x| x as f32).view().into_dyn()).unwrap()
}

/// The same numbers `[batch, tokens, heads, dim]` in memory, behind some others.
fn upload_strided(gpu: &Gpu, x: &Array4<f64>) -> Tensor {
    let (batch, heads, tokens, dim) = x.dim();
    let mut wide = Array4::from_elem((batch, tokens + 1, heads, dim + 3), f32::NAN);
    let inside = x.mapv(|x| x as f32).permuted_axes([0, 2, 1, 3]);
    wide.slice_mut(ndarray::s![.., 1.., .., 1..=dim]).assign(&inside);
    let all = Tensor::from_array(gpu, &wide.view().into_dyn()).unwrap();
    let view = all.narrow(1, 1, tokens).unwrap().narrow(3, 1, dim).unwrap();
    view.permute(&[0, 2, 1, 3]).unwrap()
}

pub fn download(x: &Tensor) -> ArrayD<f64> {
    ops::convert(x, DType::F32).unwrap().to_array::<f32>().unwrap().mapv(f64::from)
}

/// Relative to the largest element, or to 1.
fn close<D: Dimension>(what: &str, got: &Tensor, want: &Array<f64, D>, bound: f64) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    let finite = want.iter().filter(|x| x.is_finite());
    let largest = finite.fold(1.0, |largest: f64, x| largest.max(x.abs()));
    for (i, (got, want)) in download(got).iter().zip(want).enumerate() {
        let right = got == want || (got - want).abs() <= bound * largest;
        assert!(right, "{what}[{i}]: {got} and not {want}");
    }
}

/// Distance relative to the length, both Euclidean.
pub fn relative_l2<'a>(
    got: impl IntoIterator<Item = &'a f64>,
    want: impl IntoIterator<Item = &'a f64>,
) -> f64 {
    let pairs = got.into_iter().zip(want);
    let (error, length) = pairs.fold((0.0, 0.0), |(error, length), (got, want)| {
        (error + (got - want).powi(2), length + want * want)
    });
    (error / length).sqrt()
}

/// What a call is made of.
struct Case {
    shape: Shape,
    shared: bool,
    masked: bool,
    /// So many tokens come first, as a state.
    before: usize,
    scale: f64,
    dtype: DType,
    strided: bool,
}

impl Case {
    fn new(extents: [usize; 6]) -> Case {
        let [batch, heads, heads_kv, tokens, dim_qk, dim_v] = extents;
        let shape = Shape { batch, heads, heads_kv, tokens, dim_qk, dim_v };
        let dtype = DType::F32;
        Case { shape, shared: true, masked: false, before: 0, scale: 0.7, dtype, strided: false }
    }

    /// Forward and backward; the bounds grow with the roundings of half types, of results alone.
    fn check(&self, gpu: &Gpu, seed: u64) {
        let mut data = Data::new(self.shape, self.shared, self.masked, seed);
        let round = |x: &f64| match self.dtype {
            DType::F16 => f16::from_f64(*x).to_f64(),
            DType::BF16 => bf16::from_f64(*x).to_f64(),
            _ => f64::from(*x as f32),
        };
        data.q = data.q.map(round);
        (data.k, data.v) = (data.k.map(round), data.v.map(round));
        let place = |x: &Array4<f64>| {
            let placed = if self.strided { upload_strided(gpu, x) } else { upload(gpu, x) };
            ops::convert(&placed, self.dtype).unwrap()
        };
        let config = Config::new().with_scale(self.scale);
        let earlier =
            Data::new(Shape { tokens: self.before, ..self.shape }, self.shared, false, seed ^ 9);
        let before = (self.before > 0).then(|| earlier.run(None, &config).state);
        let want = data.run(before.as_ref(), &config);

        let q = if self.shared {
            upload(gpu, &data.q.index_axis(ndarray::Axis(0), 0).to_owned())
        } else {
            upload(gpu, &data.q)
        };
        let q = ops::convert(&q, self.dtype).unwrap();
        let (k, v) = (place(&data.k), place(&data.v));
        let valid = data.valid.as_ref().map(|valid| {
            Tensor::from_array(gpu, &valid.mapv(u32::from).view().into_dyn()).unwrap()
        });
        let state = before.as_ref().map(|state| State::upload(gpu, state).unwrap());
        let mut inputs = Inputs::new(&q, &k, &v);
        (inputs.valid, inputs.state) = (valid.as_ref(), state.as_ref());
        let aaren = Aaren::new(gpu, config.clone()).unwrap();
        let (output, saved) = aaren.forward_saved(inputs).unwrap();
        let half = match self.dtype {
            DType::F16 => 5e-4,
            DType::BF16 => 4e-3,
            _ => 0.0,
        };
        let what = format!("{:?} {:?} before {}", self.shape, self.dtype, self.before);
        assert_eq!(output.out.dtype(), self.dtype);
        close(&format!("out {what}"), &output.out, &want.out, OUT + half);
        close(&format!("lse {what}"), &output.lse, &want.lse, OUT);
        close(&format!("state {what}"), &output.state.out().unwrap(), &want.state.out(), OUT);
        close(&format!("state lse {what}"), &output.state.lse().unwrap(), &want.state.lse(), OUT);
        let plain = aaren.forward(inputs).unwrap();
        assert_eq!(download(&plain.out), download(&output.out), "{what}");

        let Shape { batch, heads, tokens, dim_v, .. } = self.shape;
        let d_out = array(seed, 11, (batch, heads, tokens, dim_v)).map(round);
        let d_lse = array(seed, 12, (batch, heads, tokens)).mapv(|x| x as f32).mapv(f64::from);
        let last_out = array(seed, 13, (batch, heads, dim_v)).mapv(|x| x as f32).mapv(f64::from);
        let last_lse = array(seed, 14, (batch, heads)).mapv(|x| x as f32).mapv(f64::from);
        let by_lse = seed.is_multiple_of(2);
        let cotangents = reference::Cotangents {
            out: d_out.view(),
            lse: by_lse.then(|| d_lse.view()),
            state_out: by_lse.then(|| last_out.view()),
            state_lse: by_lse.then(|| last_lse.view()),
        };
        let want =
            reference::backward(data.inputs(), before.as_ref(), &config, cotangents).unwrap();
        let on = [upload(gpu, &d_lse), upload(gpu, &last_out), upload(gpu, &last_lse)];
        let on_out = place(&d_out);
        let cotangents = Cotangents {
            out: &on_out,
            lse: by_lse.then_some(&on[0]),
            state_out: by_lse.then_some(&on[1]),
            state_lse: by_lse.then_some(&on[2]),
        };
        let grads = aaren.backward(&saved, cotangents).unwrap();
        let dq = if self.shared {
            want.dq.index_axis(ndarray::Axis(0), 0).to_owned().into_dyn()
        } else {
            want.dq.clone().into_dyn()
        };
        close(&format!("dq {what}"), &grads.dq, &dq, GRAD + half);
        close(&format!("dk {what}"), &grads.dk, &want.dk, GRAD + half);
        close(&format!("dv {what}"), &grads.dv, &want.dv, GRAD + half);
        assert_eq!(grads.d_state.is_some(), before.is_some());
        if let Some((d_out, d_lse)) = &grads.d_state {
            close(&format!("d_out0 {what}"), d_out, &want.d_state_out, GRAD);
            close(&format!("d_lse0 {what}"), d_lse, &want.d_state_lse, GRAD);
        }

        // The same into a caller's tensor, and with the outputs at another place.
        let out = Tensor::zeros(gpu, output.out.shape(), self.dtype).unwrap();
        let (_, saved) = aaren.forward_saved_into(inputs, &out).unwrap();
        assert_eq!(download(&out), download(&output.out), "{what}");
        let saved = saved.with_out(&output.out).unwrap();
        let like = [&grads.dq, &grads.dk, &grads.dv];
        let places = Place::all(&[1, 1, 1, dim_v.min(self.shape.dim_qk)], self.dtype);
        let place = places[seed as usize % places.len()];
        let frame = |like: &&Tensor| {
            // Queries have fewer dimensions.
            let place = if like.shape().len() < 4 { Place::Aligned } else { place };
            Frame::new(gpu, like.shape(), self.dtype, place)
        };
        let frames = like.each_ref().map(frame);
        let [dq, dk, dv] = frames.each_ref().map(|frame| Some(&frame.target));
        let targets = Targets { dq, dk, dv };
        let d_state = aaren.backward_into(&saved, cotangents, targets).unwrap();
        for (frame, want) in frames.iter().zip(like) {
            frame.check(&format!("{place:?} {what}"), want);
        }
        let numbers = |(out, lse): &(Tensor, Tensor)| [download(out), download(lse)];
        assert_eq!(d_state.as_ref().map(numbers), grads.d_state.as_ref().map(numbers), "{what}");
    }
}

#[test]
fn smoke_the_device_computes_what_the_reference_computes() {
    let Some(gpu) = gpu() else { return };
    Case::new([2, 3, 3, 23, 6, 5]).check(&gpu, 1);
    Case { masked: true, before: 4, ..Case::new([2, 4, 2, 37, 8, 8]) }.check(&gpu, 2);
    Case { shared: false, before: 3, strided: true, ..Case::new([2, 4, 1, 130, 5, 12]) }
        .check(&gpu, 4);
}

#[test]
fn every_number_of_tokens_up_to_17_and_primes() {
    let Some(gpu) = gpu() else { return };
    for tokens in (0..=17).chain([31, 32, 33, 61, 127, 257, 1031]) {
        let masked = tokens % 3 == 1;
        let before = if tokens % 2 == 0 { 5 } else { 0 };
        let case =
            Case { masked, before, shared: tokens % 5 > 0, ..Case::new([1, 2, 1, tokens, 4, 8]) };
        case.check(&gpu, tokens as u64);
    }
}

#[test]
fn half_types_are_storage() {
    let Some(gpu) = gpu() else { return };
    for dtype in [DType::F16, DType::BF16] {
        for (seed, tokens) in [(2, 9), (3, 140)] {
            Case { dtype, masked: seed == 2, ..Case::new([2, 2, 1, tokens, 8, 8]) }
                .check(&gpu, seed);
            Case { dtype, before: 3, ..Case::new([1, 3, 3, tokens, 7, 5]) }.check(&gpu, seed);
        }
    }
}

/// What masked tokens hold changes no bit; neither does a later token, in anything before it.
#[test]
fn what_does_not_count_is_not_read() {
    let Some(gpu) = gpu() else { return };
    let shape = Shape { batch: 2, heads: 4, heads_kv: 2, tokens: 75, dim_qk: 8, dim_v: 6 };
    let data = Data::new(shape, true, true, 3);
    let valid = data.valid.clone().unwrap();
    let mut planted = data.clone();
    for ((b, t), counts) in valid.indexed_iter() {
        if !counts {
            planted.k.slice_mut(ndarray::s![b, .., t, ..]).fill(f64::NAN);
            planted.v.slice_mut(ndarray::s![b, .., t, ..]).fill(f64::INFINITY);
        }
    }
    let aaren = Aaren::new(&gpu, Config::new()).unwrap();
    let on_valid = Tensor::from_array(&gpu, &valid.mapv(u32::from).view().into_dyn()).unwrap();
    let run = |data: &Data| {
        let q = upload(&gpu, &data.q.index_axis(ndarray::Axis(0), 0).to_owned());
        let (k, v) = (upload(&gpu, &data.k), upload(&gpu, &data.v));
        let inputs = Inputs::new(&q, &k, &v).with_valid(&on_valid);
        let (output, saved) = aaren.forward_saved(inputs).unwrap();
        let grads = aaren.backward(&saved, Cotangents::new(&output.out)).unwrap();
        [output.out, output.lse, grads.dq, grads.dk, grads.dv].map(|x| x.to_vec::<f32>().unwrap())
    };
    let want = run(&data);
    assert_eq!(run(&planted), want);
    assert!(want.iter().flatten().all(|x| !x.is_nan()));
}

#[test]
fn wrong_arguments_are_errors() {
    let Some(gpu) = gpu() else { return };
    let f = |shape: &[usize]| Tensor::zeros(&gpu, shape, DType::F32).unwrap();
    let aaren = Aaren::new(&gpu, Config::new()).unwrap();
    let (q, k, v) = (f(&[4, 8]), f(&[2, 2, 5, 8]), f(&[2, 2, 5, 4]));
    let says = |result: Result<(), Error>, word: &str| {
        let text = result.unwrap_err().to_string();
        assert!(text.contains(word), "{text}");
    };
    let run = |inputs: Inputs<'_>| aaren.forward(inputs).map(drop);
    says(run(Inputs::new(&f(&[3, 8]), &k, &v)), "divide the 3");
    says(run(Inputs::new(&f(&[3, 4, 8]), &k, &v)), "`q`");
    says(run(Inputs::new(&q, &k, &f(&[2, 2, 6, 4]))), "`v`");
    says(run(Inputs::new(&q, &k, &Tensor::zeros(&gpu, &[2, 2, 5, 4], DType::U32).unwrap())), "u32");
    says(run(Inputs::new(&q, &k, &v).with_valid(&f(&[2, 5]))), "valid");
    let other = State::empty(&gpu, 2, 4, 5).unwrap();
    says(run(Inputs::new(&q, &k, &v).with_state(&other)), "state");
    let mut state = State::empty(&gpu, 2, 4, 4).unwrap();
    let own = state.clone();
    let both = Inputs::new(&q, &k, &v).with_state(&own);
    says(aaren.decode(&mut state, both).map(drop), "inputs.state");
    let (_, saved) = aaren.forward_saved(Inputs::new(&q, &k, &v)).unwrap();
    says(aaren.backward(&saved, Cotangents::new(&v)).map(drop), "cotangents.out");
    assert!(Aaren::new(&gpu, Config::new().with_scale(f64::NAN)).is_err());
    let shape = aaren.shape(&Inputs::new(&q, &k, &v)).unwrap();
    assert_eq!((shape.out(), shape.lse()), ([2, 4, 5, 4], [2, 4, 5]));
}

/// Gradients of 4,096 tokens, where scores have a standard deviation of 4 and of 20.
#[test]
fn gradients_of_many_tokens() {
    let Some(gpu) = gpu() else { return };
    for (spread, bound) in [(4.0, 2e-5), (20.0, 2e-4)] {
        let shape = Shape { batch: 1, heads: 2, heads_kv: 2, tokens: 4096, dim_qk: 32, dim_v: 32 };
        let mut data = Data::new(shape, true, false, 7);
        for x in [data.q.as_slice_mut(), data.k.as_slice_mut(), data.v.as_slice_mut()] {
            x.unwrap().iter_mut().for_each(|x| *x = f64::from(*x as f32));
        }
        let config = Config::new().with_scale(spread / 32f64.sqrt());
        let d_out = array(8, 1, (1, 2, 4096, 32)).mapv(|x: f64| f64::from(x as f32));
        let cotangents = reference::Cotangents::new(d_out.view());
        let want = reference::backward(data.inputs(), None, &config, cotangents).unwrap();
        let aaren = Aaren::new(&gpu, config).unwrap();
        let q = upload(&gpu, &data.q.index_axis(ndarray::Axis(0), 0).to_owned());
        let (k, v) = (upload(&gpu, &data.k), upload(&gpu, &data.v));
        let (_, saved) = aaren.forward_saved(Inputs::new(&q, &k, &v)).unwrap();
        let grads = aaren.backward(&saved, Cotangents::new(&upload(&gpu, &d_out))).unwrap();
        let pairs = [
            ("dq", &grads.dq, want.dq.index_axis(ndarray::Axis(0), 0).to_owned().into_dyn()),
            ("dk", &grads.dk, want.dk.into_dyn()),
            ("dv", &grads.dv, want.dv.into_dyn()),
        ];
        for (name, got, want) in pairs {
            let got = download(got);
            assert!(got.iter().all(|x| x.is_finite()));
            let error = relative_l2(&got, &want);
            println!("{name} at {spread}: {error:.1e}");
            assert!(error <= bound, "{name} at {spread}: {error:e}");
        }
    }
}
