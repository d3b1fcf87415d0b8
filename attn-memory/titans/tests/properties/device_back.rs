//! The derivative on a device against the reference's, and its laws.

use std::sync::OnceLock;

use attn_titans::reference::{self, Cotangents, backward_chunked, forward, forward_chunked};
use attn_titans::{Config, Gpu, Grads, State, Tensor, Titans, wgpu};
use attn_wgpu::testing::gpu;
use attn_wgpu::{DType, ops};
use ndarray::{Array, Array4, Axis, Dimension, concatenate, s};
use proptest::prelude::*;

use crate::device::{Tensors, inputs, upload};
use crate::support::{Data, array, config, tokens};

/// Cotangents of everything that a call returns.
#[derive(Clone)]
struct All {
    y: Array4<f64>,
    w: Vec<Array4<f64>>,
    s: Vec<Array4<f64>>,
    start: Vec<Array4<f64>>,
}

impl All {
    fn new(data: &Data, seed: u64) -> Self {
        let like = |stream| -> Vec<Array4<f64>> {
            data.w.iter().map(|layer| array(seed, stream, layer.dim())).collect()
        };
        All { y: array(seed, 20, data.v.dim()), w: like(21), s: like(22), start: like(23) }
    }

    fn cotangents(&self) -> Cotangents<'_> {
        Cotangents::new(self.y.view()).with_state(&self.w, &self.s).with_chunk_start(&self.start)
    }
}

/// Gradients on the host, in the order of [`want`].
type Host = Vec<(&'static str, Vec<f32>)>;

/// The cotangents on a device.
struct Uploaded {
    y: Tensor,
    w: Vec<Tensor>,
    s: Vec<Tensor>,
    start: Vec<Tensor>,
}

impl Uploaded {
    fn new(gpu: &Gpu, all: &All) -> Self {
        let [w, s, start] = [&all.w, &all.s, &all.start]
            .map(|layers| layers.iter().map(|layer| upload(gpu, layer)).collect());
        Uploaded { y: upload(gpu, &all.y), w, s, start }
    }

    fn cotangents(&self) -> attn_titans::Cotangents<'_> {
        let own = attn_titans::Cotangents::new(&self.y).with_state(&self.w, &self.s);
        own.with_chunk_start(&self.start)
    }
}

fn run(gpu: &Gpu, data: &Data, first: &reference::State, all: &All, config: &Config) -> Grads {
    let titans = Titans::new(gpu, config.clone()).unwrap();
    let state = State::upload(gpu, first).unwrap();
    let (_, saved) = titans.forward_saved(inputs(gpu, data).inputs(), &state).unwrap();
    titans.backward(&saved, Uploaded::new(gpu, all).cotangents()).unwrap()
}

fn host(grads: &Grads) -> Host {
    let rows = [("dq", &grads.dq), ("dk", &grads.dk), ("dv", &grads.dv)];
    let gates = [("d_theta", &grads.d_theta), ("d_eta", &grads.d_eta), ("d_alpha", &grads.d_alpha)];
    let layers =
        [("d_w", &grads.d_w), ("d_s", &grads.d_s), ("d_chunk_start", &grads.d_chunk_start)];
    let layers =
        layers.into_iter().flat_map(|(what, all)| all.iter().map(move |layer| (what, layer)));
    let all = rows.into_iter().chain(gates).chain(layers);
    all.map(|(what, x)| (what, x.to_vec::<f32>().unwrap())).collect()
}

fn want(grads: &reference::Grads) -> Vec<Vec<f64>> {
    fn flat<D: Dimension>(x: &Array<f64, D>) -> Vec<f64> {
        x.iter().copied().collect()
    }
    let rows = [&grads.dq, &grads.dk, &grads.dv].map(flat);
    let gates = [&grads.d_theta, &grads.d_eta, &grads.d_alpha].map(flat);
    let layers = grads.d_w.iter().chain(&grads.d_s).chain(&grads.d_chunk_start).map(flat);
    rows.into_iter().chain(gates).chain(layers).collect()
}

