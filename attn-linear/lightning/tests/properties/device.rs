//! The device against the reference and against itself.

use std::sync::OnceLock;

use attn_core::testing::{Values, fill};
use attn_lightning::layer::Layer;
use attn_lightning::reference::{self, layer, lrpe, lrpe_backward};

use attn_lightning::{Config, Cotangents, Gpu, Inputs, Lightning, Lrpe, Slopes, State, Tensor};
use attn_wgpu::{DType, ops};
use ndarray::{Array, Array2, Array3, Array4, Dimension, Ix2, Ix4, s};
use proptest::prelude::*;

use crate::support::{Case, case, distance, tensor};

fn gpu() -> Option<Gpu> {
    static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
    GPU.get_or_init(attn_wgpu::testing::open).clone()
}

fn up<D: Dimension>(gpu: &Gpu, x: &Array<f64, D>) -> Tensor {
    Tensor::from_array(gpu, &x.mapv(|x| x as f32).view().into_dyn()).unwrap()
}

fn down<D: Dimension>(x: &Tensor) -> Array<f64, D> {
    x.to_array::<f32>().unwrap().mapv(f64::from).into_dimensionality().unwrap()
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// f32 sums of products in blocks, of the largest element: measured up to 7e-7, and 2e-6 where terms cancel.
const BOUND: f64 = 5e-6;

/// The same case with what f32 holds.
fn rounded(case: &Case) -> Case {
    let round = |x: &Array4<f64>| x.mapv(|x| f64::from(x as f32));
    let kv = case.kv.as_ref().map(round);
    Case { q: round(&case.q), k: round(&case.k), v: round(&case.v), kv, ..case.clone() }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20, ..ProptestConfig::with_cases(
        std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(24)) })]

    /// Values that neither overflow f32 nor vanish in it.
    #[test]
    fn the_device_computes_what_the_reference_does(case in case()) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let largest = case.q.iter().chain(&case.k).chain(&case.v).fold(0.0, |m: f64, x| m.max(x.abs()));
        prop_assume!(largest < 1e6 && (largest == 0.0 || largest > 1e-6));
        let case = rounded(&case);
        let lightning = Lightning::new(&gpu, case.config()).unwrap();
        let [q, k, v] = [&case.q, &case.k, &case.v].map(|x| up(&gpu, x));
        let kv = case.kv.as_ref().map(|kv| up(&gpu, kv));
        let inputs = Inputs { kv: kv.as_ref(), ..Inputs::new(&q, &k, &v) };
        let (output, saved) = lightning.forward_saved(inputs).unwrap();
        let want = reference::forward_chunked(case.inputs(), &case.config()).unwrap();
        prop_assert!(distance(&down(&output.out), &want.out) <= BOUND);
        prop_assert!(distance(&down(&output.kv), &want.kv) <= BOUND);

        let [d_out, d_kv] = case.cotangents();
        let (by_out, by_kv) = (up(&gpu, &d_out), up(&gpu, &d_kv));
        let grads = lightning.backward(&saved, Cotangents::new(&by_out).with_state(&by_kv)).unwrap();
        let cotangents = reference::Cotangents::new(d_out.view()).with_state(d_kv.view());
        let want = reference::backward_chunked(case.inputs(), cotangents, &case.config()).unwrap();
        for (name, got, want) in [
            ("dq", grads.dq, want.dq),
            ("dk", grads.dk, want.dk),
            ("dv", grads.dv, want.dv),
            ("d_kv", grads.d_kv, want.d_kv),
        ] {
            let error = distance(&down::<Ix4>(&got), &want);
            prop_assert!(error <= BOUND, "{}: {:e}", name, error);
        }
    }
}

fn given(slopes: &[f64]) -> Config {
    Config::new(slopes.len()).with_slopes(Slopes::Given(slopes.to_vec()))
}

