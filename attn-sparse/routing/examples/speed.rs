//! Times of the layer beside dense attention on the same normalised rows, step by step, forwards and
//! as far as the tokens of one centroid see each other. The README's figures are from here:
//! `cargo run -p attn-routing --example attn-routing-speed`.

use std::time::{Duration, Instant};

use attn_core::Mask;
use attn_core::dense::Config as Dense;
use attn_core::testing::{Values, fill};
use attn_routing::{Config, Error, Gpu, Inputs, Routing, Tensor, Uninitialised};
use attn_wgpu::attention::Attention;
use attn_wgpu::{DeviceKind, norm};

const DIM: usize = 64;
const ROUNDS: usize = 9;
/// Rounds of which the least time of each kernel is taken: it is the wall's, which others disturb.
const PROFILES: usize = 60;

/// CPU seconds of the process over its cores where the device is the CPU, so that other programs do not
/// disturb; else the wall's time.
fn now(gpu: &Gpu, start: Instant) -> Duration {
    #[cfg(unix)]
    if gpu.capabilities().kind == DeviceKind::Cpu {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u32;
        return Duration::new(time.tv_sec as u64, time.tv_nsec as u32) / cores;
    }
    let _ = (gpu, DeviceKind::Cpu);
    start.elapsed()
}

/// Medians of the milliseconds that each of `work` takes, in turns.
fn medians(gpu: &Gpu, work: &[&dyn Fn() -> Result<(), Error>]) -> Result<Vec<f64>, Error> {
    let start = Instant::now();
    let mut times = vec![Vec::new(); work.len()];
    for round in 0..=ROUNDS {
        for (work, times) in work.iter().zip(&mut times) {
            let before = now(gpu, start);
            work()?;
            gpu.sync()?;
            // The first round compiles.
            if round > 0 {
                times.push((now(gpu, start) - before).as_secs_f64() * 1e3);
            }
        }
    }
    for times in &mut times {
        times.sort_by(f64::total_cmp);
    }
    Ok(times.into_iter().map(|times| times[ROUNDS / 2]).collect())
}

fn main() -> Result<(), Error> {
    let gpu = match Gpu::new() {
        Err(Error::NoAdapter { .. }) => {
            println!("no GPU and no software driver on this machine");
            return Ok(());
        }
        gpu => gpu?,
    };
    println!("{}; milliseconds, medians of {ROUNDS}\n", gpu.adapter());
    println!(
        "| tokens | clusters x window | form | dense | routing | ratio | routes | attention |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (tokens, clusters) in [(1024, 32), (2048, 32), (4096, 64)] {
        for (form, causal, shared) in [
            ("both ways", false, false),
            ("both ways, shared", false, true),
            ("causal, shared", true, true),
            ("causal", true, false),
        ] {
            let row = compare(&gpu, tokens, clusters, causal, shared)?;
            let [dense, routing, routes, attention] = row[..] else { continue };
            println!(
                "| {tokens} | {clusters} x {} | {form} | {dense:.1} | {routing:.1} | {:.1} | {routes:.1} | {attention:.1} |",
                tokens / clusters,
                dense / routing
            );
        }
    }
    profile(&gpu, 4096, 64)
}

fn layer(gpu: &Gpu, tokens: usize, clusters: usize) -> Result<([Tensor; 3], Tensor), Error> {
    let data = |stream, rows| {
        let data = fill(1, stream, Values::Normal, rows * DIM);
        Tensor::from_slice(gpu, &data, &[1, 1, rows, DIM])
    };
    let means = data(3, clusters)?.reshape(&[1, clusters, DIM])?;
    Ok(([data(0, tokens)?, data(1, tokens)?, data(2, tokens)?], means))
}

fn compare(
    gpu: &Gpu,
    tokens: usize,
    clusters: usize,
    causal: bool,
    shared: bool,
) -> Result<Vec<f64>, Error> {
    let ([q, k, v], means) = layer(gpu, tokens, clusters)?;
    let centroids = Uninitialised::new(1, clusters, DIM).with_normals(&means)?;
    let mut config = Config::new(clusters, tokens / clusters).with_shared_qk(shared);
    config.causal = causal;
    let layer = Routing::new(gpu, config)?;
    let mask = if causal { Mask::Causal } else { Mask::Full };
    let dense = Attention::new(gpu, Dense::new().with_mask(mask).with_scale(1.0))?;
    let one = Tensor::full(gpu, &[DIM], 1f32)?;
    let zero = Tensor::full(gpu, &[DIM], 0f32)?;
    let [normed_q, normed_k] =
        [&q, if shared { &q } else { &k }].map(|x| norm::layer_norm(x, &one, &zero, 1e-6));
    let (normed_q, normed_k) = (normed_q?, normed_k?);
    let inputs = Inputs::new(&q, &k, &v);
    let routes = layer.route(inputs, None, &centroids)?;
    medians(
        gpu,
        &[
            &|| dense.forward(Inputs::new(&normed_q, &normed_k, &v)).map(drop),
            &|| layer.forward(inputs, None, &centroids).map(drop),
            &|| layer.route(inputs, None, &centroids).map(drop),
            &|| layer.attend(inputs, &routes).map(drop),
        ],
    )
}

/// What each kernel takes, both ways.
fn profile(gpu: &Gpu, tokens: usize, clusters: usize) -> Result<(), Error> {
    let ([q, k, v], means) = layer(gpu, tokens, clusters)?;
    let centroids = Uninitialised::new(1, clusters, DIM).with_normals(&means)?;
    let layer = Routing::new(gpu, Config::new(clusters, tokens / clusters).bidirectional())?;
    let run = || layer.forward(Inputs::new(&q, &k, &v), None, &centroids).map(drop);
    println!("\nkernels of {tokens} tokens both ways, microseconds, least of {PROFILES}:");
    let mut kernels: Vec<(String, usize, f64)> = Vec::new();
    for _ in 0..PROFILES {
        let ((), profile) = gpu.profile(run)?;
        let mut round: Vec<(String, usize, f64)> = Vec::new();
        for time in profile.kernels {
            let name = time.kernel.split(' ').next().unwrap_or_default().to_string();
            let micros = time.time.as_secs_f64() * 1e6;
            match round.iter_mut().find(|kernel| kernel.0 == name) {
                Some(kernel) => (kernel.1, kernel.2) = (kernel.1 + 1, kernel.2 + micros),
                None => round.push((name, 1, micros)),
            }
        }
        for kernel in round {
            match kernels.iter_mut().find(|known| known.0 == kernel.0) {
                Some(known) => known.2 = known.2.min(kernel.2),
                None => kernels.push(kernel),
            }
        }
    }
    kernels.sort_by(|a, b| b.2.total_cmp(&a.2));
    for (name, calls, time) in kernels {
        println!("{name:20} {time:6.0} in {calls} dispatches");
    }
    Ok(())
}
