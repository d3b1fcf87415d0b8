//! Random calls.

use attn_core::testing::{Values, fill};
use attn_titans::reference::layer::{Attention, Gate, Readout, Weights};
use attn_titans::reference::{Inputs, State};
use attn_titans::{Activation, Combination, Config, LayerConfig};
use ndarray::{Array, Array1, Array2, Array3, Array4, Dimension, s};
use proptest::prelude::*;
use proptest::sample::select;

/// Normal numbers; equal for equal seeds and streams.
pub fn array<D: Dimension>(
    seed: u64,
    stream: u64,
    shape: impl ndarray::ShapeBuilder<Dim = D>,
) -> Array<f64, D> {
    let zeros = Array::<f64, D>::zeros(shape);
    let numbers = fill(seed, stream, Values::Normal, zeros.len()).into_iter().map(f64::from);
    Array::from_shape_vec(zeros.raw_dim(), numbers.collect()).unwrap()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Memories of both depths, with and without a bound of norms.
pub fn config() -> impl Strategy<Value = Config> {
    let chunk = prop_oneof![Just(1), 2..=9_usize, select(&[16, 64][..])];
    let hidden = prop_oneof![Just(None), (1..=7_usize).prop_map(Some)];
    let activation = select(&[Activation::Silu, Activation::Gelu][..]);
    let bound = prop_oneof![2 => Just(None), 1 => (0.1..3.0_f64).prop_map(Some)];
    let dims = (1..=3_usize, 1..=5_usize, 1..=5_usize);
    (dims, hidden, activation, chunk, bound).prop_map(
        |((heads, dim_qk, dim_v), hidden, activation, chunk, max_grad_norm)| {
            let mut config = Config::linear(heads, dim_qk).with_dim_v(dim_v).with_chunk(chunk);
            (config.hidden, config.activation) = (hidden, activation);
            config.max_grad_norm = max_grad_norm;
            config.coefficient = 1.5;
            config
        },
    )
}

pub fn tokens() -> impl Strategy<Value = usize> {
    prop_oneof![1 => Just(0), 6 => 1..=17_usize, 2 => select(&[31, 32, 37][..])]
}

/// A call's tensors and the state before it.
#[derive(Debug, Clone)]
pub struct Data {
    pub q: Array4<f64>,
    pub k: Array4<f64>,
    pub v: Array4<f64>,
    pub theta: Array3<f64>,
    pub eta: Array3<f64>,
    pub alpha: Array3<f64>,
    pub w: Vec<Array4<f64>>,
    pub s: Vec<Array4<f64>>,
}

impl Data {
    /// Keys of norm 1 and steps that keep memories stable; some gates are exactly 0 and 1.
    pub fn new(batch: usize, tokens: usize, config: &Config, seed: u64) -> Self {
        let Config { heads, dim_qk, dim_v, .. } = *config;
        let mut k: Array4<f64> = array(seed, 1, (batch, heads, tokens, dim_qk));
        for mut row in k.rows_mut() {
            let norm = row.dot(&row).sqrt().max(1e-3);
            row /= norm;
        }
        let gate = |stream| array(seed, stream, (batch, heads, tokens));
        let steps = 0.6 / (config.coefficient * config.chunk.min(tokens.max(1)) as f64);
        let switch = |x: f64| if x > 1.5 { 1.0 } else { sigmoid(x) };
        let close = |x: f64| if x < -1.5 { 0.0 } else { sigmoid(x) };
        let layers = |stream: u64| {
            let one = |(i, [m, n]): (usize, [usize; 2])| {
                array(seed, stream + i as u64, (batch, heads, m, n)) * 0.5
            };
            config.layers().into_iter().enumerate().map(one).collect()
        };
        Data {
            q: array(seed, 0, (batch, heads, tokens, dim_qk)),
            k,
            v: array(seed, 2, (batch, heads, tokens, dim_v)),
            theta: gate(3).mapv(|x| steps * sigmoid(x)),
            eta: gate(4).mapv(|x| 0.8 * close(x)),
            alpha: gate(5).mapv(switch),
            w: layers(6),
            s: layers(8),
        }
    }

    pub fn inputs(&self) -> Inputs<'_> {
        Inputs {
            q: self.q.view(),
            k: self.k.view(),
            v: self.v.view(),
            theta: self.theta.view(),
            eta: self.eta.view(),
            alpha: self.alpha.view(),
        }
    }

    pub fn state(&self, config: &Config) -> State {
        State::from_parts(self.w.clone(), self.s.clone(), config).unwrap()
    }

    /// Tokens `from..to` alone, with the same state.
    pub fn part(&self, from: usize, to: usize) -> Self {
        let rows = |x: &Array4<f64>| x.slice(s![.., .., from..to, ..]).to_owned();
        let gate = |x: &Array3<f64>| x.slice(s![.., .., from..to]).to_owned();
        Data {
            q: rows(&self.q),
            k: rows(&self.k),
            v: rows(&self.v),
            theta: gate(&self.theta),
            eta: gate(&self.eta),
            alpha: gate(&self.alpha),
            ..self.clone()
        }
    }
}

