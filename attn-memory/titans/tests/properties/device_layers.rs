//! Layers on a device against the reference.

use attn_titans::layer::{Layer, State};
use attn_titans::reference::layer::{self, Weights};
use attn_titans::{Combination, Config, Gpu, LayerConfig, Tensor};
use attn_wgpu::testing::gpu;
use attn_wgpu::{DType, ops};
use ndarray::{Array, Array2, Array3, Axis, Dimension, concatenate, s};
use proptest::prelude::*;

use crate::support::{array, bits, close, combinations, layer, worst};

/// Of the specification, relative to the largest element.
const OUT: f64 = 2e-5;
/// What a result may differ by more, in units of what it moves by when every token moves by a rounding:
/// norms divide rows that may be near 0, and there are some twenty roundings between tokens and result.
const SENSITIVITY: f64 = 32.0;

fn upload(gpu: &Gpu, x: &Array3<f64>) -> Tensor {
    Tensor::from_array(gpu, &x.mapv(|x| x as f32).view().into_dyn()).unwrap()
}

fn download(x: &Tensor) -> Array3<f64> {
    x.to_array::<f32>().unwrap().mapv(f64::from).into_dimensionality().unwrap()
}

/// Numbers as a device gets them.
fn tokens(seed: u64, shape: (usize, usize, usize)) -> Array3<f64> {
    array(seed, 0, shape).mapv(|x: f64| f64::from(x as f32))
}

/// What the reference gives, and what it gives for tokens that moved by a rounding of f32.
fn references(x: &Array3<f64>, weights: &Weights, config: &LayerConfig) -> [layer::Output; 2] {
    let noise: Array3<f64> = array(99, 0, x.dim());
    let moved = x * &noise.mapv(|noise| 1.0 + noise * f64::from(f32::EPSILON) / 2.0);
    [x, &moved].map(|x| layer::forward(x.view(), weights, config).unwrap())
}

fn check<D: Dimension>(what: &str, got: &Array<f64, D>, [want, moved]: [&Array<f64, D>; 2]) {
    close(what, got, want, OUT + SENSITIVITY * worst(moved, want));
}

/// Weights as a device gets them.
fn rounded(mut weights: Weights) -> Weights {
    for (_, mut array) in weights.named_mut() {
        array.mapv_inplace(|x| f64::from(x as f32));
    }
    weights
}

/// `x` in calls of these many tokens, again and again; the outputs side by side, and the last state.
fn stream(layer: &Layer, x: &Array3<f64>, calls: &[usize]) -> (Array3<f64>, State) {
    let mut state = layer.start(x.dim().0).unwrap();
    let (mut parts, mut from) = (Vec::new(), 0);
    for count in calls.iter().cycle() {
        let to = x.dim().1.min(from + count);
        let part = upload(layer.gpu(), &x.slice(s![.., from..to, ..]).to_owned());
        parts.push(download(&layer.decode(&mut state, &part).unwrap()));
        from = to;
        if from == x.dim().1 {
            break;
        }
    }
    let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
    (concatenate(Axis(1), &views).unwrap(), state)
}

fn path(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("attn-titans-layer-{}-{name}", std::process::id()))
}

