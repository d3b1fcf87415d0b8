//! What the README says of speed and of recall. Times are CPU seconds of the process over its cores on a software
//! driver. Names on the command line choose among `calls`, `lengths`, `streams` and `recall`.

use attn_core::Mask;
use attn_core::dense::Config as Dense;
use attn_core::testing::{Values, fill};
use attn_titans::bench::flops_a_chunk;
use attn_titans::ndarray::{Array, Array4, ArrayView4, Axis, Dimension, ShapeBuilder};
use attn_titans::{Config, Error, Gpu, Inputs, State, Tensor, Titans, reference};
use attn_wgpu::attention::{self, Attention};
use attn_wgpu::bench::best_seconds;
use attn_wgpu::linear_attention::{self, LinearAttention};
use attn_wgpu::matmul::matmul;

const DIM: usize = 64;
const HIDDEN: usize = 256;

/// Tokens that a stream is timed over.
const STEPS: usize = 100;

/// A table by its name.
type Part = (&'static str, fn(&Gpu) -> Result<(), Error>);

fn main() -> Result<(), Error> {
    let gpu = match Gpu::new() {
        Err(Error::NoAdapter { .. }) => {
            println!("no GPU and no software driver on this machine");
            return Ok(());
        }
        gpu => gpu?,
    };
    println!("{}; dims {DIM}, {HIDDEN} between two layers", gpu.adapter());
    let chosen: Vec<String> = std::env::args().skip(1).collect();
    let parts: [Part; 4] =
        [("calls", calls), ("lengths", lengths), ("streams", streams), ("recall", recall)];
    for (name, part) in parts {
        if chosen.is_empty() || chosen.iter().any(|one| one == name) {
            part(&gpu)?;
        }
    }
    Ok(())
}

fn numbers<D: Dimension>(
    seed: u64,
    shape: impl ShapeBuilder<Dim = D>,
    scale: f64,
) -> Array<f64, D> {
    let zeros = Array::<f64, D>::zeros(shape);
    let all = fill(1, seed, Values::Normal, zeros.len()).into_iter();
    let all = all.map(|x| scale * f64::from(x)).collect();
    Array::from_shape_vec(zeros.raw_dim(), all).unwrap_or(zeros)
}

fn upload<D: Dimension>(gpu: &Gpu, x: &Array<f64, D>) -> Result<Tensor, Error> {
    Tensor::from_array(gpu, &x.mapv(|x| x as f32).view().into_dyn())
}

fn config(depth: usize, heads: usize, chunk: usize) -> Config {
    let config = match depth {
        1 => Config::linear(heads, DIM),
        _ => Config::deep(heads, DIM, HIDDEN),
    };
    config.with_chunk(chunk)
}

/// A call on memories that stay stable.
struct Case {
    titans: Titans,
    /// Queries, keys, values; steps, momentum and what is forgotten.
    tensors: Vec<Tensor>,
    state: State,
}

impl Case {
    fn new(gpu: &Gpu, config: Config, tokens: usize) -> Result<Case, Error> {
        let (heads, chunk) = (config.heads, config.chunk);
        let rows = |seed| numbers(seed, (1, heads, tokens, DIM), (DIM as f64).powf(-0.5));
        let gate = |value: f64| Array::from_elem((1, heads, tokens), value);
        let gates = [0.2 / chunk as f64, 0.5, 0.02].map(|value| upload(gpu, &gate(value)));
        let tensors = [1, 2, 3].map(|seed| upload(gpu, &rows(seed)));
        let layers = config.layers().into_iter().enumerate();
        let learned: Vec<_> = layers
            .map(|(i, [m, n])| numbers(9 + i as u64, (heads, m, n), (m as f64).powf(-0.5)))
            .collect();
        let views: Vec<_> = learned.iter().map(|w| w.view()).collect();
        let state = State::upload(gpu, &reference::State::new(&views, 1, &config)?)?;
        let tensors = tensors.into_iter().chain(gates).collect::<Result<_, _>>()?;
        Ok(Case { titans: Titans::new(gpu, config)?, tensors, state })
    }

    fn forward(&self) -> Result<(), Error> {
        let [q, k, v, theta, eta, alpha] = &self.tensors[..] else { return Ok(()) };
        self.titans.forward(Inputs { q, k, v, theta, eta, alpha }, &self.state).map(drop)
    }

    /// One token.
    fn token(&self, t: usize) -> Result<Vec<Tensor>, Error> {
        self.tensors.iter().map(|x| x.narrow(2, t, 1)).collect()
    }
}

/// Chunks against single tokens, by depth and heads.
fn calls(gpu: &Gpu) -> Result<(), Error> {
    println!(
        "depth   heads   chunk   us a token and head   GFLOP/s   products of these shapes, GFLOP/s"
    );
    for depth in [1, 2] {
        for heads in [1, 8] {
            for chunk in [1, 16, 64] {
                let config = config(depth, heads, chunk);
                let tokens = if chunk == 1 { 64 } else { 512 };
                let rate = flops_a_chunk(&config) / chunk as f64;
                let products = products(gpu, &config)?;
                let case = Case::new(gpu, config, tokens)?;
                let seconds = best_seconds(gpu, &mut || case.forward())? / (heads * tokens) as f64;
                let (micros, rate) = (1e6 * seconds, 1e-9 * rate / seconds);
                println!("{depth:5} {heads:7} {chunk:7} {micros:21.2} {rate:9.1} {products:15.1}");
            }
        }
    }
    Ok(())
}

/// Rate of `attn_wgpu::matmul` on what the layers multiply: errors and reads, and updates.
fn products(gpu: &Gpu, config: &Config) -> Result<f64, Error> {
    let (heads, rows) = (config.heads, config.chunk);
    let (mut seconds, mut work) = (0.0, 0.0);
    for [m, n] in config.layers() {
        let x = upload(gpu, &numbers(1, (1, heads, rows, m), 1.0))?;
        let w = upload(gpu, &numbers(2, (1, heads, m, n), 1.0))?;
        let g = upload(gpu, &numbers(3, (1, heads, rows, n), 1.0))?;
        let across = x.permute(&[0, 1, 3, 2])?;
        seconds += 3.0 * best_seconds(gpu, &mut || matmul(&x, &w).map(drop))?;
        seconds += 2.0 * best_seconds(gpu, &mut || matmul(&across, &g).map(drop))?;
        work += 10e-9 * (heads * rows * m * n) as f64;
    }
    Ok(work / seconds)
}

/// One head, by length, beside dense causal attention and linear attention with decay.
fn lengths(gpu: &Gpu) -> Result<(), Error> {
    println!("tokens   depth 1, us a token   depth 2   lightning   dense");
    for tokens in [1 << 10, 1 << 12, 1 << 14, 1 << 16] {
        let us = |seconds: f64| 1e6 * seconds / tokens as f64;
        let mut memories = [0.0; 2];
        let mut given = Vec::new();
        for (time, depth) in memories.iter_mut().zip([1, 2]) {
            let case = Case::new(gpu, config(depth, 1, 64), tokens)?;
            *time = us(best_seconds(gpu, &mut || case.forward())?);
            given = case.tensors;
        }
        let [q, k, v, ..] = &given[..] else { return Ok(()) };
        let linear = LinearAttention::new(gpu, &[0.02])?;
        let inputs = linear_attention::Inputs::new(q, k, v);
        let lightning = us(best_seconds(gpu, &mut || linear.forward(inputs).map(drop))?);
        let dense = Attention::new(gpu, Dense::new().with_mask(Mask::Causal))?;
        let inputs = attention::Inputs::new(q, k, v);
        let by_pairs = us(best_seconds(gpu, &mut || dense.forward(inputs).map(drop))?);
        let [one, two] = memories;
        println!("{tokens:6} {one:21.2} {two:9.2} {lightning:11.2} {by_pairs:7.2}");
    }
    Ok(())
}

/// Single tokens behind so many others.
fn streams(gpu: &Gpu) -> Result<(), Error> {
    println!("tokens before   depth 1, us a token   depth 2   bytes at depth 1   depth 2");
    for before in [0, 1 << 10, 1 << 14] {
        let (mut times, mut bytes) = ([0.0; 2], [0; 2]);
        for (i, depth) in [1, 2].into_iter().enumerate() {
            let case = Case::new(gpu, config(depth, 1, 16), before + STEPS)?;
            let first: Vec<_> =
                case.tensors.iter().map(|x| x.narrow(2, 0, before)).collect::<Result<_, _>>()?;
            let mut state = case.state.clone();
            if let [q, k, v, theta, eta, alpha] = &first[..] {
                case.titans.decode(&mut state, Inputs { q, k, v, theta, eta, alpha })?;
            }
            let mut decoder = case.titans.decoder(&state)?;
            bytes[i] = decoder.bytes();
            times[i] = best_seconds(gpu, &mut || {
                for t in before..before + STEPS {
                    if let [q, k, v, theta, eta, alpha] = &case.token(t)?[..] {
                        decoder.decode(Inputs { q, k, v, theta, eta, alpha })?;
                    }
                }
                Ok(())
            })? / STEPS as f64;
        }
        let ([one, two], [small, large]) = (times.map(|time| 1e6 * time), bytes);
        println!("{before:13} {one:21.1} {two:9.1} {small:18} {large:9}");
    }
    Ok(())
}

/// Pairs that a memory of depth 1 without any training stores and is then asked for: norm of the errors over that
/// of the values. Beside it the sum of `k^T v`, which is what attention without softmax keeps.
fn recall(gpu: &Gpu) -> Result<(), Error> {
    println!("pairs   keys        chunk   memory   sum");
    for (pairs, orthonormal, chunk) in
        [(16, false, 1), (32, false, 1), (64, false, 1), (32, false, 16), (64, true, 1)]
    {
        let trials = 8;
        let v = numbers(1, (1, trials, pairs, DIM), 1.0);
        let mut k: Array4<f64> = numbers(2, (1, trials, pairs, DIM), 1.0);
        for mut row in k.rows_mut() {
            row /= row.dot(&row).sqrt();
        }
        if orthonormal {
            k.indexed_iter_mut().for_each(|((_, _, t, d), x)| *x = f64::from(u8::from(t == d)));
        }
        let memory = recalled(gpu, &k, &v, chunk)?;
        let mut sums = v.clone();
        for ((k, v), mut out) in k
            .index_axis(Axis(0), 0)
            .outer_iter()
            .zip(v.index_axis(Axis(0), 0).outer_iter())
            .zip(sums.index_axis_mut(Axis(0), 0).outer_iter_mut())
        {
            out.assign(&k.dot(&k.t().dot(&v)));
        }
        let error = |got: ArrayView4<'_, f64>| {
            let square = |x: f64| x * x;
            (got.iter().zip(&v).map(|(a, b)| square(a - b)).sum::<f64>()
                / v.iter().map(|&b| square(b)).sum::<f64>())
            .sqrt()
        };
        let name = if orthonormal { "orthonormal" } else { "random" };
        let (memory, sums) = (error(memory.view()), error(sums.view()));
        println!("{pairs:5}   {name:11} {chunk:5} {memory:8.3} {sums:5.3}");
    }
    Ok(())
}

