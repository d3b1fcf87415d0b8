//! The causal form: prefixes, streams, files.

use attn_core::Error;
use attn_flowformer::Config;
use attn_flowformer::reference::{State, prefill};
use ndarray::s;
use proptest::prelude::*;

use crate::support::{Data, Shape, clamp, close, close_outputs, config, square};

fn path(name: &str, seed: u64) -> std::path::PathBuf {
    let file = format!("attn-flowformer-{}-{name}-{seed}.safetensors", std::process::id());
    std::env::temp_dir().join(file)
}

fn empty(shape: Shape) -> State {
    State::new(shape.batch, shape.heads, shape.dim_qk, shape.dim_v)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Later tokens change no bit of an output.
    #[test]
    fn outputs_of_prefixes(shape in square(1), seed in any::<u64>(), clamp in clamp(), padded in any::<bool>()) {
        let mut data = Data::new(shape, seed);
        if padded {
            data = data.padded(true, seed);
        }
        let config = config(true, clamp);
        let cut = shape.keys / 2;
        let (early, whole) = (data.part(0, cut).run(&config), data.run(&config));
        let rows = s![.., .., ..cut, ..];
        prop_assert_eq!(&early.out, &whole.out.slice(rows));
        let rows = s![.., .., ..cut];
        prop_assert_eq!(&early.flows.competition, &whole.flows.competition.slice(rows));
        prop_assert_eq!(&early.flows.conserved_sink, &whole.flows.conserved_sink.slice(rows));
    }

    #[test]
    fn streams_are_the_whole_text(
        shape in square(0),
        clamp in clamp(),
        padded in any::<bool>(),
        cuts in prop::collection::vec(0.0..1.0_f64, 0..6),
        seed in any::<u64>(),
    ) {
        let mut data = Data::new(shape, seed);
        if padded {
            data = data.padded(true, seed);
        }
        let config = config(true, clamp);
        let parallel = data.run(&config);
        let (whole, want) = prefill(data.inputs(), &config).unwrap();
        close_outputs(&whole, &parallel, 1e-12);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| (cut * shape.keys as f64) as usize).collect();
        cuts.push(shape.keys);
        cuts.sort_unstable();
        let (mut state, mut start) = (empty(shape), 0);
        let bytes = state.bytes();
        for cut in cuts {
            let output = state.decode(data.part(start, cut).inputs(), &config).unwrap();
            prop_assert_eq!(&output.out, &whole.out.slice(s![.., .., start..cut, ..]));
            start = cut;
        }
        prop_assert_eq!(&state, &want);
        prop_assert_eq!(state.bytes(), bytes);
        for (b, &tokens) in state.tokens().indexed_iter() {
            let counted = data.valid_q.as_ref().map(|valid| valid.row(b).iter().filter(|x| **x).count());
            prop_assert_eq!(tokens, counted.unwrap_or(shape.keys));
        }
    }

    /// The first token has flows of 1, up to epsilon.
    #[test]
    fn the_first_token(shape in square(1), seed in any::<u64>(), clamp in clamp()) {
        let data = Data::new(shape, seed);
        let output = data.run(&config(true, clamp));
        let group = shape.heads / shape.heads_kv;
        let share = 1.0 / (1.0 + (-1.0_f64).exp());
        for b in 0..shape.batch {
            for h in 0..shape.heads {
                // Epsilon is small beside 1, and sigmoids are at least 0.01 here.
                prop_assert!((output.flows.conserved_sink[[b, h, 0]] - 1.0).abs() < 5e-4);
                prop_assert!((output.flows.conserved_source[[b, h, 0]] - 1.0).abs() < 5e-4);
                prop_assert!((output.flows.competition[[b, h, 0]] - 1.0).abs() < 1e-12);
                let v = data.v.slice(s![b, h / group, 0, ..]);
                for (out, v) in output.out.slice(s![b, h, 0, ..]).iter().zip(v) {
                    prop_assert!((out - share * v).abs() < 1e-3 * (1.0 + v.abs()));
                }
            }
        }
    }

    #[test]
    fn saved_streams_go_on_bit_for_bit(shape in square(0), seed in any::<u64>(), clamp in clamp()) {
        let data = Data::new(shape, seed).padded(true, seed);
        let config = config(true, clamp);
        let cut = shape.keys / 3;
        let mut state = empty(shape);
        state.decode(data.part(0, cut).inputs(), &config).unwrap();
        let path = path("state", seed);
        state.save(&path).unwrap();
        let mut loaded = State::load(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        prop_assert_eq!(&loaded, &state);
        let rest = data.part(cut, shape.keys);
        let want = state.decode(rest.inputs(), &config).unwrap();
        let got = loaded.decode(rest.inputs(), &config).unwrap();
        prop_assert_eq!(got, want);
        prop_assert_eq!(&loaded, &state);
    }
}

/// A long stream is the parallel form, and its state does not grow.
#[test]
fn long_streams() {
    const TOKENS: usize = 8192;
    let shape = Shape {
        batch: 1,
        heads: 1,
        heads_kv: 1,
        queries: TOKENS,
        keys: TOKENS,
        dim_qk: 8,
        dim_v: 4,
    };
    let data = Data::new(shape, 2);
    let config = Config::causal();
    let parallel = data.run(&config);
    let mut state = empty(shape);
    let bytes = state.bytes();
    let mut worst = 0.0_f64;
    for t in 0..TOKENS {
        let output = state.decode(data.part(t, t + 1).inputs(), &config).unwrap();
        let want = parallel.out.slice(s![0, 0, t, ..]);
        let error = output.out.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        worst = worst.max(if error.is_nan() { f64::INFINITY } else { error });
    }
    // The specification allows 1e-5, for f32.
    assert!(worst < 1e-12, "{worst:e}");
    assert_eq!(state.bytes(), bytes);
    close("memory", &state.memory(), &parallel.memory, 1e-9);
}

#[test]
fn files_of_something_else_are_errors() {
    let shape = Shape { batch: 1, heads: 2, heads_kv: 2, queries: 3, keys: 3, dim_qk: 2, dim_v: 2 };
    let (_, state) = prefill(Data::new(shape, 1).inputs(), &Config::causal()).unwrap();
    let path = path("damaged", 0);
    state.save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for len in [0, 8, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert!(matches!(State::load(&path), Err(Error::File { .. })), "{len} bytes");
    }
    let file = attn_core::ArrayFile::new("attn-flowformer state");
    let file = file
        .with("memory", state.memory().view())
        .with("q", state.q().view())
        .with("k_hat", state.k_hat().view())
        .with("q_hat", state.q_hat().view())
        .with("max", state.max().view())
        .with("sum", state.sum().view());
    for (file, part) in [
        (file.clone(), "no array `k`"),
        (file.clone().with("k", state.k().slice(s![.., ..1, ..])), "`k` has shape"),
        (file.clone().with("k", state.k().view()), "no array `tokens`"),
        (
            file.with("k", state.k().view()).with("tokens", ndarray::arr1(&[0.5]).view()),
            "numbers of tokens",
        ),
    ] {
        file.write(&path).unwrap();
        let message = State::load(&path).unwrap_err().to_string();
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    std::fs::remove_file(&path).unwrap();
}
