//! Streams on a device are the recurrence, at any position.

use attn_core::testing::compare;
use attn_titans::reference::{self, forward_chunked};
use attn_titans::{Activation, Config, Decoder, Gpu, Inputs, State, Tensor, Titans};
use attn_wgpu::testing::{gpu, open};
use attn_wgpu::{DType, ops};
use ndarray::{Array, Array4, Dimension, s};

use super::support::*;

/// As for whole calls.
const RELATIVE_L2: f64 = 1e-5;

struct Uploaded([Tensor; 6]);

impl Uploaded {
    fn new(gpu: &Gpu, data: &Data) -> Self {
        fn upload<D: Dimension>(gpu: &Gpu, x: &Array<f64, D>) -> Tensor {
            Tensor::from_array(gpu, &x.mapv(|x| x as f32).view().into_dyn()).unwrap()
        }
        let [q, k, v] = [&data.q, &data.k, &data.v].map(|x| upload(gpu, x));
        let [theta, eta, alpha] = [&data.theta, &data.eta, &data.alpha].map(|x| upload(gpu, x));
        Uploaded([q, k, v, theta, eta, alpha])
    }

    /// Tokens as views, with the strides of the whole.
    fn part(&self, from: usize, len: usize) -> Self {
        Uploaded(self.0.each_ref().map(|x| x.narrow(2, from, len).unwrap()))
    }

    fn inputs(&self) -> Inputs<'_> {
        let [q, k, v, theta, eta, alpha] = &self.0;
        Inputs { q, k, v, theta, eta, alpha }
    }
}

fn relative(what: &str, got: &Array4<f64>, want: &Array4<f64>, bound: f64) {
    let got: Vec<f32> = got.iter().map(|&x| x as f32).collect();
    let error = compare(&got, want.as_slice().unwrap()).rel_l2;
    println!("{what}: {error:.1e}");
    assert!(error <= bound, "{what}: {error:e}");
}

fn close_on_device(decoder: &Decoder, want: &reference::State, config: &Config, bound: f64) {
    let state = decoder.state().unwrap().download(config).unwrap();
    assert_eq!((state.position(), decoder.position()), (want.position(), want.position()));
    for (what, got, want) in [
        ("w", state.w(), want.w()),
        ("s", state.s(), want.s()),
        ("chunk_start", state.chunk_start(), want.chunk_start()),
    ] {
        got.iter().zip(want).for_each(|(got, want)| relative(what, got, want, bound));
    }
}

fn array_of(x: &Tensor) -> Array4<f64> {
    x.to_array::<f32>().unwrap().mapv(f64::from).into_dimensionality().unwrap()
}

/// Both depths, from within a chunk on, in pieces of any length, with dims that fill no vec4.
#[test]
fn streams_are_the_recurrence() {
    let Some(gpu) = gpu() else { return };
    let deep = Config::deep(2, 5, 35).with_dim_v(6);
    for (config, chunk) in [
        (Config::linear(2, 5).with_dim_v(38), 1),
        (Config::linear(2, 5).with_dim_v(38), 4),
        (deep.clone(), 1),
        (deep.clone().with_activation(Activation::Gelu), 7),
    ] {
        let config = config.with_chunk(chunk);
        let data = Data::new(2, 23, &config, 3);
        let first =
            forward_chunked(data.part(0, 2).inputs(), &data.state(&config), &config).unwrap();
        let rest = data.part(2, 23);
        let want = forward_chunked(rest.inputs(), &first.state, &config).unwrap();
        let titans = Titans::new(&gpu, config.clone()).unwrap();
        let mut decoder = titans.decoder(&State::upload(&gpu, &first.state).unwrap()).unwrap();
        let all = Uploaded::new(&gpu, &rest);
        let out = Tensor::uninit(&gpu, want.y.shape(), DType::F32).unwrap();
        for (from, len) in [(0, 1), (1, 1), (2, 1), (3, 9), (12, 1), (13, 8)] {
            let part = all.part(from, len);
            decoder.decode_into(part.inputs(), &out.narrow(2, from, len).unwrap()).unwrap();
        }
        relative("y", &array_of(&out), &want.y, RELATIVE_L2);
        close_on_device(&decoder, &want.state, &config, RELATIVE_L2);
    }
}