/// Stores all pairs with steps of 1, then reads with all keys and steps of 0.
fn recalled(
    gpu: &Gpu,
    k: &Array4<f64>,
    v: &Array4<f64>,
    chunk: usize,
) -> Result<Array4<f64>, Error> {
    let (_, heads, pairs, _) = k.dim();
    let config = Config::linear(heads, DIM).with_coefficient(1.0).with_chunk(chunk);
    let zeros = Array::zeros((heads, DIM, DIM));
    let state = reference::State::new(&[zeros.view()], 1, &config)?;
    let titans = Titans::new(gpu, config)?;
    let mut state = State::upload(gpu, &state)?;
    let gate = |value: f64| upload(gpu, &Array::from_elem((1, heads, pairs), value));
    let (k, v, one, zero) = (upload(gpu, k)?, upload(gpu, v)?, gate(1.0)?, gate(0.0)?);
    let inputs = Inputs { q: &k, k: &k, v: &v, theta: &one, eta: &zero, alpha: &zero };
    titans.decode(&mut state, inputs)?;
    let y = titans.decode(&mut state, Inputs { theta: &zero, ..inputs })?;
    let y = y.to_array::<f32>()?.mapv(f64::from);
    let shape = || attn_core::Error::shape("y", "four extents", k.shape());
    Ok(y.into_dimensionality().map_err(|_| shape())?)
}