/// All gradients of a call behind `before`, within 1e-4 of the largest element of each: the tolerance of
/// golden files. They are at about 1e-6.
fn check(gpu: &Gpu, data: &Data, before: &Data, config: &Config, seed: u64) {
    let first = forward_chunked(before.inputs(), &before.state(config), config).unwrap().state;
    let all = All::new(data, seed);
    let want = want(&backward_chunked(data.inputs(), &first, config, all.cotangents()).unwrap());
    let got = host(&run(gpu, data, &first, &all, config));
    assert_eq!(got.len(), want.len());
    for ((what, got), want) in got.iter().zip(&want) {
        assert_eq!(got.len(), want.len(), "{what}");
        let largest = want.iter().fold(1e-3_f64, |largest, x| largest.max(x.abs()));
        let worst = got.iter().zip(want).map(|(a, b)| (f64::from(*a) - b).abs());
        let error = worst.fold(0.0, f64::max) / largest;
        println!("{what}: {error:.1e}");
        assert!(error <= 1e-4, "{what}: {error:e}, {config:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_device_derives_as_the_reference(
        config in config(),
        before in 0..6_usize,
        tokens in tokens(),
        seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let data = Data::new(2, tokens, &config, seed);
        check(&gpu, &data, &Data::new(2, before, &config, seed ^ 1), &config, seed);
    }
}

/// One entry of a call with its cotangents.
fn entry(data: &Data, all: &All, b: usize) -> (Data, All) {
    let one = |x: &Array4<f64>| x.slice(s![b..=b, .., .., ..]).to_owned();
    let (mut data, mut all) = (data.clone(), all.clone());
    for x in [&mut data.q, &mut data.k, &mut data.v, &mut all.y] {
        *x = one(x);
    }
    for x in [&mut data.theta, &mut data.eta, &mut data.alpha] {
        *x = x.slice(s![b..=b, .., ..]).to_owned();
    }
    let layers = data.w.iter_mut().chain(&mut data.s).chain(&mut all.w).chain(&mut all.s);
    for x in layers.chain(&mut all.start) {
        *x = one(x);
    }
    (data, all)
}

/// Devices on which nothing may change a bit: one of dirty buffers, one that takes every chunk and head by
/// itself for its work, and one whose bindings are small.
fn others() -> &'static [Gpu] {
    static OTHERS: OnceLock<Vec<Gpu>> = OnceLock::new();
    let limits = wgpu::Limits { max_storage_buffer_binding_size: 4096, ..Default::default() };
    OTHERS.get_or_init(|| {
        let dirty = Gpu::builder().poison(true).build().unwrap();
        let lazy = Gpu::builder().max_work_per_dispatch(1.0).build().unwrap();
        vec![dirty, lazy, Gpu::builder().limits(limits).build().unwrap()]
    })
}