/// 1 to 17 tokens, primes, and what lies around blocks.
#[test]
fn smoke_all_lengths_stream() {
    let Some(gpu) = gpu() else { return };
    let lightning = Lightning::new(&gpu, given(&[0.0, 0.1])).unwrap();
    let all = [0, 1, 2].map(|i| up(&gpu, &tensor(3, i, (1, 2, 131, 12))));
    let part =
        |from: usize, to: usize| all.each_ref().map(|x| x.narrow(2, from, to - from).unwrap());
    for tokens in (1..=17).chain([31, 61, 63, 64, 65, 97, 127, 128, 131]) {
        let [q, k, v] = part(0, tokens);
        let want = lightning.forward(Inputs::new(&q, &k, &v)).unwrap();
        let first = tokens / 3;
        let [q, k, v] = part(0, first);
        let (out, mut state) = lightning.prefill(Inputs::new(&q, &k, &v)).unwrap();
        let mut outs: Vec<f64> = Vec::new();
        let mut take = |out: &Tensor| {
            let out = down::<Ix4>(out);
            outs.extend(out.slice(s![0, 1, .., ..]).iter());
        };
        take(&out);
        for at in first..tokens {
            let [q, k, v] = part(at, at + 1);
            take(&lightning.decode(&mut state, Inputs::new(&q, &k, &v)).unwrap());
        }
        assert_eq!(state.position(), tokens);
        let want_out = down::<Ix4>(&want.out).slice(s![0, 1, .., ..]).to_owned();
        let got = Array2::from_shape_vec((tokens, 12), outs).unwrap();
        assert!(distance(&got, &want_out) <= 2e-6, "{tokens}: {:e}", distance(&got, &want_out));
        let error = distance(&down::<Ix4>(state.kv()), &down(&want.kv));
        assert!(error <= 2e-6, "{tokens}: {error:e}");
    }
}

/// A long sequence in pieces is one call, its state has one size, and f64 agrees. 70,000 is more tokens than
/// a software driver's loops may have steps.
#[test]
fn long_sequences_stream_in_pieces() {
    let Some(gpu) = gpu() else { return };
    let (tokens, dim) = (70_000, 8);
    let config = given(&[2_f64.powi(-8)]);
    let lightning = Lightning::new(&gpu, config.clone()).unwrap();
    let host = [0, 1, 2].map(|i| tensor(5, i, (1, 1, tokens, dim)));
    let [q, k, v] = host.each_ref().map(|x| up(&gpu, x));
    let whole = lightning.forward(Inputs::new(&q, &k, &v)).unwrap();
    let want = reference::forward_chunked(
        reference::Inputs::new(host[0].view(), host[1].view(), host[2].view()),
        &config,
    )
    .unwrap();
    assert!(l2(&down(&whole.out), &want.out) <= 2e-6);
    assert!(l2(&down(&whole.kv), &want.kv) <= 2e-6);

    let part = |at: usize, count: usize| [&q, &k, &v].map(|x| x.narrow(2, at, count).unwrap());
    let [a, b, c] = part(0, 1000);
    let (_, mut state) = lightning.prefill(Inputs::new(&a, &b, &c)).unwrap();
    let (mut at, mut bytes) = (1000, None);
    for count in [7777, 64, 1, 20_000, 41_158] {
        let [a, b, c] = part(at, count);
        let out = lightning.decode(&mut state, Inputs::new(&a, &b, &c)).unwrap();
        let want = whole.out.narrow(2, at, count).unwrap();
        assert!(l2(&down::<Ix4>(&out), &down(&want)) <= 1e-6, "{at} + {count}");
        assert_eq!(*bytes.get_or_insert(state.bytes()), state.bytes());
        at += count;
    }
    assert_eq!((at, state.position()), (tokens, tokens));
    assert!(l2(&down::<Ix4>(state.kv()), &down(&whole.kv)) <= 1e-6);
}