/// A layer of any combination and extents, with its weights.
fn any_layer() -> impl Strategy<Value = (Weights, LayerConfig)> {
    let sizes = (0..5_usize, 1..8_usize, 0..5_usize, 0..4_usize);
    let dims = (1..4_usize, 1..6_usize, 1..6_usize, 1..10_usize);
    let hidden = prop_oneof![Just(None), Just(Some(5))];
    (sizes, dims, hidden, any::<u64>()).prop_map(
        |((which, size, kernel, persistent), (heads, dim_qk, dim_v, d_model), hidden, seed)| {
            let mut memory = Config::linear(heads, dim_qk).with_dim_v(dim_v).with_chunk(3);
            memory.hidden = hidden;
            let combination = combinations(size)[which].clone();
            let d_model = match combination {
                Combination::Context { .. } | Combination::LiteralContext { .. } => heads * dim_v,
                _ => d_model,
            };
            let config = LayerConfig::new(memory, combination);
            let mut weights = Weights::new(&config, d_model, kernel, persistent).unwrap();
            // Maps that do not grow: what the memory answers comes back to it.
            let scale = 0.8 / (d_model.max(heads * dim_v) as f64).sqrt();
            for (i, (_, mut w)) in weights.named_mut().into_iter().enumerate() {
                w += &(array(seed, i as u64, w.raw_dim()) * scale);
            }
            (rounded(weights), config)
        },
    )
}

fn leaks(config: &LayerConfig) -> bool {
    matches!(config.combination, Combination::LiteralContext { .. })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// One call, and calls that cut it anywhere, also within convolutions, chunks, windows and segments.
    #[test]
    fn smoke_a_device_computes_layers_as_the_reference(
        (weights, config) in any_layer(),
        batch in 1..3_usize,
        length in 0..20_usize,
        calls in prop::collection::vec(1..7_usize, 1..4),
        seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let x = tokens(seed, (batch, length, weights.d_model()));
        let [want, moved] = references(&x, &weights, &config);
        let layer = Layer::new(&gpu, config.clone(), &weights).unwrap();
        let got = layer.forward(&upload(&gpu, &x), None).unwrap();
        check("out", &download(&got.out), [&want.out, &moved.out]);
        check("memory", &download(&got.memory), [&want.memory, &moved.memory]);
        prop_assert_eq!(got.attention.is_some(), want.attention.is_some());
        if let (Some(want), Some(moved)) = (&want.attention, &moved.attention) {
            check("attention", &download(got.attention.as_ref().unwrap()), [want, moved]);
        }
        prop_assert_eq!(got.state.position(), length);
        let state = got.state.memory().download(&config.memory).unwrap();
        for (i, got) in state.w().iter().enumerate() {
            check("w", got, [&want.state.w()[i], &moved.state.w()[i]]);
        }
        if !leaks(&config) {
            let (out, last) = stream(&layer, &x, &calls);
            check("stream", &out, [&want.out, &moved.out]);
            prop_assert_eq!(last.bytes(), got.state.bytes());
        }
    }

    /// No bit of an output depends on later tokens or on other sequences, not even where they are damaged.
    #[test]
    fn layers_on_a_device_are_causal(
        (weights, config) in any_layer(),
        length in 1..14_usize,
        at in 0.0..1.0_f64,
        edit in prop_oneof![Just(3.0), Just(f64::NAN)],
        seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let at = (at * length as f64) as usize;
        let x = tokens(seed, (2, length, weights.d_model()));
        let mut edited = x.clone();
        edited.slice_mut(s![0, at.., ..]).fill(edit);
        let layer = Layer::new(&gpu, config.clone(), &weights).unwrap();
        let run = |x: &Array3<f64>| download(&layer.forward(&upload(&gpu, x), None).unwrap().out);
        let (got, want) = (run(&edited), run(&x));
        let early = |x: &Array3<f64>| bits(&x.slice(s![..1, ..at, ..]).to_owned());
        prop_assert!(leaks(&config) || early(&got) == early(&want));
        let other = |x: &Array3<f64>| bits(&x.slice(s![1.., .., ..]).to_owned());
        prop_assert_eq!(other(&got), other(&want));
        // Alone, and once more.
        let alone = run(&x.slice(s![1.., .., ..]).to_owned());
        prop_assert_eq!(bits(&alone), other(&want));
        prop_assert_eq!(bits(&run(&x)), bits(&want));
    }

    /// A state that went through a file goes on bit for bit as it would have.
    #[test]
    fn streams_may_be_saved(
        (weights, config) in any_layer(),
        before in 0..12_usize,
        seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let before = match config.combination {
            Combination::LiteralContext { segment } => before / segment * segment,
            _ => before,
        };
        let layer = Layer::new(&gpu, config, &weights).unwrap();
        let part = |stream: u64, count: usize| {
            upload(&gpu, &tokens(seed ^ stream, (2, count, weights.d_model())))
        };
        let state = layer.forward(&part(1, before), None).unwrap().state;
        let path = path(&format!("{seed}"));
        state.save(&path, &layer).unwrap();
        let loaded = State::load(&path, &layer).unwrap();
        std::fs::remove_file(&path).unwrap();
        prop_assert_eq!((loaded.position(), loaded.bytes()), (before, state.bytes()));
        let next = part(2, 5);
        let go = |state: &State| download(&layer.forward(&next, Some(state)).unwrap().out);
        prop_assert_eq!(bits(&go(&loaded)), bits(&go(&state)));
    }
}