fn same_bits(got: &Host, want: &Host) {
    for ((what, got), (_, want)) in got.iter().zip(want) {
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(got) == bits(want), "{what}: {got:?} {want:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, ..ProptestConfig::default() })]

    #[test]
    fn bits_of_gradients(config in config(), tokens in 0..20_usize, before in 0..6_usize, seed: u64) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let data = Data::new(3, tokens, &config, seed);
        let before = Data::new(3, before, &config, seed ^ 1);
        let behind = |data: &Data| {
            forward_chunked(data.inputs(), &data.state(&config), &config).unwrap().state
        };
        let all = All::new(&data, seed);
        let (first, grads) = (behind(&before), |gpu: &Gpu, first: &reference::State| {
            host(&run(gpu, &data, first, &all, &config))
        });
        let want = grads(&gpu, &first);
        same_bits(&grads(&gpu, &first), &want);
        for other in others() {
            same_bits(&grads(other, &first), &want);
        }
        let (one, cotangents) = entry(&data, &all, 1);
        let alone = host(&run(&gpu, &one, &behind(&entry(&before, &all, 1).0), &cotangents, &config));
        let part: Host = want
            .into_iter()
            .map(|(what, x)| (what, x[x.len() / 3..x.len() / 3 * 2].to_vec()))
            .collect();
        same_bits(&alone, &part);
    }

    /// Gradients of a call in two parts, through the state between them.
    #[test]
    fn gradients_of_parts(config in config(), tokens in 1..20_usize, at in 0.0..1.0_f64, seed: u64) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let data = Data::new(2, tokens, &config, seed);
        let at = (at * tokens as f64) as usize;
        let all = All::new(&data, seed);
        let state = data.state(&config);
        let want = want(&backward_chunked(data.inputs(), &state, &config, all.cotangents()).unwrap());

        let titans = Titans::new(&gpu, config.clone()).unwrap();
        let parts = [inputs(&gpu, &data.part(0, at)), inputs(&gpu, &data.part(at, tokens))];
        let state = State::upload(&gpu, &state).unwrap();
        let (output, first) = titans.forward_saved(parts[0].inputs(), &state).unwrap();
        let (_, second) = titans.forward_saved(parts[1].inputs(), &output.state).unwrap();
        let cotangents = Uploaded::new(&gpu, &all);
        let y = |from, to| upload(&gpu, &all.y.slice(s![.., .., from..to, ..]).to_owned());
        let y = [y(0, at), y(at, tokens)];
        let later = attn_titans::Cotangents { y: Some(&y[1]), ..cotangents.cotangents() };
        let second = titans.backward(&second, later).unwrap();
        let earlier = attn_titans::Cotangents::new(&y[0])
            .with_state(&second.d_w, &second.d_s)
            .with_chunk_start(&second.d_chunk_start);
        let first = titans.backward(&first, earlier).unwrap();
        let rows = |grads: &Grads| {
            let rows = [&grads.dq, &grads.dk, &grads.dv];
            let gates = [&grads.d_theta, &grads.d_eta, &grads.d_alpha];
            rows.into_iter().chain(gates).map(|x| x.to_array::<f32>().unwrap()).collect::<Vec<_>>()
        };
        let together = rows(&first).into_iter().zip(rows(&second));
        let together = together.map(|(a, b)| concatenate![Axis(2), a, b].into_iter().collect());
        let layers = host(&first).into_iter().skip(6).map(|(_, x)| x);
        for (got, want) in together.chain(layers).zip(&want) {
            let got: Vec<f32> = got;
            let largest = want.iter().fold(1e-3_f64, |largest, x| largest.max(x.abs()));
            for (got, want) in got.iter().zip(want) {
                prop_assert!((f64::from(*got) - want).abs() <= 1e-4 * largest, "{} {}", got, want);
            }
        }
    }

    /// NaN in a cotangent or an input reaches no other sequence, no query before the input, and nothing
    /// behind the cotangent's token.
    #[test]
    fn damage_of_gradients(
        config in config(),
        tokens in 1..20_usize,
        at in 0.0..1.0_f64,
        which in 0..7_usize,
        seed: u64,
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let data = Data::new(2, tokens, &config, seed);
        let all = All::new(&data, seed);
        let at = (at * tokens as f64) as usize;
        let (mut damaged, mut cotangents) = (data.clone(), all.clone());
        match which {
            0 => damaged.q[[1, 0, at, 0]] = f64::NAN,
            1 => damaged.k[[1, 0, at, 0]] = f64::NAN,
            2 => damaged.v[[1, 0, at, 0]] = f64::NAN,
            3 => damaged.theta[[1, 0, at]] = f64::NAN,
            4 => damaged.eta[[1, 0, at]] = f64::NAN,
            5 => damaged.alpha[[1, 0, at]] = f64::NAN,
            _ => cotangents.y[[1, 0, at, 0]] = f64::NAN,
        }
        let state = data.state(&config);
        let want = host(&run(&gpu, &data, &state, &all, &config));
        let got = host(&run(&gpu, &damaged, &state, &cotangents, &config));
        let heads = config.heads;
        for (i, ((what, got), (_, want))) in got.iter().zip(&want).enumerate() {
            for (j, (a, b)) in got.iter().zip(want).enumerate() {
                let plane = j / (got.len() / (2 * heads));
                let token = j % (got.len() / (2 * heads)) / (got.len() / (2 * heads * tokens)).max(1);
                let spared = match (i, which) {
                    (0, 6) => token != at,
                    (1..6, 6) => token > at,
                    (0, _) => token < at,
                    _ => false,
                };
                if plane != heads || spared {
                    prop_assert_eq!(a.to_bits(), b.to_bits(), "{} {}", what, j);
                }
            }
        }
        prop_assert!(got.iter().any(|(_, x)| x.iter().any(|x| x.is_nan())));
    }

    /// Halves are computed as the numbers that they are, and gradients have their types.
    #[test]
    fn gradients_in_halves(config in config(), tokens in 1..20_usize, seed: u64) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let data = Data::new(2, tokens, &config, seed);
        let titans = Titans::new(&gpu, config.clone()).unwrap();
        let state = State::upload(&gpu, &data.state(&config)).unwrap();
        let y = upload(&gpu, &All::new(&data, seed).y);
        for dtype in [DType::F16, DType::BF16] {
            let to = |x: &Tensor, dtype| ops::convert(x, dtype).unwrap();
            let halves = inputs(&gpu, &data).map(|x| to(x, dtype));
            let grads = |tensors: &Tensors, y: &Tensor| {
                let (_, saved) = titans.forward_saved(tensors.inputs(), &state).unwrap();
                titans.backward(&saved, attn_titans::Cotangents::new(y)).unwrap()
            };
            let y = to(&y, dtype);
            let got = grads(&halves, &y);
            let want = grads(&halves.map(|x| to(x, DType::F32)), &to(&y, DType::F32));
            for (got, want) in [
                (&got.dq, &want.dq),
                (&got.dk, &want.dk),
                (&got.dv, &want.dv),
                (&got.d_theta, &want.d_theta),
                (&got.d_eta, &want.d_eta),
                (&got.d_alpha, &want.d_alpha),
            ] {
                prop_assert_eq!(got.dtype(), dtype);
                let [got, want] = [got, &to(want, dtype)].map(|x| to(x, DType::F32).to_vec::<f32>());
                prop_assert_eq!(got.unwrap(), want.unwrap());
            }
        }
    }
}

