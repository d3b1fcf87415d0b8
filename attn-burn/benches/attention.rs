//! Dense attention of this workspace beside burn's own, on burn tensors of one device, in turns. Prints a
//! table and, with a path as argument, a report that `cargo xtask report` reads.
//!
//! `cargo bench -p attn-burn --features autotune -- [report.json]`

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use attn_burn::attn_core::{AttentionShape, Mask};
use attn_burn::attn_wgpu::{self, DType, DeviceKind, Gpu};
use attn_burn::dense::Config;
use attn_burn::ops::Attention;
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Device, Distribution, Tensor};
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error>;

const SAMPLES: usize = 5;
const SHAPE: [usize; 4] = [1, 4, 2048, 64];

fn main() -> Result<(), Failure> {
    let path = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let device = attn_burn::device()?;
    let gpu = attn_burn::gpu(&device)?;
    println!("{}", gpu.adapter());
    println!("copy of a tensor of {SHAPE:?}: {:.2} ms", 1e3 * copy(&gpu)?);
    let mut rows = Vec::new();
    for backward in [false, true] {
        for causal in [false, true] {
            rows.extend(compare(&device, &gpu, causal, backward)?);
        }
    }
    if let Some(path) = path {
        std::fs::write(&path, serde_json::to_string_pretty(&report(&gpu, rows))?)?;
        println!("{path}");
    }
    Ok(())
}

/// Seconds of the copy on the device that a tensor of this size costs where one remains.
fn copy(gpu: &Gpu) -> Result<f64, Failure> {
    const TIMES: u32 = 20;
    let [from, to] = [0; 2].map(|_| attn_wgpu::Tensor::zeros(gpu, &SHAPE, DType::F32));
    let (from, to) = (from?, to?);
    attn_wgpu::ops::copy(&from, &to)?;
    gpu.sync()?;
    let start = now();
    for _ in 0..TIMES {
        attn_wgpu::ops::copy(&from, &to)?;
    }
    gpu.sync()?;
    let end = now();
    let times = [0, 1].map(|i| (end[i] - start[i]).as_secs_f64() / f64::from(TIMES));
    Ok(seconds(gpu, &[times])[0])
}

fn compare(
    device: &Device,
    gpu: &Gpu,
    causal: bool,
    backward: bool,
) -> Result<Vec<Value>, Failure> {
    let mask = if causal { Mask::Causal } else { Mask::Full };
    let ours = Attention::new(Config::new().with_mask(mask))?;
    let options = AttentionModuleOptions { is_causal: causal, ..Default::default() };
    let of = match backward {
        true => device.clone().autodiff(),
        false => device.clone(),
    };
    of.seed(3);
    let inputs = [0; 3].map(|_| {
        let x = Tensor::<4>::random(SHAPE, Distribution::Normal(0.0, 1.0), &of);
        if backward { x.require_grad() } else { x }
    });
    let [q, k, v] = &inputs;
    let own = || Ok(ours.forward(q.clone(), k.clone(), v.clone())?);
    let theirs = || Ok(attention(q.clone(), k.clone(), v.clone(), None, None, options));
    let run = |f: &dyn Fn() -> Result<Tensor<4>, Failure>| -> Result<Vec<Tensor<4>>, Failure> {
        let out = f()?;
        if !backward {
            return Ok(vec![out]);
        }
        let grads = out.square().sum().backward();
        Ok(inputs.iter().filter_map(|x| x.grad(&grads)).collect())
    };
    let deviation = deviation(run(&own)?, run(&theirs)?)?;
    if deviation.is_nan() || deviation > 1e-4 {
        return Err(format!("results differ by {deviation:e}").into());
    }
    let mut times = [Vec::new(), Vec::new()];
    // In turns, so that what else the machine does meets both.
    for _ in 0..SAMPLES {
        for (times, f) in times.iter_mut().zip([&own as &dyn Fn() -> _, &theirs]) {
            device.sync()?;
            let start = now();
            // Held until then: what nobody holds, burn's fusion does not compute.
            let results = run(f)?;
            device.sync()?;
            let end = now();
            drop(results);
            times.push([0, 1].map(|i| (end[i] - start[i]).as_secs_f64()));
        }
    }
    let pass = if backward { "forward and backward" } else { "forward" };
    let kind = if causal { "causal" } else { "full" };
    let [a, b] = times.each_ref().map(|times| quantile(&seconds(gpu, times), 0.5));
    println!(
        "{kind:7} {pass:21} ours {:7.1} ms  burn {:7.1} ms  ratio {:.2}  difference {deviation:.0e}",
        1e3 * a,
        1e3 * b,
        b / a
    );
    let names = match backward {
        true => ["dense-train", "burn-train"],
        false => ["dense", "burn"],
    };
    Ok(names
        .iter()
        .zip(times)
        .map(|(name, times)| row(gpu, name, causal, backward, times))
        .collect())
}

