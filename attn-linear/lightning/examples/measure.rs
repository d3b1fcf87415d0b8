//! What the README says of long texts: a whole text against dense causal attention. Times are CPU
//! seconds of the process over its cores on a software driver.

use attn_core::Mask;
use attn_core::dense::Config as Dense;
use attn_core::testing::{Values, fill};
use attn_lightning::{Config, Error, Gpu, Inputs, Lightning, Tensor};
use attn_wgpu::attention::{self, Attention};
use attn_wgpu::bench::best_seconds;

const DIM: usize = 64;

fn main() -> Result<(), Error> {
    let gpu = match Gpu::new() {
        Err(Error::NoAdapter { .. }) => {
            println!("no GPU and no software driver on this machine");
            return Ok(());
        }
        gpu => gpu?,
    };
    println!("{}; one head, dims {DIM}", gpu.adapter());
    texts(&gpu)
}

/// `[1, 1, tokens, DIM]`, small enough that sums over a text stay of the size of its values.
fn tensor(gpu: &Gpu, stream: u64, tokens: usize) -> Result<Tensor, Error> {
    let data = fill(1, stream, Values::Normal, tokens * DIM);
    let data: Vec<f32> = data.iter().map(|x| 0.1 * x).collect();
    Tensor::from_slice(gpu, &data, &[1, 1, tokens, DIM])
}

/// Most bytes in use during a run, beyond those in use before it.
fn extra_bytes(gpu: &Gpu, run: &mut dyn FnMut() -> Result<(), Error>) -> Result<u64, Error> {
    gpu.sync()?;
    let before = gpu.memory().in_use;
    gpu.reset_peak();
    run()?;
    gpu.sync()?;
    Ok(gpu.memory().peak.saturating_sub(before))
}

fn texts(gpu: &Gpu) -> Result<(), Error> {
    println!("tokens   dense ms   lightning ms   ratio   lightning us a token   lightning MB");
    let lightning = Lightning::new(gpu, Config::new(1))?;
    let dense = Attention::new(gpu, Dense::new().with_mask(Mask::Causal))?;
    for tokens in [128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768] {
        let (q, k, v) = (tensor(gpu, 0, tokens)?, tensor(gpu, 1, tokens)?, tensor(gpu, 2, tokens)?);
        let mut linear = || lightning.forward(Inputs::new(&q, &k, &v)).map(drop);
        let by_blocks = 1e3 * best_seconds(gpu, &mut linear)?;
        let bytes = extra_bytes(gpu, &mut linear)?;
        let pairs = attention::Inputs::new(&q, &k, &v);
        let by_pairs = 1e3 * best_seconds(gpu, &mut || dense.forward(pairs).map(drop))?;
        println!(
            "{tokens:6} {by_pairs:10.2} {by_blocks:14.3} {:7.2} {:22.3} {:14.2}",
            by_pairs / by_blocks,
            1e3 * by_blocks / tokens as f64,
            bytes as f64 / 1e6,
        );
    }
    Ok(())
}