/// The derivative along a direction of everything, against a difference of the reference in f64.
#[test]
fn adjoint_of_a_long_call() {
    let Some(gpu) = gpu() else { return };
    let config = Config::deep(2, 12, 20).with_dim_v(10).with_chunk(8);
    let (data, along) = (Data::new(2, 48, &config, 1), Data::new(2, 48, &config, 2));
    let all = All::new(&data, 3);
    let moved = |by: f64| {
        let mut data = data.clone();
        data.q.scaled_add(by, &along.q);
        data.k.scaled_add(by, &along.k);
        data.v.scaled_add(by, &along.v);
        data.theta.scaled_add(by, &along.theta);
        data.eta.scaled_add(by, &along.eta);
        data.alpha.scaled_add(by, &along.alpha);
        for (own, along) in data.w.iter_mut().zip(&along.w).chain(data.s.iter_mut().zip(&along.s)) {
            own.scaled_add(by, along);
        }
        let output = forward(data.inputs(), &data.state(&config), &config).unwrap();
        let layers = all.w.iter().zip(output.state.w()).chain(all.s.iter().zip(output.state.s()));
        // Behind a full chunk the weights at its start are the weights.
        let start = all.start.iter().zip(output.state.chunk_start());
        (&all.y * &output.y).sum() + layers.chain(start).map(|(d, x)| (d * x).sum()).sum::<f64>()
    };
    let want = (moved(1e-5) - moved(-1e-5)) / 2e-5;
    let grads = host(&run(&gpu, &data, &data.state(&config), &all, &config));
    let rows = [&along.q, &along.k, &along.v].map(|x| x.iter().copied().collect::<Vec<_>>());
    let gates = [&along.theta, &along.eta, &along.alpha].map(|x| x.iter().copied().collect());
    let layers = along.w.iter().chain(&along.s).map(|x| x.iter().copied().collect());
    let along: Vec<Vec<f64>> = rows.into_iter().chain(gates).chain(layers).collect();
    let parts = grads.iter().zip(&along).flat_map(|((_, grad), along)| grad.iter().zip(along));
    let got: f64 = parts.map(|(grad, along)| f64::from(*grad) * along).sum();
    println!("{got} {want}");
    assert!((got - want).abs() <= 1e-3 * want.abs(), "{got} {want}");
}

