//! What the README says of speed: all prefixes against dense causal attention. Times are
//! CPU seconds of the process where the system tells them, over its cores.

use attn_aaren::{Aaren, Config, Error, Gpu, Inputs, Tensor};
use attn_core::Mask;
use attn_core::dense::Config as Dense;
use attn_core::testing::{Values, fill};
use attn_wgpu::attention::{self, Attention};
use attn_wgpu::bench::best_seconds;

const HEADS: usize = 4;
const DIM: usize = 64;

fn main() -> Result<(), Error> {
    let gpu = match Gpu::new() {
        Err(Error::NoAdapter { .. }) => {
            println!("no GPU and no software driver on this machine");
            return Ok(());
        }
        gpu => gpu?,
    };
    println!("{}; {HEADS} heads, dims {DIM}", gpu.adapter());
    prefixes(&gpu)
}

/// `[1, HEADS, tokens, DIM]`.
fn tensor(gpu: &Gpu, stream: u64, tokens: usize) -> Result<Tensor, Error> {
    let data = fill(1, stream, Values::Normal, HEADS * tokens * DIM);
    Tensor::from_slice(gpu, &data, &[1, HEADS, tokens, DIM])
}

/// One query a head.
fn query(gpu: &Gpu) -> Result<Tensor, Error> {
    tensor(gpu, 0, 1)?.reshape(&[HEADS, DIM])
}

fn milliseconds(gpu: &Gpu, run: &mut dyn FnMut() -> Result<(), Error>) -> Result<f64, Error> {
    Ok(1e3 * best_seconds(gpu, run)?)
}

fn prefixes(gpu: &Gpu) -> Result<(), Error> {
    println!("tokens   dense ms   aaren ms   ratio   backward ms");
    let aaren = Aaren::new(gpu, Config::new())?;
    let dense = Attention::new(gpu, Dense::new().with_mask(Mask::Causal))?;
    for tokens in [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768] {
        let (q, k, v) = (query(gpu)?, tensor(gpu, 1, tokens)?, tensor(gpu, 2, tokens)?);
        let many = tensor(gpu, 3, tokens)?;
        let inputs = Inputs::new(&q, &k, &v);
        let scan = milliseconds(gpu, &mut || aaren.forward(inputs).map(drop))?;
        let (output, saved) = aaren.forward_saved(inputs)?;
        let cotangents = attn_aaren::Cotangents::new(&output.out);
        let back = milliseconds(gpu, &mut || aaren.backward(&saved, cotangents).map(drop))?;
        let pairs = attention::Inputs::new(&many, &k, &v);
        let full = milliseconds(gpu, &mut || dense.forward(pairs).map(drop))?;
        println!("{tokens:6} {full:10.2} {scan:10.3} {:7.1} {back:12.3}", full / scan);
    }
    Ok(())
}
