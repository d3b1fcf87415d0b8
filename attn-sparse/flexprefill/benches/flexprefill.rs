//! Selection, attention on what was selected, both together, and dense attention beside them. On a software
//! driver the clock counts CPU seconds of the process, so that other programs do not disturb; elsewhere it is
//! the wall's.
//!
//! Heads of a known pattern show what can be saved; the named problem has random inputs, where almost nothing
//! can be left out.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use attn_core::testing::by_name;
use attn_core::{Mask, dense};
use attn_flexprefill::{Config, Error, FlexPrefill, Gpu, Inputs, Tensor};
use attn_wgpu::DeviceKind;
use attn_wgpu::attention::Attention;
use common::{block_head, line_head};
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkGroup, Criterion};

type Result<T> = std::result::Result<T, Error>;

/// Time of day, or CPU time of the process over the cores that share the work.
#[derive(Clone, Copy)]
struct Clock {
    start: Instant,
    cores: Option<u32>,
}

impl Clock {
    fn of(gpu: &Gpu) -> Clock {
        let on_cpu = gpu.capabilities().kind == DeviceKind::Cpu && cpu_time().is_some();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
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

/// Inputs on the device, with what runs on them.
struct Case {
    gpu: Gpu,
    clock: Clock,
    qkv: [Tensor; 3],
    dense: Attention,
    method: FlexPrefill,
}

impl Case {
    fn inputs(&self) -> Inputs<'_> {
        let [q, k, v] = &self.qkv;
        Inputs::new(q, k, v)
    }

    fn time(
        &self,
        group: &mut BenchmarkGroup<'_, Clock>,
        name: &str,
        record: impl Fn() -> Result<()>,
    ) -> Result<()> {
        let mut failure = None;
        group.bench_function(name, |bencher| {
            let run = |times: u64| -> Result<Duration> {
                self.gpu.sync()?;
                let start = self.clock.start();
                (0..times).try_for_each(|_| record())?;
                self.gpu.sync()?;
                Ok(self.clock.end(start))
            };
            bencher.iter_custom(|times| {
                // Criterion wants a time whatever happens; the error is returned below.
                run(times).unwrap_or_else(|error| {
                    failure = Some(error);
                    Duration::from_secs(1)
                })
            });
        });
        failure.map_or(Ok(()), Err)
    }

    fn all(&self, criterion: &mut Criterion<Clock>, name: &str) -> Result<()> {
        let selection = self.method.select(&self.qkv[0], &self.qkv[1])?;
        let densities = selection.densities()?;
        let density = densities.iter().sum::<f64>() / densities.len() as f64;
        println!("{name}: {:.1} % of the pairs are selected", 100.0 * density);
        let mut group = criterion.benchmark_group(name);
        self.time(&mut group, "dense", || self.dense.forward(self.inputs()).map(drop))?;
        self.time(&mut group, "select", || {
            self.method.select(&self.qkv[0], &self.qkv[1]).map(drop)
        })?;
        self.time(&mut group, "attend", || {
            self.method.attend(self.inputs(), &selection).map(drop)
        })?;
        self.time(&mut group, "flexprefill", || self.method.forward(self.inputs()).map(drop))?;
        group.finish();
        Ok(())
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
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

    let mut cases = Vec::new();
    for (name, head) in
        [("blocks-4k", block_head(1, 4096, 64, 64)), ("lines-4k", line_head(1, 4096, 64))]
    {
        let [q, k, v] = head.each_ref().map(|x| Tensor::from_array(&gpu, &x.view().into_dyn()));
        cases.push((name, [q?, k?, v?]));
    }
    let problem = by_name("smollm2-prefill-2k").ok_or("no such problem")?;
    let (inputs, shape) = (problem.inputs(), problem.shape);
    let upload = |data: &[f32], shape: [usize; 4]| Tensor::from_slice(&gpu, data, &shape);
    let qkv = [
        upload(&inputs.q, shape.q())?,
        upload(&inputs.k, shape.k())?,
        upload(&inputs.v, shape.v())?,
    ];
    cases.push((problem.name, qkv));

    let config = Config::new().with_block(64).with_budget(Some(128), None);
    for (name, qkv) in cases {
        let dense = Attention::new(&gpu, dense::Config::new().with_mask(Mask::Causal))?;
        let method = FlexPrefill::new(&gpu, config.clone())?;
        Case { gpu: gpu.clone(), clock, qkv, dense, method }.all(&mut criterion, name)?;
    }
    criterion.final_summary();
    Ok(())
}