/// Without cotangents all gradients are 0; of no tokens, those of the state go through.
#[test]
fn what_is_left_out_is_zero() {
    let Some(gpu) = gpu() else { return };
    let config = Config::deep(1, 3, 5).with_chunk(4);
    let titans = Titans::new(&gpu, config.clone()).unwrap();
    for tokens in [0, 6] {
        let data = Data::new(1, tokens, &config, 1);
        let state = State::upload(&gpu, &data.state(&config)).unwrap();
        let (_, saved) = titans.forward_saved(inputs(&gpu, &data).inputs(), &state).unwrap();
        let none = titans.backward(&saved, attn_titans::Cotangents::default()).unwrap();
        assert!(host(&none).iter().all(|(_, x)| x.iter().all(|x| *x == 0.0)));
        let all = Uploaded::new(&gpu, &All::new(&data, 1));
        let some = titans.backward(&saved, all.cotangents()).unwrap();
        if tokens == 0 {
            let through = ops::add(&all.w[0], &all.start[0]).unwrap();
            assert_eq!(some.d_w[0].to_vec::<f32>().unwrap(), through.to_vec::<f32>().unwrap());
            assert_eq!(some.d_s[1].to_vec::<f32>().unwrap(), all.s[1].to_vec::<f32>().unwrap());
        }
    }
}

#[test]
fn what_derivatives_refuse() {
    let Some(gpu) = gpu() else { return };
    let config = Config::deep(2, 4, 8).with_chunk(4);
    let data = Data::new(1, 3, &config, 1);
    let titans = Titans::new(&gpu, config.clone()).unwrap();
    let learned = data.w.iter().map(|w| upload(&gpu, &w.index_axis(Axis(0), 0).to_owned()));
    let state = State::new(&learned.collect::<Vec<_>>(), 1, &config).unwrap();
    let (_, saved) = titans.forward_saved(inputs(&gpu, &data).inputs(), &state).unwrap();
    let all = Uploaded::new(&gpu, &All::new(&data, 1));
    let refused = |cotangents| titans.backward(&saved, cotangents).unwrap_err().to_string();
    let good = all.cotangents();
    let y = all.y.narrow(2, 0, 2).unwrap();
    let error = refused(attn_titans::Cotangents { y: Some(&y), ..good });
    assert!(error.contains("`cotangents.y`") && error.contains("[1, 2, 3, 4]"), "{error}");
    let error = refused(attn_titans::Cotangents { w: Some(&all.w[..1]), ..good });
    assert!(error.contains("`cotangents.w` is 1, expected 2 layers"), "{error}");
    let half: Vec<_> = all.s.iter().map(|s| ops::convert(s, DType::F16).unwrap()).collect();
    let error = refused(attn_titans::Cotangents { s: Some(&half), ..good });
    assert!(error.contains("`cotangents.s`") && error.contains("f32"), "{error}");
    let turned: Vec<_> = all.start.iter().map(|s| s.permute(&[0, 1, 3, 2]).unwrap()).collect();
    let error = refused(attn_titans::Cotangents { chunk_start: Some(&turned), ..good });
    assert!(error.contains("`cotangents.chunk_start`"), "{error}");
    let error = State::from_parts(&all.w, &half, &config).unwrap_err().to_string();
    assert!(error.contains("`s`"), "{error}");
    let error = State::from_parts(&[], &[], &config).unwrap_err().to_string();
    assert!(error.contains("`w` is 0, expected 2 layers"), "{error}");
}
