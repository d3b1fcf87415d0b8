//! Token by token on the device.

use attn_routing::reference::{Inputs, forward};
use attn_routing::{Centroids, Config, Gpu, Routing, State, Tensor};
use attn_wgpu::testing::gpu;
use ndarray::{Array4, Axis, s};

use crate::support::{centroids, close, download, tensor, upload};

fn part(x: &Array4<f64>, from: usize, to: usize) -> Array4<f64> {
    x.slice(s![.., .., from..to, ..]).to_owned()
}

fn decode(
    gpu: &Gpu,
    layer: &Routing,
    state: &mut State,
    means: &Centroids,
    qkv: &[Array4<f64>; 3],
    (from, to): (usize, usize),
) -> Tensor {
    let [q, k, v] = qkv.each_ref().map(|x| upload(gpu, &part(x, from, to)));
    layer.decode(state, attn_routing::Inputs::new(&q, &k, &v), means).unwrap()
}

/// Acceptance (d): 64 steps, some of them several tokens, are the last rows of every prefix.
#[test]
fn smoke_a_stream_is_its_prefixes() {
    let Some(gpu) = gpu() else { return };
    for (shared, epsilon) in [(true, 0.0), (false, 0.01)] {
        let (tokens, dims) = (64, [8, 5]);
        let qkv = [(0, dims[0]), (1, dims[0]), (2, dims[1])]
            .map(|(stream, dim)| tensor(11, stream, [2, 2, tokens, dim]));
        let mut config = Config::new(4, 7).with_scale(0.5).with_shared_qk(shared);
        config.epsilon = epsilon;
        let means = centroids(11, 2, 4, dims[0]);
        let on_means = Centroids::upload(&gpu, &means).unwrap();
        let layer = Routing::new(&gpu, config.clone()).unwrap();
        let mut state = layer.state(2, 2, dims[0], dims[1]).unwrap();
        let bytes = state.bytes();
        let mut start = 0;
        for len in [1, 1, 5, 1, 0, 9, 30, 17] {
            let range = (start, start + len);
            let out = download(&decode(&gpu, &layer, &mut state, &on_means, &qkv, range));
            for new in 0..len {
                let end = start + new + 1;
                let [q, k, v] = qkv.each_ref().map(|x| part(x, 0, end));
                let inputs = Inputs::new(q.view(), k.view(), v.view());
                let want = forward(inputs, None, &means, &config).unwrap().out;
                let (got, want) = (part(&out, new, new + 1), part(&want, end - 1, end));
                close(&format!("token {end}"), &got, &want, 1e-5);
            }
            start += len;
        }
        assert_eq!((state.len(), state.bytes(), state.is_empty()), (64, bytes, false));
    }
}

/// Of tokens that are equally near, the earlier ones stay.
#[test]
fn equal_tokens_come_in_order() {
    let Some(gpu) = gpu() else { return };
    let rows: Vec<usize> = (0..24).map(|token| token * token % 5 % 3).collect();
    let q = tensor(13, 0, [1, 2, 3, 8]).select(Axis(2), &rows);
    let v = tensor(13, 2, [1, 2, 24, 8]);
    let config = Config::new(3, 4).with_scale(0.5);
    let means = centroids(13, 2, 3, 8);
    let on_means = Centroids::upload(&gpu, &means).unwrap();
    let layer = Routing::new(&gpu, config.clone()).unwrap();
    let mut state = layer.state(1, 2, 8, 8).unwrap();
    let all = [q.clone(), q, v];
    let out = download(&decode(&gpu, &layer, &mut state, &on_means, &all, (0, 24)));
    for end in 1..=24 {
        let [q, k, v] = all.each_ref().map(|x| part(x, 0, end));
        let inputs = Inputs::new(q.view(), k.view(), v.view());
        let want = forward(inputs, None, &means, &config).unwrap();
        close("stream", &part(&out, end - 1, end), &part(&want.out, end - 1, end), 1e-5);
        let [q, k, v] = [q, k, v].map(|x| upload(&gpu, &x));
        let inputs = attn_routing::Inputs::new(&q, &k, &v);
        let routes = layer.route(inputs, None, &on_means).unwrap();
        assert_eq!(routes.read().unwrap(), want.routes, "{end}");
    }
}

#[test]
fn forks_go_their_own_ways() {
    let Some(gpu) = gpu() else { return };
    let qkv = [0, 1, 2].map(|stream| tensor(12, stream, [1, 2, 20, 8]));
    let others = [5, 6, 7].map(|stream| tensor(12, stream, [1, 2, 20, 8]));
    let layer = Routing::new(&gpu, Config::new(3, 4).with_scale(0.5)).unwrap();
    let means = Centroids::upload(&gpu, &centroids(12, 2, 3, 8)).unwrap();
    let mut state = layer.state(1, 2, 8, 8).unwrap();
    decode(&gpu, &layer, &mut state, &means, &qkv, (0, 11));
    let mut fork = state.fork().unwrap();
    let want = decode(&gpu, &layer, &mut state.fork().unwrap(), &means, &qkv, (11, 20));
    decode(&gpu, &layer, &mut fork, &means, &others, (11, 20));
    let got = decode(&gpu, &layer, &mut state, &means, &qkv, (11, 20));
    assert_eq!(got.to_vec::<f32>().unwrap(), want.to_vec::<f32>().unwrap());
    let other = decode(&gpu, &layer, &mut fork, &means, &qkv, (0, 1));
    let same = decode(&gpu, &layer, &mut state, &means, &qkv, (0, 1));
    assert_ne!(other.to_vec::<f32>().unwrap(), same.to_vec::<f32>().unwrap());
}

#[test]
fn what_does_not_fit_a_state_is_refused() {
    let Some(gpu) = gpu() else { return };
    let layer = |config: Config| Routing::new(&gpu, config).unwrap();
    let own = layer(Config::new(3, 4));
    let error = layer(Config::new(3, 4).bidirectional()).state(1, 2, 8, 8).unwrap_err();
    assert!(error.to_string().contains("`causal` is false"), "{error}");
    let means = Centroids::upload(&gpu, &centroids(1, 2, 3, 8)).unwrap();
    let x = upload(&gpu, &tensor(1, 0, [1, 2, 1, 8]));
    let inputs = attn_routing::Inputs::new(&x, &x, &x);
    for (mut state, part) in [
        (own.state(2, 2, 8, 8).unwrap(), "batch 2, 2 heads"),
        (own.state(1, 2, 8, 4).unwrap(), "dims [8, 4]"),
        (layer(Config::new(3, 5)).state(1, 2, 8, 8).unwrap(), "`state` is another one's"),
    ] {
        let error = own.decode(&mut state, inputs, &means).unwrap_err().to_string();
        assert!(error.contains(part), "{error:?} lacks {part:?}");
        assert!(state.is_empty());
    }
}
