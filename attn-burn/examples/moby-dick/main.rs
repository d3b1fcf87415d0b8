//! A byte model of two layers learns from the first chapters of Moby-Dick, with dense attention, with routing
//! attention, and with burn's own. Prints losses, speed and memory, and draws the curves as SVG.
//!
//! `cargo run -p attn-burn --example attn-burn-moby-dick -- [steps] [curves.svg]`

mod chart;
mod data;
mod model;

use std::process::Command;
use std::time::Instant;

use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Tensor};

use data::{Batch, CONTEXT, loader, parts};
use model::{Kind, Model};

type Failure = Box<dyn std::error::Error>;

const RATE: f64 = 2e-3;
/// Steps that are not timed: kernels are compiled in them.
const WARM_UP: usize = 10;

/// What one run tells.
struct Run {
    name: &'static str,
    losses: Vec<f64>,
    /// Nats a byte on text that was held back.
    held_back: f64,
    steps_per_second: f64,
    /// Of all cores together, which other programs do not disturb: what counts on a software driver.
    cpu_seconds_per_step: f64,
    /// MiB that the device had given out at most.
    peak: f64,
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // Each kind runs in a process of its own, so that its device is its own.
    if let [flag, kind, steps] = args.as_slice()
        && flag == "--one"
    {
        let kind = Kind::ALL.into_iter().find(|own| own.name() == kind).ok_or("no such kind")?;
        return one(kind, steps.parse()?);
    }
    let steps: usize = args.first().map_or(Ok(150), |text| text.parse())?;
    let path = args.get(1).map_or("moby-dick.svg", String::as_str);
    let runs =
        Kind::ALL.into_iter().map(|kind| child(kind, steps)).collect::<Result<Vec<_>, _>>()?;
    println!("           loss  held back  steps/s  CPU s/step  peak MiB");
    for run in &runs {
        let last = run.losses.last().copied().unwrap_or(f64::NAN);
        let (speed, cpu) = (run.steps_per_second, run.cpu_seconds_per_step);
        let Run { name, held_back, peak, .. } = run;
        println!("{name:8} {last:6.3} {held_back:10.3} {speed:8.2} {cpu:11.2} {peak:9.0}");
    }
    let curves: Vec<_> = runs.iter().map(|run| (run.name, run.losses.as_slice())).collect();
    std::fs::write(path, chart::draw("loss, nats a byte", &curves))?;
    println!("{path}");
    Ok(())
}

fn child(kind: Kind, steps: usize) -> Result<Run, Failure> {
    println!("{} ..", kind.name());
    let mut command = Command::new(std::env::current_exe()?);
    let output = command.args(["--one", kind.name(), &steps.to_string()]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let line = |name: &str| -> Result<Vec<f64>, Failure> {
        let found = text.lines().find_map(|line| line.strip_prefix(name));
        let numbers = found.ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        Ok(numbers.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
    };
    Ok(Run {
        name: kind.name(),
        losses: line("losses ")?,
        held_back: line("held back ")?[0],
        steps_per_second: line("steps per second ")?[0],
        cpu_seconds_per_step: line("CPU seconds per step ")?[0],
        peak: line("peak ")?[0],
    })
}

fn one(kind: Kind, steps: usize) -> Result<(), Failure> {
    let device = attn_burn::device()?.autodiff();
    device.seed(1);
    let mut model = Model::new(kind, &device)?;
    let mut optimiser = AdamWConfig::new().init();
    let (train, held_back) = parts();
    let mut losses: Vec<Tensor<1>> = Vec::new();
    let mut peak = 0.0f64;
    let mut start = (Instant::now(), cpu_seconds());
    let batches = loader(train, Some(1), &device);
    for (step, batch) in std::iter::repeat_with(|| batches.iter()).flatten().take(steps).enumerate()
    {
        if step == WARM_UP.min(steps / 2) {
            device.sync()?;
            start = (Instant::now(), cpu_seconds());
        }
        let (loss, commitment) = loss(&model, batch?, &device)?;
        losses.push(loss.clone().detach());
        let all = match commitment {
            Some(commitment) => loss + commitment,
            None => loss,
        };
        let gradients = GradientsParams::from_grads(all.backward(), &model);
        model = optimiser.step(RATE, model, gradients);
        peak = peak.max(given_out(&device)?);
    }
    device.sync()?;
    let timed = steps - WARM_UP.min(steps / 2);
    let speed = timed as f64 / start.0.elapsed().as_secs_f64();
    let cpu = (cpu_seconds() - start.1) / timed as f64;

    let model = model.valid();
    let plain = device.clone().inner();
    let mut sum = (0.0, 0);
    for batch in loader(held_back, None, &plain).iter() {
        sum = (sum.0 + number(loss(&model, batch?, &plain)?.0)?, sum.1 + 1);
    }
    let losses = losses.into_iter().map(number).collect::<Result<Vec<_>, _>>()?;
    println!("losses {}", losses.iter().map(|x| format!("{x:.4} ")).collect::<String>());
    println!("held back {:.4}", sum.0 / f64::from(sum.1.max(1)));
    println!("steps per second {speed:.3}");
    println!("CPU seconds per step {cpu:.3}");
    println!("peak {peak:.1}");
    Ok(())
}

/// Mean nats a byte, and the commitment loss of routing attention.
fn loss(
    model: &Model,
    batch: Batch,
    device: &Device,
) -> Result<(Tensor<1>, Option<Tensor<1>>), Failure> {
    let (logits, commitment) = model.forward(batch.bytes)?;
    let [count, _, bytes] = logits.dims();
    let flat = logits.reshape([count * CONTEXT, bytes]);
    let loss = CrossEntropyLossConfig::new().init(device);
    Ok((loss.forward(flat, batch.next.reshape([count * CONTEXT])), commitment))
}

fn number(loss: Tensor<1>) -> Result<f64, Failure> {
    Ok(loss.try_into_scalar::<f32>().map(f64::from)?)
}

/// MiB of the device in buffers of burn and of our kernels, 0 where its graphics API does not tell. Burn keeps
/// what it has, so that the end of a step shows the most of it.
fn given_out(device: &Device) -> Result<f64, Failure> {
    let report = attn_burn::gpu(device)?.device().generate_allocator_report();
    Ok(report.map_or(0.0, |report| report.total_allocated_bytes as f64 / f64::from(1 << 20)))
}

#[cfg(unix)]
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

#[cfg(not(unix))]
fn cpu_seconds() -> f64 {
    0.0
}
