//! The device against the reference.

use attn_core::testing::compare;
use attn_titans::reference::forward_chunked;
use attn_titans::{Activation, Config, Gpu, Inputs, Output, State, Tensor, Titans};
use attn_wgpu::testing::gpu;
use ndarray::{Array, Array4, Dimension, s};
use proptest::prelude::*;

use crate::support::{Data, bits, config, tokens};

/// Of the specification; plain f32 in another framework had 2e-7.
pub const RELATIVE_L2: f64 = 1e-5;

pub fn upload<D: Dimension>(gpu: &Gpu, x: &Array<f64, D>) -> Tensor {
    Tensor::from_array(gpu, &x.mapv(|x| x as f32).view().into_dyn()).unwrap()
}

/// A call's tensors.
pub struct Tensors {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    eta: Tensor,
    alpha: Tensor,
}

impl Tensors {
    pub fn inputs(&self) -> Inputs<'_> {
        let Tensors { q, k, v, theta, eta, alpha } = self;
        Inputs { q, k, v, theta, eta, alpha }
    }

    pub fn map(&self, f: impl Fn(&Tensor) -> Tensor) -> Tensors {
        Tensors {
            q: f(&self.q),
            k: f(&self.k),
            v: f(&self.v),
            theta: f(&self.theta),
            eta: f(&self.eta),
            alpha: f(&self.alpha),
        }
    }
}

pub fn inputs(gpu: &Gpu, data: &Data) -> Tensors {
    let [q, k, v] = [&data.q, &data.k, &data.v].map(|x| upload(gpu, x));
    let [theta, eta, alpha] = [&data.theta, &data.eta, &data.alpha].map(|x| upload(gpu, x));
    Tensors { q, k, v, theta, eta, alpha }
}

fn run(gpu: &Gpu, data: &Data, state: &State, config: &Config) -> Output {
    let titans = Titans::new(gpu, config.clone()).unwrap();
    titans.forward(inputs(gpu, data).inputs(), state).unwrap()
}

pub fn download(x: &Tensor) -> Array4<f32> {
    x.to_array::<f32>().unwrap().into_dimensionality().unwrap()
}

/// Values of a call that does not begin at the start of a chunk, and the state behind it.
fn check(gpu: &Gpu, data: &Data, before: &Data, config: &Config) {
    let first = forward_chunked(before.inputs(), &before.state(config), config).unwrap().state;
    let want = forward_chunked(data.inputs(), &first, config).unwrap();
    let got = run(gpu, data, &State::upload(gpu, &first).unwrap(), config);
    let close = |what: &str, got: &[f32], want: &Array4<f64>| {
        let error = compare(got, want.as_slice().unwrap()).rel_l2;
        println!("{what}: {error:.1e}");
        assert!(error <= RELATIVE_L2, "{what}: {error:e}, {config:?}");
    };
    close("y", download(&got.y).as_slice().unwrap(), &want.y);
    let state = got.state.download(config).unwrap();
    assert_eq!(state.position(), want.state.position());
    for (what, got, want) in [
        ("w", state.w(), want.state.w()),
        ("s", state.s(), want.state.s()),
        ("chunk_start", state.chunk_start(), want.state.chunk_start()),
    ] {
        for (got, want) in got.iter().zip(want) {
            close(what, got.mapv(|x| x as f32).as_slice().unwrap(), want);
        }
    }
}

