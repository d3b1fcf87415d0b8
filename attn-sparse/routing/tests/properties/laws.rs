//! Laws of the paper on the device.

use attn_core::Mask;
use attn_core::dense::Config as Dense;
use attn_core::plan::Tile;
use attn_routing::{Centroids, Config, Gpu, Inputs, Output, Routing, Tensor, Uninitialised};
use attn_wgpu::attention::Attention;
use attn_wgpu::testing::gpu;
use ndarray::{Array4, Axis, s};

use crate::support::{centroids, close, download, normed, tensor, upload};

/// One layer on normal queries, keys and values of one shape.
struct Layer {
    gpu: Gpu,
    layer: Routing,
    means: Centroids,
}

impl Layer {
    fn new(gpu: &Gpu, config: &Config, heads: usize, dim: usize) -> Layer {
        let means = centroids(3, heads, config.clusters, dim);
        let means = Centroids::upload(gpu, &means).unwrap();
        let layer = Routing::new(gpu, config.clone()).unwrap();
        Layer { gpu: gpu.clone(), layer, means }
    }

    fn run(&self, [q, k, v]: [&Array4<f64>; 3]) -> Output {
        let [q, k, v] = [q, k, v].map(|x| upload(&self.gpu, x));
        self.layer.forward(Inputs::new(&q, &k, &v), None, &self.means).unwrap()
    }
}

#[test]
fn a_window_that_covers_all_is_dense_attention() {
    let Some(gpu) = gpu() else { return };
    let shape = [2, 2, 27, 8];
    let [q, k, v] = [0, 1, 2].map(|stream| tensor(1, stream, shape));
    for (causal, shared) in [(false, false), (true, true), (true, false)] {
        let mut config = Config::new(3, 40).with_scale(0.6).with_shared_qk(shared);
        config.causal = causal;
        let output = Layer::new(&gpu, &config, 2, 8).run([&q, &k, &v]);
        let mask = if causal { Mask::Causal } else { Mask::Full };
        let dense = Attention::new(&gpu, Dense::new().with_mask(mask).with_scale(0.6)).unwrap();
        let on_q = upload(&gpu, &normed(&q));
        let on_k = upload(&gpu, &normed(if shared { &q } else { &k }));
        let exact = dense.forward(Inputs::new(&on_q, &on_k, &upload(&gpu, &v))).unwrap();
        close("dense", &download(&output.out), &download(&exact.out), 1e-5);
    }
}

#[test]
fn tokens_and_centroids_may_be_renumbered_and_rows_scaled() {
    let Some(gpu) = gpu() else { return };
    let shape = [1, 2, 23, 8];
    let [q, k, v] = [0, 1, 2].map(|stream| tensor(2, stream, shape));
    let config = Config::new(4, 5).bidirectional();
    let layer = Layer::new(&gpu, &config, 2, 8);
    let plain = download(&layer.run([&q, &k, &v]).out);
    let order: Vec<usize> = (0..23).map(|token| (token + 7) % 23).collect();
    let rotate = |x: &Array4<f64>| x.select(Axis(2), &order);
    let moved = layer.run([&rotate(&q), &rotate(&k), &rotate(&v)]);
    close("tokens", &download(&moved.out), &rotate(&plain), 1e-5);
    let host = centroids(3, 2, 4, 8);
    let reversed: Vec<f32> =
        host.means.slice(s![.., ..;-1, ..]).iter().map(|x| *x as f32).collect();
    let reversed = Tensor::from_slice(&gpu, &reversed, &[2, 4, 8]).unwrap();
    let means = Uninitialised::new(2, 4, 8).with_means(&reversed).unwrap();
    let moved = Layer { means, ..Layer::new(&gpu, &config, 2, 8) }.run([&q, &k, &v]);
    close("centroids", &download(&moved.out), &plain, 1e-5);
    // The 1e-6 beside the variance is what remains.
    let moved = layer.run([&(&q * 3.0 + 1.5), &(&k * 0.5 - 4.0), &v]);
    close("rows", &download(&moved.out), &plain, 2e-4);
}