/// Largest difference over the largest element, or over 1.
pub fn worst<D: Dimension>(got: &Array<f64, D>, want: &Array<f64, D>) -> f64 {
    assert_eq!(got.shape(), want.shape());
    let largest = want.iter().fold(1.0_f64, |largest, x| largest.max(x.abs()));
    let error = |(a, b): (&f64, &f64)| match (a - b).abs() {
        error if error.is_finite() => error / largest,
        _ => f64::INFINITY,
    };
    got.iter().zip(want).map(error).fold(0.0, f64::max)
}

pub fn close<D: Dimension>(what: &str, got: &Array<f64, D>, want: &Array<f64, D>, bound: f64) {
    let worst = worst(got, want);
    assert!(worst <= bound, "{what}: {worst:e} above {bound:e}");
}

pub fn close_layers(what: &str, got: &[Array4<f64>], want: &[Array4<f64>], bound: f64) {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).for_each(|(got, want)| close(what, got, want, bound));
}

pub fn close_states(got: &State, want: &State, bound: f64) {
    assert_eq!(got.position(), want.position());
    close_layers("w", got.w(), want.w(), bound);
    close_layers("s", got.s(), want.s(), bound);
    close_layers("chunk_start", got.chunk_start(), want.chunk_start(), bound);
}

pub fn bits<D: Dimension>(x: &Array<f64, D>) -> Vec<u64> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// All ways to build a layer, over segments or windows of `size`.
pub fn combinations(size: usize) -> [Combination; 5] {
    [
        Combination::Alone,
        Combination::Context { segment: size },
        Combination::LiteralContext { segment: size },
        Combination::Gate { window: size },
        Combination::Layer { window: size },
    ]
}

/// A layer of two heads of 3 elements, with convolutions of `kernel` rows where it is not 0.
pub fn layer(
    combination: Combination,
    kernel: usize,
    persistent: usize,
    hidden: Option<usize>,
    seed: u64,
) -> (Weights, LayerConfig) {
    let (heads, dim, d_model) = (2, 3, 6);
    let mut memory = Config::linear(heads, dim).with_chunk(3);
    memory.hidden = hidden;
    let matrix = |stream: u64, m, n| -> Array2<f64> { array(seed, 100 + stream, (m, n)) * 0.6 };
    let gain = |stream: u64| -> Array1<f64> { 1.0 + array(seed, 100 + stream, d_model) * 0.2 };
    let gate = |stream: u64| Gate {
        g: matrix(stream, heads, d_model),
        b: array(seed, 101 + stream, heads),
    };
    let with = |names: &str| {
        let name = match combination {
            Combination::Alone => "alone",
            Combination::Gate { .. } => "gate",
            Combination::Layer { .. } => "layer",
            _ => "context",
        };
        names.contains(name)
    };
    let square = |stream| matrix(stream, d_model, d_model);
    let layers = memory.layers().into_iter().enumerate();
    let weights = Weights {
        projections: [square(0), square(1), square(2)],
        conv: (kernel > 0).then(|| [3, 4, 5].map(|stream| matrix(stream, kernel, d_model))),
        gates: [gate(6), gate(8), gate(10)],
        memory: layers
            .map(|(i, [m, n])| array(seed, 120 + i as u64, (heads, m, n)) * 0.5)
            .collect(),
        persistent: matrix(13, persistent, d_model),
        attention: with("context gate layer").then(|| Attention {
            q: square(14),
            k: square(15),
            v: square(16),
            o: square(17),
        }),
        readout: with("alone gate layer").then(|| Readout {
            gate: square(18),
            out: square(19),
            gain: gain(20),
        }),
        norms: with("context gate").then(|| [gain(21), gain(22)]),
    };
    (weights, LayerConfig::new(memory, combination))
}
