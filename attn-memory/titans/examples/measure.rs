//! What the README says of speed: the forward pass by chunk, depth and heads, and what its kernels take of it.
//! Times are CPU seconds of the process over its cores on a software driver.

use attn_core::testing::{Values, fill};
use attn_titans::ndarray::{Array, Dimension, ShapeBuilder};
use attn_titans::{Config, Error, Gpu, Inputs, State, Tensor, Titans, reference};
use attn_wgpu::bench::best_seconds;
use attn_wgpu::matmul::matmul;

const DIM: usize = 64;
const HIDDEN: usize = 256;

fn main() -> Result<(), Error> {
    let gpu = match Gpu::new() {
        Err(Error::NoAdapter { .. }) => {
            println!("no GPU and no software driver on this machine");
            return Ok(());
        }
        gpu => gpu?,
    };
    println!("{}", gpu.adapter());
    products(&gpu)?;
    calls(&gpu)
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

fn upload<D: Dimension>(gpu: &Gpu, x: Array<f64, D>) -> Result<Tensor, Error> {
    Tensor::from_array(gpu, &x.mapv(|x| x as f32).view().into_dyn())
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
        let gates = [0.2 / chunk as f64, 0.5, 0.02].map(|value| upload(gpu, gate(value)));
        let tensors = [1, 2, 3].map(|seed| upload(gpu, rows(seed)));
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
}

/// Operations of a chunk and head, pairs of later tokens not counted.
fn flops(config: &Config) -> f64 {
    let b = config.chunk as f64;
    let layers = config.layers().into_iter().map(|[m, n]| {
        let (m, n) = (m as f64, n as f64);
        // Its errors, two products to read with, two updates; and the pairs.
        10.0 * b * m * n + b * (b + 1.0) * (m + n)
    });
    let back = config.hidden.map_or(0.0, |hidden| 2.0 * b * (hidden * config.dim_v) as f64);
    layers.sum::<f64>() + back
}

fn calls(gpu: &Gpu) -> Result<(), Error> {
    println!("depth   heads   chunk   us a token and head   GFLOP/s");
    for deep in [false, true] {
        for heads in [1, 8] {
            for chunk in [1, 16, 64] {
                let config = if deep {
                    Config::deep(heads, DIM, HIDDEN)
                } else {
                    Config::linear(heads, DIM)
                };
                let config = config.with_chunk(chunk);
                let tokens = if chunk == 1 { 64 } else { 512 };
                let rate = flops(&config) / chunk as f64;
                let case = Case::new(gpu, config, tokens)?;
                let seconds = best_seconds(gpu, &mut || case.forward())? / (heads * tokens) as f64;
                println!(
                    "{:5} {heads:7} {chunk:7} {:21.2} {:9.1}",
                    1 + usize::from(deep),
                    1e6 * seconds,
                    1e-9 * rate / seconds
                );
                if std::env::var("PROFILE").is_ok() {
                    let (_, profile) = gpu.profile(|| case.forward())?;
                    let mut all = std::collections::BTreeMap::<String, (f64, u32)>::new();
                    for k in &profile.kernels {
                        let one = all.entry(k.kernel.clone()).or_default();
                        one.0 += k.time.as_secs_f64();
                        one.1 += 1;
                    }
                    for (k, (s, n)) in all {
                        println!("      {:8.1} us x {n:4} {k}", 1e6 * s / f64::from(n));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Products of the shapes of one chunk.
fn products(gpu: &Gpu) -> Result<(), Error> {
    for heads in [1, 8] {
        for rows in [16, 64] {
            for [m, n] in [[64, 64], [64, 256], [256, 64]] {
                let a = upload(gpu, numbers(1, (1, heads, rows, m), 1.0))?;
                let b = upload(gpu, numbers(2, (1, heads, m, n), 1.0))?;
                let c = upload(gpu, numbers(3, (1, heads, n, m), 1.0))?.permute(&[0, 1, 3, 2])?;
                let d = upload(gpu, numbers(3, (1, heads, rows, n), 1.0))?;
                let at = a.permute(&[0, 1, 3, 2])?;
                let work = 2e-9 * (heads * rows * m * n) as f64;
                let x = best_seconds(gpu, &mut || matmul(&a, &b).map(drop))?;
                let y = best_seconds(gpu, &mut || matmul(&a, &c).map(drop))?;
                let z = best_seconds(gpu, &mut || matmul(&at, &d).map(drop))?;
                println!(
                    "{heads} {rows} x {m} x {n}: rows {:.1}, back {:.1}, outer {:.1}",
                    work / x,
                    work / y,
                    work / z
                );
            }
        }
    }
    Ok(())
}
