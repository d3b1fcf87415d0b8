//! The derivative on a device against the reference's.

use attn_titans::reference::{self, Cotangents, backward_chunked, forward_chunked};
use attn_titans::{Config, Gpu, Grads, State, Titans};
use attn_wgpu::testing::gpu;
use ndarray::{Array, Array4, Dimension};
use proptest::prelude::*;

use crate::device::{inputs, upload};
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

fn run(gpu: &Gpu, data: &Data, first: &reference::State, all: &All, config: &Config) -> Grads {
    let [y, w, s, start] = [std::slice::from_ref(&all.y), &all.w, &all.s, &all.start]
        .map(|layers| layers.iter().map(|layer| upload(gpu, layer)).collect::<Vec<_>>());
    let titans = Titans::new(gpu, config.clone()).unwrap();
    let tensors = inputs(gpu, data);
    let state = State::upload(gpu, first).unwrap();
    let (_, saved) = titans.forward_saved(tensors.inputs(), &state).unwrap();
    let cotangents =
        attn_titans::Cotangents::new(&y[0]).with_state(&w, &s).with_chunk_start(&start);
    titans.backward(&saved, cotangents).unwrap()
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

/// All gradients of a call behind `before` others, relative to the norm of each.
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
