//! Dense attention on the named problems that tests use too. On a software driver the clock counts
//! CPU seconds of the process, so that other programs do not disturb; elsewhere it is the wall's.
//!
//! Nothing is compared with a reference here: `cargo xtask bench` does that, and reports kernels.

use std::time::{Duration, Instant};

use attn_core::testing::problems;
use attn_wgpu::bench::{DenseAttention, Mechanism};
use attn_wgpu::{DeviceKind, Error, Gpu, Result};
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkId, Criterion, Throughput};

/// Time of day, or CPU time of the process over the cores that share the work.
#[derive(Clone, Copy)]
struct Clock {
    start: Instant,
    cores: Option<u32>,
}

impl Clock {
    fn of(gpu: &Gpu) -> Clock {
        let on_cpu = gpu.capabilities().kind == DeviceKind::Cpu && cpu_time().is_some();
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        // Mesa's software driver runs that many threads; with 0 the calling thread does the work.
        let threads = std::env::var("LP_NUM_THREADS").ok().and_then(|text| text.parse().ok());
        let cores = threads.map_or(all, |threads: usize| threads.clamp(1, all));
        Clock { start: Instant::now(), cores: on_cpu.then_some(cores as u32) }
    }

    fn now(&self) -> Duration {
        let wall = self.start.elapsed();
        self.cores.and_then(|cores| Some(cpu_time()? / cores)).unwrap_or(wall)
    }
}

#[cfg(unix)]
fn cpu_time() -> Option<Duration> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

#[cfg(not(unix))]
fn cpu_time() -> Option<Duration> {
    None
}

impl Measurement for Clock {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        self.now()
    }

    fn end(&self, start: Duration) -> Duration {
        self.now().saturating_sub(start)
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

fn main() -> Result<()> {
    let gpu = match Gpu::new() {
        Err(error @ Error::NoAdapter { .. }) => {
            println!("nothing was measured: {error}");
            return Ok(());
        }
        other => other?,
    };
    println!("adapter {}", gpu.adapter());
    let clock = Clock::of(&gpu);
    let mut criterion = Criterion::default()
        .with_measurement(clock)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    for problem in problems() {
        let inputs = problem.inputs();
        let mut group = criterion.benchmark_group(problem.name);
        for mechanism in [DenseAttention::F32, DenseAttention::F16] {
            let flops = mechanism.flops(&problem.shape, &problem.config);
            group.throughput(Throughput::Elements(flops as u64));
            let id = BenchmarkId::from_parameter(mechanism.name());
            let mut failure = None;
            group.bench_function(id, |bencher| {
                let run = |times: u64| -> Result<Duration> {
                    let prepared = mechanism.prepare(&gpu, &inputs, &problem.config)?;
                    gpu.sync()?;
                    let start = clock.start();
                    (0..times).try_for_each(|_| prepared.record().map(drop))?;
                    gpu.sync()?;
                    Ok(clock.end(start))
                };
                bencher.iter_custom(|times| {
                    // Criterion wants a time whatever happens; the error is returned below.
                    run(times).unwrap_or_else(|error| {
                        failure = Some(error);
                        Duration::from_secs(1)
                    })
                });
            });
            if let Some(error) = failure {
                return Err(error);
            }
        }
        group.finish();
    }
    criterion.final_summary();
    Ok(())
}