/// Largest difference over the largest magnitude, of results side by side.
fn deviation(a: Vec<Tensor<4>>, b: Vec<Tensor<4>>) -> Result<f64, Failure> {
    let mut worst = 0.0f64;
    for (a, b) in a.into_iter().zip(b) {
        let most = b.clone().abs().max().try_into_scalar::<f32>()?;
        let apart = (a - b).abs().max().try_into_scalar::<f32>()?;
        worst = worst.max(f64::from(apart) / f64::from(most));
    }
    Ok(worst)
}

/// Seconds by the clock that counts.
fn seconds(gpu: &Gpu, times: &[[f64; 2]]) -> Vec<f64> {
    let of = |[wall, cpu]: &[f64; 2]| if by_cpu(gpu) { cpu / cores() as f64 } else { *wall };
    times.iter().map(of).collect()
}

fn quantile(times: &[f64], share: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

fn summary(times: &[f64]) -> Value {
    json!({
        "median": quantile(times, 0.5),
        "q20": quantile(times, 0.2),
        "q80": quantile(times, 0.8),
        "min": quantile(times, 0.0),
    })
}

/// Wall and CPU time.
type Times = [Duration; 2];

/// Time of day and CPU time of the process, where that can be asked for.
fn now() -> Times {
    static START: OnceLock<Instant> = OnceLock::new();
    [START.get_or_init(Instant::now).elapsed(), cpu_time()]
}

#[cfg(unix)]
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(not(unix))]
fn cpu_time() -> Duration {
    Duration::ZERO
}

/// On a software driver CPU time over cores counts, which other programs do not disturb.
fn by_cpu(gpu: &Gpu) -> bool {
    cfg!(unix) && gpu.capabilities().kind == DeviceKind::Cpu
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn row(gpu: &Gpu, name: &str, causal: bool, backward: bool, times: Vec<[f64; 2]>) -> Value {
    let [batch, heads, tokens, dim] = SHAPE;
    let mask = if causal { Mask::Causal } else { Mask::Full };
    let shape = AttentionShape::from_shapes(&SHAPE, &SHAPE, &SHAPE);
    // Two products forward, five backward.
    let factor = if backward { 3.5 } else { 1.0 };
    let flops = factor * shape.map_or(0.0, |shape| shape.flops(&mask));
    let counted = seconds(gpu, &times);
    let wall: Vec<f64> = times.iter().map(|times| times[0]).collect();
    let samples = times.iter().map(|[wall, cpu]| {
        json!({ "runs": 1, "wall_seconds": wall, "cpu_seconds": cpu, "device_runs": 0 })
    });
    json!({
        "problem": format!("n{tokens}-{}", mask.name()),
        "source": { "kind": "random", "seed": 3 },
        "mask": mask.name(),
        "mechanism": name,
        "dtype": "f32",
        "in_series": false,
        "shape": [batch, heads, heads, tokens, tokens, dim, dim],
        "scale": 1.0 / (dim as f64).sqrt(),
        "outcome": { "kind": "right" },
        "kernels": [],
        "timing": {
            "clock": match by_cpu(gpu) {
                true => json!({ "kind": "process-cpu", "cores": cores() }),
                false => json!({ "kind": "wall" }),
            },
            "seconds": summary(&counted),
            "wall": summary(&wall),
            "samples": samples.collect::<Vec<_>>(),
        },
        "flops": flops,
        "bytes": 16.0 * (batch * heads * tokens * dim) as f64,
        "gflops_per_second": flops / quantile(&counted, 0.5) / 1e9,
    })
}

fn report(gpu: &Gpu, rows: Vec<Value>) -> Value {
    let adapter = gpu.adapter();
    json!({
        "schema": 3,
        "date": "",
        "command": "cargo bench -p attn-burn",
        "seconds": 0.0,
        "host": {
            "debug_assertions": cfg!(debug_assertions),
            "os": std::env::consts::OS,
            "arch": std::env::consts::ARCH,
            "cores": cores(),
            "environment": {},
        },
        "capture": { "file": "" },
        "adapters": [{
            "adapter": {
                "index": adapter.index,
                "name": adapter.name,
                "backend": adapter.backend,
                "kind": format!("{:?}", adapter.kind).to_lowercase(),
                "driver": adapter.driver,
                "vendor": adapter.vendor,
                "features": [],
                "limits": {},
            },
            "rows": rows,
            "kernels": [],
            "warnings": [],
        }],
        "warnings": [],
    })
}