/// A file of a stream is one of the reference, and a fork goes its own way.
#[test]
fn streams_are_saved_and_forked() {
    let Some(gpu) = gpu() else { return };
    let config = Config::deep(2, 5, 35).with_dim_v(6).with_chunk(7);
    let data = Data::new(1, 9, &config, 4);
    let titans = Titans::new(&gpu, config.clone()).unwrap();
    let mut decoder = titans.decoder(&State::upload(&gpu, &data.state(&config)).unwrap()).unwrap();
    let all = Uploaded::new(&gpu, &data);
    decoder.decode(all.part(0, 3).inputs()).unwrap();
    let path = std::env::temp_dir().join(format!("attn-titans-{}.safetensors", std::process::id()));
    decoder.state().unwrap().save(&path, &config).unwrap();
    let on_host = reference::State::load(&path, &config).unwrap();
    let mut loaded = titans.decoder(&State::load(&gpu, &path, &config).unwrap()).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(on_host.position(), 3);
    let mut fork = decoder.fork().unwrap();
    fork.decode(all.part(7, 2).inputs()).unwrap();
    let [a, b] = [&mut decoder, &mut loaded]
        .map(|stream| array_of(&stream.decode(all.part(3, 6).inputs()).unwrap()));
    assert_eq!(bits(&a), bits(&b));
    let state = decoder.state().unwrap();
    assert_eq!(decoder.bytes(), state.bytes());
    let whole = titans.forward(all.inputs(), &State::upload(&gpu, &data.state(&config)).unwrap());
    relative(
        "y",
        &a,
        &array_of(&whole.unwrap().y).slice(s![.., .., 3.., ..]).to_owned(),
        RELATIVE_L2,
    );
}

/// 20,000 tokens one by one: nothing grows, and the end is as near to f64 as a walk in chunks. The first head
/// forgets nothing, so that its rounding adds up.
#[test]
fn long_streams_keep_their_size_and_their_precision() {
    // Of its own: other tests take memory, too.
    let Some(gpu) = open() else { return };
    let tokens = 20_000;
    for chunk in [1, 16] {
        let config = Config::linear(2, 4).with_chunk(chunk);
        let mut data = Data::new(1, tokens, &config, 5);
        data.alpha *= 0.05;
        data.alpha.slice_mut(s![.., 0, ..]).fill(0.0);
        let titans = Titans::new(&gpu, config.clone()).unwrap();
        let state = State::upload(&gpu, &data.state(&config)).unwrap();
        let mut decoder = titans.decoder(&state).unwrap();
        let all = Uploaded::new(&gpu, &data);
        let out = Tensor::uninit(&gpu, data.v.shape(), DType::F32).unwrap();
        let mut in_use = Vec::new();
        for t in 0..tokens {
            let y = decoder.decode(all.part(t, 1).inputs()).unwrap();
            if t % 8 == 0 || t + 1 == tokens {
                ops::copy(&y, &out.narrow(2, t, 1).unwrap()).unwrap();
            }
            if t == 100 || t == tokens - 10 {
                in_use.push(gpu.memory().in_use);
            }
        }
        assert_eq!(in_use[0], in_use[1], "memory grows");
        let got = array_of(&out).slice(s![.., .., ..;8, ..]).to_owned();
        let walk = titans.forward(all.inputs(), &state).unwrap();
        let want = forward_chunked(data.inputs(), &data.state(&config), &config).unwrap();
        let every = |x: &Array4<f64>| x.slice(s![.., .., ..;8, ..]).to_owned();
        relative("stream, reference", &got, &every(&want.y), 1e-4);
        relative("stream, walk", &got, &every(&array_of(&walk.y)), 1e-4);
        close_on_device(&decoder, &want.state, &config, 1e-4);
    }
}

/// A memory whose vectors do not fit workgroup memory has no stream, and single tokens as chunks.
#[test]
fn large_memories_go_by_chunks() {
    let Some(gpu) = gpu() else { return };
    let config = Config::deep(1, 2, 12_000).with_chunk(1);
    let mut data = Data::new(1, 3, &config, 6);
    // The gradient is a sum over what is between the layers.
    data.theta *= 1e-4;
    let titans = Titans::new(&gpu, config.clone()).unwrap();
    let state = State::upload(&gpu, &data.state(&config)).unwrap();
    let error = titans.decoder(&state).unwrap_err();
    assert!(matches!(error, attn_titans::Error::Limit { .. }), "{error}");
    let got = titans.forward(Uploaded::new(&gpu, &data).inputs(), &state).unwrap();
    let want = forward_chunked(data.inputs(), &data.state(&config), &config).unwrap();
    relative("y", &array_of(&got.y), &want.y, RELATIVE_L2);
}

/// What does not fit a stream leaves it as it is.
#[test]
fn what_a_stream_refuses() {
    let Some(gpu) = gpu() else { return };
    let config = Config::linear(2, 5).with_dim_v(38).with_chunk(4);
    let data = Data::new(2, 3, &config, 7);
    let titans = Titans::new(&gpu, config.clone()).unwrap();
    let state = State::upload(&gpu, &data.state(&config)).unwrap();
    let mut decoder = titans.decoder(&state).unwrap();
    let other = Uploaded::new(&gpu, &Data::new(1, 3, &config, 7));
    let error = decoder.decode(other.inputs()).unwrap_err().to_string();
    assert!(error.contains("a batch of 2"), "{error}");
    let all = Uploaded::new(&gpu, &data);
    let out = Tensor::uninit(&gpu, &[2, 2, 3, 38], DType::F16).unwrap();
    let error = decoder.decode_into(all.inputs(), &out).unwrap_err().to_string();
    assert!(error.contains("`out`"), "{error}");
    assert_eq!(decoder.position(), 0);
}