/// 16,384 tokens one by one behind a prompt of 1,000 are those of one call.
#[test]
fn token_by_token() {
    let Some(gpu) = gpu() else { return };
    let (prompt, tokens) = (1000, 17_384);
    let lightning = Lightning::new(&gpu, given(&[0.5, 2_f64.powi(-8)])).unwrap();
    let [q, k, v] = [0, 1, 2].map(|i| up(&gpu, &tensor(10, i, (1, 2, tokens, 64))));
    let whole = lightning.forward(Inputs::new(&q, &k, &v)).unwrap().out;
    let part = |at: usize, count: usize| [&q, &k, &v].map(|x| x.narrow(2, at, count).unwrap());
    let [a, b, c] = part(0, prompt);
    let (_, mut state) = lightning.prefill(Inputs::new(&a, &b, &c)).unwrap();
    let all = Tensor::zeros(&gpu, whole.shape(), DType::F32).unwrap();
    for t in prompt..tokens {
        let [a, b, c] = part(t, 1);
        let out = lightning.decode(&mut state, Inputs::new(&a, &b, &c)).unwrap();
        ops::copy(&out, &all.narrow(2, t, 1).unwrap()).unwrap();
    }
    let rest = |x: &Tensor| down::<Ix4>(&x.narrow(2, prompt, tokens - prompt).unwrap());
    let error = l2(&rest(&all), &rest(&whole));
    println!("token by token: {error:.1e}");
    assert!(error <= 1e-5, "{error:e}");
}

/// 16,384 tokens of 64 elements against the recurrence, with the slopes of the specification's acceptance:
/// outputs within 2e-6 in L2, gradients within 1e-5, and the adjoint identity.
#[test]
fn many_tokens_are_exact() {
    let Some(gpu) = gpu() else { return };
    let shape = (1, 2, 16_384, 64);
    let config = given(&[0.5, 2_f64.powi(-8)]);
    let host = [0, 1, 2, 3].map(|i| tensor(9, i, shape));
    let [q, k, v, d_out] = host.each_ref().map(|x| up(&gpu, x));
    let lightning = Lightning::new(&gpu, config.clone()).unwrap();
    let (output, saved) = lightning.forward_saved(Inputs::new(&q, &k, &v)).unwrap();
    let grads = lightning.backward(&saved, Cotangents::new(&d_out)).unwrap();
    let inputs = reference::Inputs::new(host[0].view(), host[1].view(), host[2].view());
    let want = reference::forward_chunked(inputs, &config).unwrap();
    let error = l2(&down(&output.out), &want.out);
    println!("output: {error:.1e}");
    assert!(error <= 2e-6);
    let cotangents = reference::Cotangents::new(host[3].view());
    let wanted = reference::backward_chunked(inputs, cotangents, &config).unwrap();
    for (name, got, want) in [
        ("dq", &grads.dq, &wanted.dq),
        ("dk", &grads.dk, &wanted.dk),
        ("dv", &grads.dv, &wanted.dv),
    ] {
        let error = l2(&down(got), want);
        println!("{name}: {error:.1e}");
        assert!(error <= 1e-5, "{name}: {error:e}");
    }
    // The output is linear in each input, so that <d_out, out> is <dv, v>, <dk, k> and <dq, q>.
    let dot = |a: &Array4<f64>, b: &Array4<f64>| (a * b).sum();
    let want = dot(&host[3], &down(&output.out));
    for (got, x) in [(&grads.dq, &host[0]), (&grads.dk, &host[1]), (&grads.dv, &host[2])] {
        let got = dot(&down(got), x);
        assert!((got - want).abs() <= 1e-4 * want.abs(), "{got} for {want}");
    }
}

fn l2(got: &Array4<f64>, want: &Array4<f64>) -> f64 {
    let error = (got - want).mapv(|x| x * x).sum();
    (error / want.mapv(|x| x * x).sum()).sqrt()
}