#[test]
fn values_of_one_and_numbers_of_members() {
    let Some(gpu) = gpu() else { return };
    let shape = [2, 3, 37, 8];
    let [q, k] = [0, 1].map(|stream| tensor(4, stream, shape));
    for epsilon in [0.0, 0.01] {
        let mut config = Config::new(5, 6).bidirectional();
        config.epsilon = epsilon;
        let output = Layer::new(&gpu, &config, 3, 8).run([&q, &k, &Array4::ones(shape)]);
        let routes = output.routes.read().unwrap();
        assert_eq!(routes.counts.sum(), 2 * 3 * 5 * 6);
        let mut unrouted = 0;
        for (place, out) in download(&output.out).indexed_iter() {
            let count = routes.counts[[place.0, place.1, place.2]] as f64;
            unrouted += usize::from(count == 0.0);
            let expected = if count > 0.0 { count / (count + epsilon) } else { 0.0 };
            assert!((out - expected).abs() < 1e-6, "{out} for {count}");
        }
        assert!(unrouted > 0);
        let plan = output.routes.plan().unwrap();
        plan.validate().unwrap();
        let stats = plan.stats(Tile { rows: 4, keys: 4 }).unwrap();
        assert_eq!(stats.pairs, 2 * 3 * 5 * 6 * 6);
        assert_eq!(stats.empty_rows as usize * 8, unrouted);
    }
}

/// A late token may change earlier outputs, as in the paper; with the choice fixed it does not.
#[test]
fn with_fixed_routes_nothing_looks_ahead() {
    let Some(gpu) = gpu() else { return };
    let shape = [1, 1, 24, 8];
    for shared in [true, false] {
        let config = Config::new(3, 9).with_scale(0.5).with_shared_qk(shared);
        let layer = Layer::new(&gpu, &config, 1, 8);
        let [q, k, v] = [0, 1, 2].map(|stream| tensor(5, stream, shape));
        let plain = layer.run([&q, &k, &v]);
        let routes = plain.routes.read().unwrap();
        let last = *routes.keys[0].iter().flatten().max().unwrap();
        let mut others = [q.clone(), k.clone(), v.clone()];
        others[0].slice_mut(s![0, 0, last.., ..]).fill(7.0);
        others[1].slice_mut(s![0, 0, last.., ..]).fill(-3.0);
        // Not even a NaN comes through.
        others[2].slice_mut(s![0, 0, last.., ..]).fill(f64::NAN);
        let [q, k, v] = others.each_ref().map(|x| upload(&gpu, x));
        let out = layer.layer.attend(Inputs::new(&q, &k, &v), &plain.routes).unwrap();
        let early = |x: &Tensor| x.narrow(2, 0, last).unwrap().to_vec::<f32>().unwrap();
        let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(early(&out)), bits(early(&plain.out)), "shared {shared}");
    }
}

#[test]
fn averages_keep_their_weight_and_dead_centroids_their_place() {
    let Some(gpu) = gpu() else { return };
    let q = tensor(6, 0, [2, 1, 13, 8]);
    let on_q = upload(&gpu, &q);
    let inputs = Inputs::new(&on_q, &on_q, &on_q);
    for decay in [0.0, 0.9, 1.0] {
        let config = Config::new(3, 5).with_decay(decay);
        let Layer { layer, means, .. } = Layer::new(&gpu, &config, 1, 8);
        let routes = layer.route(inputs, None, &means).unwrap();
        let counts = layer.update(inputs, &routes, &means).unwrap().counts.to_vec::<f32>().unwrap();
        let sum: f64 = counts.iter().map(|x| f64::from(*x)).sum();
        assert!((sum - (decay * 3.0 + (1.0 - decay) * 26.0)).abs() < 1e-5, "{sum}");
    }
    // One centroid is the mean of everything.
    let config = Config::new(1, 5).with_decay(0.0);
    let Layer { layer, means, .. } = Layer::new(&gpu, &config, 1, 8);
    let routes = layer.route(inputs, None, &means).unwrap();
    let next = layer.update(inputs, &routes, &means).unwrap().means.to_vec::<f32>().unwrap();
    let mean = normed(&q).sum_axis(Axis(2)).sum_axis(Axis(0)) / 26.0;
    assert!(next.iter().zip(&mean).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5));
    // A centroid that nobody is near.
    let mut host = centroids(3, 1, 2, 8);
    let away = host.means.slice(s![0, 0, ..]).mapv(|x| -100.0 * x);
    host.means.slice_mut(s![0, 1, ..]).assign(&away);
    let first: Vec<f64> = host.means.slice(s![0, 0, ..]).to_vec();
    let near = Array4::from_shape_fn((1, 1, 9, 8), |place| first[place.3]);
    let near = upload(&gpu, &near);
    let inputs = Inputs::new(&near, &near, &near);
    let layer = Routing::new(&gpu, Config::new(2, 3).with_decay(1e-4)).unwrap();
    let means = Centroids::upload(&gpu, &host).unwrap();
    let routes = layer.route(inputs, None, &means).unwrap();
    let next = layer.update(inputs, &routes, &means).unwrap().read().unwrap();
    assert_eq!(next.means.slice(s![0, 1, ..]), away.mapv(|x| f64::from(x as f32)));
    assert_ne!(next.means.slice(s![0, 0, ..]), host.means.slice(s![0, 0, ..]));
}
