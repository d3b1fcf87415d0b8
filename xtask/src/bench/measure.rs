//! Clocks, samples and their statistics.

use std::time::{Duration, Instant};

use attn_wgpu::bench::{cores, cpu_time};
use attn_wgpu::{DeviceKind, Gpu, Result};

use super::report::{Clock, Sample, Summary, Timing};

/// Runs of a sample at most; each costs a bind group and a place in the command stream.
const MAX_RUNS: u32 = 1000;
/// Runs of a sample that is measured kernel by kernel at most: each kernel is waited for.
const MAX_DEVICE_RUNS: u32 = 50;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    pub samples: usize,
    /// Time that one sample should take: short runs are repeated within it.
    pub sample: Duration,
}

/// Samples of runs that take longer than [`LONG_RUN`].
const FEW_SAMPLES: usize = 5;
const LONG_RUN: f64 = 0.2;

impl Effort {
    fn samples_of(self, run: Sample) -> usize {
        let few = run.wall_seconds / f64::from(run.runs) > LONG_RUN;
        if few { self.samples.min(FEW_SAMPLES) } else { self.samples }
    }

    /// How many times `trial` fills one sample, at least once.
    fn repetitions(self, trial: Sample) -> u32 {
        let times = self.sample.as_secs_f64() / trial.wall_seconds.max(1e-9);
        times.ceil().max(1.0) as u32
    }
}

/// CPU seconds that all threads of this process have used; none where the system does not tell.
pub fn cpu_seconds() -> Option<f64> {
    cpu_time().map(|time| time.as_secs_f64())
}

/// Times what `work` records on a device. It has to be warm: pipelines made, shaders compiled.
pub fn on_device(gpu: &Gpu, effort: Effort, work: &dyn Fn() -> Result<()>) -> Result<Timing> {
    let mut runs = 1;
    let repeat = |runs: u32| {
        gpu.sync()?;
        sample(runs, || {
            (0..runs).try_for_each(|_| work())?;
            gpu.sync()
        })
    };
    let trial = loop {
        let trial = repeat(runs)?;
        let more = effort.repetitions(trial);
        if more == 1 || runs == MAX_RUNS {
            break trial;
        }
        // The first trials are mostly launching and waiting, so growth is bounded.
        runs = runs.saturating_mul(more.min(8)).min(MAX_RUNS);
    };
    let on_cpu = gpu.capabilities().kind == DeviceKind::Cpu;
    let mut samples = Vec::new();
    // The last trial was as warm as any sample: where it is long, it is one.
    let mut first = (runs == 1).then_some(trial);
    for _ in 0..effort.samples_of(trial) {
        let mut sample = first.take().map_or_else(|| repeat(runs), Ok)?;
        if !on_cpu && gpu.capabilities().timestamps {
            sample.device_runs = runs.min(MAX_DEVICE_RUNS);
            sample.device_seconds = device_seconds(gpu, sample.device_runs, work)?;
        }
        samples.push(sample);
    }
    let clock = if on_cpu && samples.iter().all(|sample| sample.cpu_seconds.is_some()) {
        Clock::ProcessCpu { cores: cores() }
    } else if samples.iter().all(|sample| sample.device_seconds.is_some()) {
        Clock::Device
    } else {
        Clock::Wall
    };
    Ok(summarise(clock, samples))
}

/// Times `work` on the host, where it runs in one thread.
pub fn on_host<E>(effort: Effort, mut work: impl FnMut() -> Result<(), E>) -> Result<Timing, E> {
    let trial = sample(1, &mut work)?;
    let runs = effort.repetitions(trial).min(MAX_RUNS);
    let mut samples = Vec::new();
    for _ in 0..effort.samples {
        samples.push(sample(runs, || (0..runs).try_for_each(|_| work()))?);
    }
    let clock = match samples.iter().all(|sample| sample.cpu_seconds.is_some()) {
        true => Clock::ProcessCpu { cores: 1 },
        false => Clock::Wall,
    };
    Ok(summarise(clock, samples))
}

fn sample<E>(runs: u32, work: impl FnOnce() -> Result<(), E>) -> Result<Sample, E> {
    let (wall, cpu) = (Instant::now(), cpu_seconds());
    work()?;
    let wall_seconds = wall.elapsed().as_secs_f64();
    let cpu_seconds = cpu.zip(cpu_seconds()).map(|(start, end)| end - start);
    Ok(Sample { runs, wall_seconds, cpu_seconds, device_runs: 0, device_seconds: None })
}