/// A long call in chunks of all sizes, both depths, with gates as they are trained: up to 0.1 is forgotten.
#[test]
fn smoke_the_dual_form_on_a_device() {
    let Some(gpu) = gpu() else { return };
    for hidden in [None, Some(20)] {
        for chunk in [1, 4, 16, 64] {
            let mut config = Config::linear(2, 12).with_dim_v(10).with_chunk(chunk);
            config.hidden = hidden;
            let mut data = Data::new(2, 257, &config, 1);
            data.alpha *= 0.1;
            check(&gpu, &data, &data.part(0, 0), &config);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_device_computes_as_the_reference(
        config in config(),
        before in 0..6_usize,
        tokens in tokens(),
        seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let data = Data::new(2, tokens, &config, seed);
        check(&gpu, &data, &Data::new(2, before, &config, seed ^ 1), &config);
    }

    /// NaN goes neither back nor aside, in any bit.
    #[test]
    fn damage_goes_forward_only_on_a_device(
        config in config(),
        tokens in 1..20_usize,
        at in 0.0..1.0_f64,
        which in 0..6_usize,
        seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let data = Data::new(2, tokens, &config, seed);
        let at = (at * tokens as f64) as usize;
        let mut damaged = data.clone();
        match which {
            0 => damaged.q[[1, 0, at, 0]] = f64::NAN,
            1 => damaged.k[[1, 0, at, 0]] = f64::NAN,
            2 => damaged.v[[1, 0, at, 0]] = f64::NAN,
            3 => damaged.theta[[1, 0, at]] = f64::NAN,
            4 => damaged.eta[[1, 0, at]] = f64::NAN,
            _ => damaged.alpha[[1, 0, at]] = f64::NAN,
        }
        let state = State::upload(&gpu, &data.state(&config)).unwrap();
        let [got, want] =
            [&damaged, &data].map(|data| download(&run(&gpu, data, &state, &config).y));
        for ((b, h, t, e), y) in got.indexed_iter() {
            if (b, h) != (1, 0) || t < at {
                prop_assert_eq!(y.to_bits(), want[[b, h, t, e]].to_bits());
            }
        }
        prop_assert!(got.slice(s![1, 0, at, ..]).iter().any(|y| y.is_nan()));
    }

    /// A batch entry alone has the bits that it has among others, run after run.
    #[test]
    fn entries_are_alone_on_a_device(config in config(), tokens in 1..20_usize, seed in any::<u64>()) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let data = Data::new(3, tokens, &config, seed);
        let mut one = data.clone();
        for x in [&mut one.q, &mut one.k, &mut one.v] {
            *x = x.slice(s![1..2, .., .., ..]).to_owned();
        }
        for x in [&mut one.theta, &mut one.eta, &mut one.alpha] {
            *x = x.slice(s![1..2, .., ..]).to_owned();
        }
        for x in one.w.iter_mut().chain(&mut one.s) {
            *x = x.slice(s![1..2, .., .., ..]).to_owned();
        }
        let y = |data: &Data| {
            let state = State::upload(&gpu, &data.state(&config)).unwrap();
            download(&run(&gpu, data, &state, &config).y).mapv(f64::from)
        };
        let all = y(&data);
        prop_assert_eq!(bits(&y(&one)), bits(&all.slice(s![1..2, .., .., ..]).to_owned()));
        prop_assert_eq!(bits(&y(&data)), bits(&all));
    }
}

/// A chunk that no call fills needs no room for its tokens.
#[test]
fn chunks_of_any_size() {
    let Some(gpu) = gpu() else { return };
    let config = Config::deep(1, 3, 5).with_chunk(usize::MAX);
    let data = Data::new(1, 9, &config, 1);
    check(&gpu, &data, &data.part(0, 4), &config);
}

/// A state of another memory is refused.
#[test]
fn what_a_device_refuses() {
    let Some(gpu) = gpu() else { return };
    let config = Config::deep(2, 4, 8).with_activation(Activation::Gelu).with_chunk(4);
    let data = Data::new(1, 3, &config, 1);
    let other = Config::linear(2, 4).with_chunk(4);
    let state = State::upload(&gpu, &Data::new(1, 0, &other, 1).state(&other)).unwrap();
    let titans = Titans::new(&gpu, config).unwrap();
    let error = titans.forward(inputs(&gpu, &data).inputs(), &state).unwrap_err().to_string();
    assert!(error.contains("`state.w` is 1, expected 2 layers"), "{error}");
}