/// 2,000 tokens in calls of all sizes, with a state that stops growing.
#[test]
fn long_streams_of_layers() {
    let Some(gpu) = gpu() else { return };
    for combination in combinations(16) {
        let (weights, config) = layer(combination, 4, 2, Some(4), 3);
        if leaks(&config) {
            continue;
        }
        let weights = rounded(weights);
        let x = tokens(4, (1, 2000, weights.d_model()));
        let layer = Layer::new(&gpu, config.clone(), &weights).unwrap();
        let (_, early) = stream(&layer, &x.slice(s![.., ..32, ..]).to_owned(), &[11]);
        let (out, last) = stream(&layer, &x, &[1, 2, 64, 5, 200, 17, 1, 33]);
        let [want, moved] = references(&x, &weights, &config);
        check(&format!("{:?}", config.combination), &out, [&want.out, &moved.out]);
        assert_eq!((last.position(), last.bytes()), (2000, early.bytes()));
    }
}

/// The literal form of memory as context lets a later token change earlier outputs of its segment, and no
/// others.
#[test]
fn the_literal_form_leaks_on_a_device() {
    let Some(gpu) = gpu() else { return };
    let (weights, config) = layer(Combination::LiteralContext { segment: 4 }, 0, 1, Some(4), 5);
    let layer = Layer::new(&gpu, config, &weights).unwrap();
    let x = tokens(5, (1, 8, weights.d_model()));
    let mut edited = x.clone();
    edited.slice_mut(s![0, 7, ..]).fill(3.0);
    let [got, want] =
        [&edited, &x].map(|x| download(&layer.forward(&upload(&gpu, x), None).unwrap().out));
    let part = |x: &Array3<f64>, from, to| x.slice(s![.., from..to, ..]).to_owned();
    assert_eq!(bits(&part(&got, 0, 4)), bits(&part(&want, 0, 4)));
    for t in 4..7 {
        let change = part(&got, t, t + 1) - part(&want, t, t + 1);
        assert!(change.iter().any(|x| x.abs() > 1e-4), "token {t}");
    }
}

/// Halves are storage: the result is that of the same numbers in f32, rounded.
#[test]
fn tokens_in_half_types() {
    let Some(gpu) = gpu() else { return };
    for combination in combinations(4) {
        let (weights, config) = layer(combination, 2, 1, None, 7);
        let layer = Layer::new(&gpu, config, &weights).unwrap();
        let x = upload(&gpu, &tokens(8, (2, 9, weights.d_model())));
        for dtype in [DType::F16, DType::BF16] {
            let half = ops::convert(&x, dtype).unwrap();
            let got = layer.forward(&half, None).unwrap();
            let single = ops::convert(&half, DType::F32).unwrap();
            let want = layer.forward(&single, None).unwrap();
            let want = ops::convert(&want.out, dtype).unwrap();
            assert_eq!((got.out.dtype(), got.memory.dtype()), (dtype, dtype));
            let bits = |x: &Tensor| bits(&download(&ops::convert(x, DType::F32).unwrap()));
            assert_eq!(bits(&got.out), bits(&want));
        }
    }
}

