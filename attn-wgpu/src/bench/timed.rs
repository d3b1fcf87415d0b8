//! Criterion benchmarks of mechanisms (feature `criterion`): one call is a whole benchmark.

use std::time::Duration;

use attn_core::dense::Config;
use attn_core::testing::{HostInputs, Problem};
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkGroup, Criterion, Throughput};

use super::{Clock, Mechanism, Stage};
use crate::error::Result;
use crate::gpu::Gpu;

/// One problem with its inputs.
#[derive(Debug, Clone)]
pub struct Timed {
    /// Name of the group of benchmarks.
    pub name: String,
    /// Queries, keys and values.
    pub inputs: HostInputs,
    /// Mask, scale and the like.
    pub config: Config,
}

impl From<Problem> for Timed {
    fn from(problem: Problem) -> Self {
        let inputs = problem.inputs();
        Timed { name: problem.name.into(), inputs, config: problem.config }
    }
}

/// Times each mechanism on each problem that it is for, and the stages of those that choose keys. On a
/// software driver the clock counts CPU seconds of the process, so that other programs do not disturb;
/// elsewhere it is the wall's. Takes criterion's arguments from the command line.
///
/// Nothing is compared with a reference here: `cargo xtask bench` does that.
///
/// # Errors
/// Those of the device, and of problems that a mechanism does not take.
pub fn with_criterion(
    mechanisms: &[&dyn Mechanism],
    problems: impl IntoIterator<Item = Timed>,
) -> Result<()> {
    let gpu = Gpu::new()?;
    let clock = Clock::of(&gpu);
    let mut criterion = Criterion::default()
        .with_measurement(clock)
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    for Timed { name, inputs, config } in problems {
        let mut group = criterion.benchmark_group(name);
        for mechanism in mechanisms.iter().filter(|m| m.is_for(&inputs.shape, &config)) {
            let name = mechanism.name();
            let prepared = mechanism.prepare(&gpu, &inputs, &config)?;
            let chosen = prepared.chosen()?.is_some();
            if !chosen {
                let flops = mechanism.flops(&inputs.shape, &config);
                group.throughput(Throughput::Elements(flops as u64));
            }
            let run = Run { gpu: &gpu, clock };
            run.time(&mut group, name, || prepared.record().map(drop))?;
            for (stage, what) in [(Stage::Select, "select"), (Stage::Attend, "attend")] {
                if chosen && prepared.stage(stage)? {
                    let name = format!("{name}-{what}");
                    run.time(&mut group, &name, || prepared.stage(stage).map(drop))?;
                }
            }
        }
        group.finish();
    }
    criterion.final_summary();
    Ok(())
}

struct Run<'a> {
    gpu: &'a Gpu,
    clock: Clock,
}

impl Run<'_> {
    fn time(
        &self,
        group: &mut BenchmarkGroup<'_, Clock>,
        name: &str,
        record: impl Fn() -> Result<()>,
    ) -> Result<()> {
        let mut failure = None;
        let run = |times: u64| -> Result<Duration> {
            self.gpu.sync()?;
            let start = self.clock.start();
            (0..times).try_for_each(|_| record())?;
            self.gpu.sync()?;
            Ok(self.clock.end(start))
        };
        group.bench_function(name, |bencher| {
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
