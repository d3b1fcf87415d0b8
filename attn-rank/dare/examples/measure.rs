//! What the README says of speed: the search at half the width, and the parts of a training step. Times are CPU
//! seconds of the process where the system tells them, over its cores.

use attn_core::testing::{Values, bits, fill};
use attn_dare::{
    Batch, Config, Cotangents, Dare, Embeddings, Error, Gpu, Inputs, Tables, Tensor, Widths,
};
use attn_wgpu::bench::best_seconds;

const ITEMS: usize = 20_000;
const CATEGORIES: usize = 200;

fn main() -> Result<(), Error> {
    let gpu = match Gpu::new() {
        Err(Error::NoAdapter { .. }) => {
            println!("no GPU and no software driver on this machine");
            return Ok(());
        }
        gpu => gpu?,
    };
    println!("{}", gpu.adapter());
    serving(&gpu)?;
    plain(&gpu)?;
    training(&gpu)
}

fn tables(gpu: &Gpu, config: &Config, slots: usize) -> Result<Tables, Error> {
    let stage = |seed, widths: Widths| {
        let table = |stream, rows, width| {
            Tensor::from_slice(
                gpu,
                &fill(seed, stream, Values::Normal, rows * width),
                &[rows, width],
            )
        };
        Ok::<_, Error>(Embeddings::new(
            table(0, ITEMS, widths.item)?,
            table(1, CATEGORIES, widths.category)?,
            table(2, slots, widths.time)?,
        ))
    };
    Ok(Tables::new(stage(1, config.attention)?, stage(2, config.representation)?))
}

fn ids(count: usize, stream: u64, rows: usize) -> Vec<u32> {
    (0..count as u64).map(|i| (1 + bits(3, stream, i) % (rows as u64 - 1)) as u32).collect()
}

fn milliseconds(gpu: &Gpu, run: &mut dyn FnMut() -> Result<(), Error>) -> Result<f64, Error> {
    Ok(1e3 * best_seconds(gpu, run)?)
}

/// Widths of the three tables whose sums are 24 and 48.
const WIDTHS: [usize; 2] = [8, 16];

/// A kept history of N behaviours, 8 candidates.
fn serving(gpu: &Gpu) -> Result<(), Error> {
    println!(
        "search of a kept history for 8 candidates, K = 20, ms\nbehaviours   A = 24   A = 48   ratio"
    );
    let (item, category) = (ids(8, 10, ITEMS), ids(8, 11, CATEGORIES));
    let item = Tensor::from_slice(gpu, &item, &[8])?;
    let category = Tensor::from_slice(gpu, &category, &[8])?;
    for length in [1024, 4096, 16_384, 32_768] {
        let mut times = Vec::new();
        for width in WIDTHS {
            let widths = Widths::each(width);
            let config = Config::new().with_widths(widths, Widths::each(16)).without_auxiliary();
            let tables = tables(gpu, &config, length + 1)?;
            let dare = Dare::new(gpu, config)?;
            let mut history = dare.history(&tables, false)?;
            dare.append(&mut history, &ids(length, 4, ITEMS), &ids(length, 5, CATEGORIES))?;
            times.push(milliseconds(gpu, &mut || {
                dare.recall(&history, &item, &category).map(drop)
            })?);
        }
        println!("{length:10} {:8.3} {:8.3} {:7.2}", times[0], times[1], times[0] / times[1]);
    }
    Ok(())
}

fn batch(gpu: &Gpu, requests: usize, length: usize) -> Result<Batch, Error> {
    let up = |data: Vec<u32>, shape: &[usize]| Tensor::from_slice(gpu, &data, shape);
    let many = [requests, length];
    Ok(Batch::new(
        up(ids(requests, 6, ITEMS), &[requests])?,
        up(ids(requests, 7, CATEGORIES), &[requests])?,
        up(ids(requests * length, 8, ITEMS), &many)?,
        up(ids(requests * length, 9, CATEGORIES), &many)?,
    ))
}

/// Rows gathered from the tables, 8 requests with a history of their own.
fn plain(gpu: &Gpu) -> Result<(), Error> {
    println!(
        "search of 8 histories through the tables, K = 20, ms\nbehaviours   A = 24   A = 48   ratio"
    );
    for length in [1024, 4096, 16_384] {
        let mut times = Vec::new();
        for width in WIDTHS {
            let widths = Widths::each(width);
            let config = Config::new().with_widths(widths, Widths::each(16)).without_auxiliary();
            let tables = tables(gpu, &config, length + 1)?;
            let dare = Dare::new(gpu, config)?;
            let batch = batch(gpu, 8, length)?;
            let inputs = Inputs::new(&tables, &batch);
            times.push(milliseconds(gpu, &mut || dare.forward(inputs).map(drop))?);
        }
        println!("{length:10} {:8.3} {:8.3} {:7.2}", times[0], times[1], times[0] / times[1]);
    }
    Ok(())
}

/// The paper's batch is 2048; one of 256 says how it is shared.
fn training(gpu: &Gpu) -> Result<(), Error> {
    println!("256 requests of 200 behaviours, both heads' features, ms");
    for width in [4, 8, 16] {
        let config = Config::new().with_widths(Widths::each(width), Widths::each(16));
        let tables = tables(gpu, &config, 201)?;
        let dare = Dare::new(gpu, config)?;
        let batch = batch(gpu, 256, 200)?;
        let inputs = Inputs::new(&tables, &batch);
        let forward = milliseconds(gpu, &mut || dare.forward(inputs).map(drop))?;
        let (output, saved) = dare.forward_saved(inputs)?;
        let dx = &output.features;
        let cotangents = Cotangents::new(dx).with_auxiliary(dx);
        let backward = milliseconds(gpu, &mut || dare.backward(&saved, cotangents).map(drop))?;
        println!("A = {:3}: forward {forward:8.2}, backward {backward:8.2}", 3 * width);
    }
    Ok(())
}