/// `None` where a kernel could not be timed by the device.
fn device_seconds(gpu: &Gpu, runs: u32, work: &dyn Fn() -> Result<()>) -> Result<Option<f64>> {
    let ((), profile) = gpu.profile(|| (0..runs).try_for_each(|_| work()))?;
    let by_device = profile.kernels.iter().all(|kernel| kernel.clock == attn_wgpu::Clock::Device);
    Ok(by_device.then(|| profile.total().as_secs_f64()))
}

fn summarise(clock: Clock, samples: Vec<Sample>) -> Timing {
    let wall = |sample: &Sample| sample.wall_seconds / f64::from(sample.runs);
    let seconds = |sample: &Sample| match clock {
        Clock::Device => sample.device_seconds.unwrap_or(f64::NAN) / f64::from(sample.device_runs),
        Clock::ProcessCpu { cores } => {
            sample.cpu_seconds.unwrap_or(f64::NAN) / (f64::from(sample.runs) * cores as f64)
        }
        Clock::Wall => wall(sample),
    };
    Timing {
        clock,
        seconds: Summary::of(samples.iter().map(seconds).collect()),
        wall: Summary::of(samples.iter().map(wall).collect()),
        samples,
    }
}

impl Summary {
    /// Zeros where there is no sample.
    pub fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |q| quantile(&samples, q);
        Summary { median: at(0.5), q20: at(0.2), q80: at(0.8), min: at(0.0) }
    }

    /// The same of work that is `factor` times as much.
    pub fn scaled(self, factor: f64) -> Self {
        let Summary { median, q20, q80, min } = self;
        Summary { median: median * factor, q20: q20 * factor, q80: q80 * factor, min: min * factor }
    }
}

/// Quantile `q` of sorted samples, linear between neighbours.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * sorted.len().saturating_sub(1) as f64;
    let at = |index: f64| sorted.get(index as usize).copied().unwrap_or(0.0);
    let (below, above) = (at(place.floor()), at(place.ceil()));
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.5), 2.0);
        assert_eq!(quantile(&[1.0, 2.0], 0.5), 1.5);
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0.2), 2.0);
        assert_eq!((quantile(&[7.0], 0.8), quantile(&[], 0.5)), (7.0, 0.0));
    }

    #[test]
    fn order_of_samples_is_no_matter() {
        let summary = Summary::of(vec![3.0, 1.0, 2.0, 6.0, 5.0, 4.0]);
        assert_eq!(summary, Summary { median: 3.5, q20: 2.0, q80: 5.0, min: 1.0 });
        assert_eq!(summary.scaled(2.0).q80, 10.0);
    }

    #[test]
    fn seconds_are_of_one_run_by_the_chosen_clock() {
        let sample = |wall_seconds| Sample {
            runs: 4,
            wall_seconds,
            cpu_seconds: Some(8.0),
            device_runs: 2,
            device_seconds: Some(1.0),
        };
        let of = |clock| summarise(clock, vec![sample(12.0), sample(12.0)]);
        assert_eq!(of(Clock::Wall).seconds.median, 3.0);
        assert_eq!(of(Clock::ProcessCpu { cores: 2 }).seconds.median, 1.0);
        assert_eq!(of(Clock::Device).seconds.median, 0.5);
        assert_eq!(of(Clock::Device).wall.median, 3.0);
    }

    #[test]
    fn short_work_is_repeated() {
        let effort = Effort { samples: 3, sample: Duration::from_millis(2) };
        let trial = |wall_seconds| Sample {
            runs: 1,
            wall_seconds,
            cpu_seconds: None,
            device_runs: 0,
            device_seconds: None,
        };
        let repetitions = [1.5e-4, 2e-3, 1.0].map(|seconds| effort.repetitions(trial(seconds)));
        assert_eq!(repetitions, [14, 1, 1]);
        assert!(effort.repetitions(trial(0.0)) > MAX_RUNS);
        let effort = Effort { samples: 7, ..effort };
        assert_eq!([0.1, 1.0].map(|seconds| effort.samples_of(trial(seconds))), [7, FEW_SAMPLES]);
        let effort = Effort { samples: 3, ..effort };
        let timing = on_host(effort, || Ok::<(), ()>(())).unwrap();
        assert_eq!(timing.samples.len(), 3);
    }

    #[cfg(unix)]
    #[test]
    fn cpu_time_rises() {
        let start = cpu_seconds().unwrap();
        let mut sum = 0u64;
        while cpu_seconds().unwrap() - start < 1e-3 {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(sum > 0);
    }
}
