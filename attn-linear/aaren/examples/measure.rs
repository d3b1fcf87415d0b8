//! What the README says of speed: all prefixes against dense causal attention, and streams against a cache of
//! keys and values. Times are CPU seconds of the process where the system tells them, over its cores.

use attn_aaren::{Aaren, Config, Error, Gpu, Inputs, State, Tensor};
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
    prefixes(&gpu)?;
    streams(&gpu)
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

/// Milliseconds a token, one by one, with so many before.
fn streams(gpu: &Gpu) -> Result<(), Error> {
    println!(
        "tokens before   cache us a token   aaren us a token   ratio   cache bytes   aaren bytes"
    );
    let aaren = Aaren::new(gpu, Config::new())?;
    let dense = Attention::new(gpu, Dense::new().with_mask(Mask::Causal))?;
    let steps = 200;
    for before in [0, 1024, 4096, 16_384, 65_536] {
        let (q, k, v) =
            (query(gpu)?, tensor(gpu, 1, before + steps)?, tensor(gpu, 2, before + steps)?);
        let one = q.reshape(&[1, HEADS, 1, DIM])?;
        let first = |x: &Tensor, len| x.narrow(2, 0, len);
        let mut state = State::empty(gpu, 1, HEADS, DIM)?;
        if before > 0 {
            aaren.fold(&mut state, Inputs::new(&q, &first(&k, before)?, &first(&v, before)?))?;
        }
        let start = state.clone();
        let by_state = milliseconds(gpu, &mut || {
            let mut state = start.clone();
            for t in before..before + steps {
                let (k, v) = (k.narrow(2, t, 1)?, v.narrow(2, t, 1)?);
                aaren.decode(&mut state, Inputs::new(&q, &k, &v))?;
            }
            Ok(())
        })?;
        // A cache that holds the keys and values already: only the attention is timed.
        let by_cache = milliseconds(gpu, &mut || {
            for t in before..before + steps {
                dense.forward(attention::Inputs::new(
                    &one,
                    &first(&k, t + 1)?,
                    &first(&v, t + 1)?,
                ))?;
            }
            Ok(())
        })?;
        let us = |ms: f64| 1e3 * ms / steps as f64;
        let cache = 8 * HEADS * DIM * (before + steps);
        println!(
            "{before:13} {:18.1} {:18.1} {:7.2} {cache:13} {:13}",
            us(by_cache),
            us(by_state),
            by_cache / by_state,
            state.bytes(),
        );
    }
    Ok(())
}