/// Without tokens or sequences there is nothing to compute, and a state stays where it is.
#[test]
fn layers_without_tokens_on_a_device() {
    let Some(gpu) = gpu() else { return };
    for combination in combinations(3) {
        let (weights, config) = layer(combination, 2, 1, Some(4), 1);
        let layer = Layer::new(&gpu, config, &weights).unwrap();
        for (batch, length) in [(0, 4), (2, 0), (0, 0)] {
            let x = upload(&gpu, &Array3::zeros((batch, length, weights.d_model())));
            let output = layer.forward(&x, None).unwrap();
            assert_eq!(output.out.shape(), x.shape());
            assert_eq!((output.state.batch(), output.state.position()), (batch, length));
        }
    }
}

fn message<T>(result: Result<T, attn_titans::Error>) -> String {
    result.err().map_or_else(|| "no error".to_owned(), |error| error.to_string())
}

#[test]
fn what_layers_on_a_device_refuse() {
    let Some(gpu) = gpu() else { return };
    let gate = Combination::Gate { window: 3 };
    let (weights, config) = layer(gate, 2, 1, Some(4), 1);
    let new = |change: fn(&mut Weights, &mut LayerConfig)| {
        let (mut weights, mut config) = (weights.clone(), config.clone());
        change(&mut weights, &mut config);
        message(Layer::new(&gpu, config, &weights))
    };
    let made = Layer::new(&gpu, config.clone(), &weights).unwrap();
    let start = made.start(1).unwrap();
    let tokens = |batch, length, d_model| upload(&gpu, &Array3::zeros((batch, length, d_model)));
    let x = tokens(1, 2, 6);
    let numbers = Tensor::from_slice(&gpu, &[0_u32; 12], &[1, 2, 6]).unwrap();
    let other = |combination| {
        let (weights, config) = layer(combination, 2, 1, Some(4), 1);
        Layer::new(&gpu, config, &weights).unwrap()
    };
    let literal = other(Combination::LiteralContext { segment: 4 });
    let inside = literal.forward(&x, None).unwrap().state;
    let alone = other(Combination::Alone).start(1).unwrap();
    let behind = made.forward(&x, None).unwrap().state;
    let path = path("refused");
    behind.save(&path, &made).unwrap();
    let wide = other(Combination::Gate { window: 2 });
    for (got, part) in [
        (new(|weights, _| weights.projections[1] = Array2::zeros((5, 6))), "`w_k` has shape"),
        (new(|weights, _| weights.attention = None), "`attention` is none, expected some"),
        (new(|_, config| config.combination = Combination::Gate { window: 0 }), "`window` is 0"),
        (message(made.forward(&tokens(1, 2, 5), None)), "`x` has shape [1, 2, 5]"),
        (message(made.forward(&numbers, None)), "`x` has element type u32"),
        (message(made.forward(&tokens(2, 2, 6), Some(&start))), "`state` has shape"),
        (message(made.forward(&x, Some(&alone))), "`state` is"),
        (message(literal.forward(&x, Some(&inside))), "a state between two segments"),
        (message(State::load(&path, &wide)), "`seen_k` has shape [1, 2, 2, 3]"),
        (message(alone.save(&path, &made)), "`state` is"),
        (message(Layer::load(&gpu, config.clone(), &path, "")), "no array `w_q`"),
    ] {
        assert!(got.contains(part), "{got}: {part}");
    }
    let bytes = std::fs::read(&path).unwrap();
    for end in (0..bytes.len()).step_by(101) {
        std::fs::write(&path, &bytes[..end]).unwrap();
        assert!(State::load(&path, &made).is_err(), "{end} bytes");
    }
    std::fs::remove_file(&path).unwrap();
}
