//! The search of a kept history at half the width and at all of it, and a forward and backward pass.

use std::time::Duration;

use attn_core::testing::{Values, bits, fill};
use attn_dare::{
    Batch, Config, Cotangents, Dare, Embeddings, Error, Gpu, Inputs, Tables, Tensor, Widths,
};
use attn_wgpu::bench::Clock;
use criterion::measurement::Measurement;
use criterion::{BenchmarkGroup, Criterion};

const ROWS: [usize; 2] = [20_000, 200];

fn main() -> Result<(), Error> {
    let gpu = Gpu::new()?;
    let mut criterion = Criterion::default()
        .with_measurement(Clock::of(&gpu))
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let mut group = criterion.benchmark_group("search-8-candidates");
    for length in [4096, 32_768] {
        for width in [8, 16] {
            let config = config(width).without_auxiliary();
            let tables = tables(&gpu, &config, length + 1)?;
            let dare = Dare::new(&gpu, config)?;
            let mut history = dare.history(&tables, false)?;
            dare.append(&mut history, &ids(length, 4, ROWS[0]), &ids(length, 5, ROWS[1]))?;
            let item = Tensor::from_slice(&gpu, &ids(8, 10, ROWS[0]), &[8])?;
            let category = Tensor::from_slice(&gpu, &ids(8, 11, ROWS[1]), &[8])?;
            time(&gpu, &mut group, &format!("{length}-a{}", 3 * width), || {
                dare.recall(&history, &item, &category).map(drop)
            })?;
        }
    }
    group.finish();
    let mut group = criterion.benchmark_group("step-128-requests");
    for width in [4, 16] {
        let config = config(width);
        let tables = tables(&gpu, &config, 201)?;
        let dare = Dare::new(&gpu, config)?;
        let up = |data: Vec<u32>, shape: &[usize]| Tensor::from_slice(&gpu, &data, shape);
        let batch = Batch::new(
            up(ids(128, 6, ROWS[0]), &[128])?,
            up(ids(128, 7, ROWS[1]), &[128])?,
            up(ids(128 * 200, 8, ROWS[0]), &[128, 200])?,
            up(ids(128 * 200, 9, ROWS[1]), &[128, 200])?,
        );
        time(&gpu, &mut group, &format!("a{}", 3 * width), || {
            let (output, saved) = dare.forward_saved(Inputs::new(&tables, &batch))?;
            let dx = &output.features;
            dare.backward(&saved, Cotangents::new(dx).with_auxiliary(dx)).map(drop)
        })?;
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}

fn config(width: usize) -> Config {
    Config::new().with_widths(Widths::each(width), Widths::each(16))
}

fn ids(count: usize, stream: u64, rows: usize) -> Vec<u32> {
    (0..count as u64).map(|i| (1 + bits(3, stream, i) % (rows as u64 - 1)) as u32).collect()
}

fn tables(gpu: &Gpu, config: &Config, slots: usize) -> Result<Tables, Error> {
    let stage = |seed, widths: Widths| {
        let table = |stream, rows, width| {
            let data = fill(seed, stream, Values::Normal, rows * width);
            Tensor::from_slice(gpu, &data, &[rows, width])
        };
        Ok::<_, Error>(Embeddings::new(
            table(0, ROWS[0], widths.item)?,
            table(1, ROWS[1], widths.category)?,
            table(2, slots, widths.time)?,
        ))
    };
    Ok(Tables::new(stage(1, config.attention)?, stage(2, config.representation)?))
}

fn time(
    gpu: &Gpu,
    group: &mut BenchmarkGroup<'_, Clock>,
    name: &str,
    record: impl Fn() -> Result<(), Error>,
) -> Result<(), Error> {
    let clock = Clock::of(gpu);
    let mut failure = None;
    let run = |times: u64| -> Result<Duration, Error> {
        gpu.sync()?;
        let start = clock.start();
        (0..times).try_for_each(|_| record())?;
        gpu.sync()?;
        Ok(clock.end(start))
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
