//! Clocks of benchmarks: of the wall, and of the processor where a software driver computes on it.

use std::time::{Duration, Instant};

use crate::capabilities::DeviceKind;
use crate::error::Result;
use crate::gpu::Gpu;

/// Series that [`best_seconds`] takes, and the time that each should fill.
const SERIES: usize = 3;
const SERIES_SECONDS: f64 = 0.06;

/// CPU time that all threads of this process have used; none where the system does not tell.
#[cfg(unix)]
pub fn cpu_time() -> Option<Duration> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

/// CPU time that all threads of this process have used; none, as this system does not tell.
#[cfg(not(unix))]
pub fn cpu_time() -> Option<Duration> {
    None
}

/// Cores that a software driver spreads its work on.
pub fn cores() -> usize {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    // Mesa's software driver runs that many threads; with 0 the calling thread does the work.
    let threads = std::env::var("LP_NUM_THREADS").ok().and_then(|text| text.parse::<usize>().ok());
    threads.map_or(all, |threads| threads.clamp(1, all))
}

/// Time of day, or on a software driver CPU time of the process over the cores that share the work: other
/// programs disturb that less.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    cores: Option<u32>,
}

impl Clock {
    /// The clock for this device.
    pub fn of(gpu: &Gpu) -> Clock {
        let on_cpu = gpu.capabilities().kind == DeviceKind::Cpu && cpu_time().is_some();
        Clock { start: Instant::now(), cores: on_cpu.then_some(cores() as u32) }
    }

    /// Time since some moment, the same for all readings of one clock.
    pub fn now(&self) -> Duration {
        let wall = self.start.elapsed();
        self.cores.and_then(|cores| Some(cpu_time()? / cores)).unwrap_or(wall)
    }
}

/// Seconds of one run of what `run` records, warm: the best of three series of runs that take about 60 ms.
///
/// For figures in passing; `cargo xtask bench` and criterion keep samples and their spread.
///
/// # Errors
/// Those of `run` and of the device.
pub fn best_seconds(gpu: &Gpu, run: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
    let clock = Clock::of(gpu);
    let mut series = |runs: u32| -> Result<f64> {
        gpu.sync()?;
        let start = clock.now();
        for _ in 0..runs {
            run()?;
        }
        gpu.sync()?;
        Ok((clock.now() - start).as_secs_f64() / f64::from(runs))
    };
    series(1)?; // compiles
    let runs = (SERIES_SECONDS / series(1)?.max(1e-6)).ceil().max(1.0) as u32;
    let mut best = f64::INFINITY;
    for _ in 0..SERIES {
        best = series(runs)?.min(best);
    }
    Ok(best)
}