#[test]
fn states_are_saved_and_loaded() {
    let Some(gpu) = gpu() else { return };
    let lightning = Lightning::new(&gpu, given(&[0.1])).unwrap();
    let x = up(&gpu, &tensor(1, 0, (1, 1, 9, 4)));
    let (_, mut state) = lightning.prefill(Inputs::new(&x, &x, &x)).unwrap();
    let path =
        std::env::temp_dir().join(format!("attn-lightning-{}.safetensors", std::process::id()));
    state.save(&path).unwrap();
    let mut loaded = State::load(&gpu, &path).unwrap();
    let on_host = reference::State::load(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(on_host.position(), 9);
    assert_eq!((bits(loaded.kv()), loaded.position()), (bits(state.kv()), 9));
    let mut fork = state.fork().unwrap();
    let new = x.narrow(2, 0, 1).unwrap();
    let outs = [&mut state, &mut loaded, &mut fork]
        .map(|state| bits(&lightning.decode(state, Inputs::new(&new, &new, &new)).unwrap()));
    assert!(outs[0] == outs[1] && outs[0] == outs[2]);
    let wrong = up(&gpu, &tensor(1, 0, (1, 1, 1, 5)));
    assert!(lightning.decode(&mut state, Inputs::new(&wrong, &wrong, &wrong)).is_err());
    assert_eq!(state.position(), 10);
}

/// Positions may be far away, and dims odd.
#[test]
fn positions_are_those_of_f64() {
    let Some(gpu) = gpu() else { return };
    for (first, (batch, tokens, dim)) in
        [(0, (2, 70, 5)), (70_000, (1, 3, 8)), (3_000_000_000, (1, 2, 4))]
    {
        let theta = reference::initial_theta(2, dim);
        let x = tensor(4, 0, (batch, 2, tokens, dim)).mapv(|x| f64::from(x as f32));
        let d_y = tensor(4, 1, (batch, 2, tokens, 2 * dim)).mapv(|x| f64::from(x as f32));
        let device = Lrpe::new(&gpu, theta.view()).unwrap();
        let y = device.forward(&up(&gpu, &x), first).unwrap();
        let error = distance(&down(&y), &lrpe(x.view(), theta.view(), first).unwrap());
        assert!(error <= 1e-6, "{first}: {error:e}");
        let (dx, d_theta) = device.backward(&up(&gpu, &x), first, &up(&gpu, &d_y)).unwrap();
        let want = lrpe_backward(x.view(), theta.view(), first, d_y.view()).unwrap();
        let error = distance(&down(&dx), &want.0);
        assert!(error <= 1e-6, "{first}: {error:e}");
        let error = distance(&down::<Ix2>(&d_theta), &want.1);
        assert!(error <= 3e-6, "{first}: {error:e}");
    }
}

/// A prompt, and then token by token, is the whole: with positions, whose state counts them.
#[test]
fn a_layer_streams() {
    let Some(gpu) = gpu() else { return };
    let matrix = |stream: u64, rows: usize, columns: usize| {
        let data = fill(8, stream, Values::Normal, rows * columns);
        let scale = (columns as f64).sqrt().recip();
        Array2::from_shape_vec(
            (rows, columns),
            data.into_iter().map(|x| f64::from(x) * scale).collect(),
        )
        .unwrap()
    };
    let weights = layer::Weights {
        w_qkvu: matrix(0, 48, 10),
        w_out: matrix(1, 10, 12),
        w_v: matrix(2, 14, 10),
        w_u: matrix(3, 14, 10),
        w_o: matrix(4, 10, 14),
        theta: Some(reference::initial_theta(2, 6)),
    };
    let config = Config::new(2).with_layer(0, 4);
    let layer = Layer::new(&gpu, config.clone(), &weights).unwrap();
    let x = tensor(8, 9, (1, 2, 30, 10)).index_axis_move(ndarray::Axis(0), 0);
    let x: Array3<f64> = x.mapv(|x| f64::from(x as f32));
    let want = layer::forward(x.view(), None, &weights, &config).unwrap();
    let device = up(&gpu, &x);
    let whole = layer.forward(&device, None).unwrap();
    assert!(distance(&down(&whole.out), &want.out) <= 1e-5);
    let first = layer.forward(&device.narrow(1, 0, 17).unwrap(), None).unwrap();
    let mut state = first.state;
    for at in 17..30 {
        let out = layer.decode(&mut state, &device.narrow(1, at, 1).unwrap()).unwrap();
        let want = whole.out.narrow(1, at, 1).unwrap().contiguous().unwrap();
        let error = distance(&down::<ndarray::Ix3>(&out), &down(&want));
        assert!(error <= 1e-5, "{at}: {error:e}");
    }
    assert_eq!(state.position(), 30);
    let error = distance(&down::<Ix4>(state.kv()), &want.state.kv().to_owned());
    assert!(error <= 1e-5, "{error:e}");
}
