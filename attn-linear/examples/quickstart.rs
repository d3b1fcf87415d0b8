//! A stream of tokens under one learned query: what it attends to so far, in constant memory.

use attn_linear::aaren::ndarray::Array4;
use attn_linear::aaren::{Aaren, Config, Error, Gpu, Inputs, State, Tensor};

fn main() -> Result<(), Error> {
    let gpu = match Gpu::new() {
        Err(Error::NoAdapter { .. }) => {
            println!("no GPU and no software driver on this machine");
            return Ok(());
        }
        gpu => gpu?,
    };

    // [batch, heads, tokens, dim], and a query a head.
    let wave = |seed: usize| {
        let number = |(_, h, t, d): (usize, usize, usize, usize)| {
            (((h * 37 + t * 11 + d * 5 + seed) % 97) as f32 * 0.7).sin()
        };
        Array4::from_shape_fn((1, 2, 500, 16), number).into_dyn()
    };
    let k = Tensor::from_array(&gpu, &wave(1).view())?;
    let v = Tensor::from_array(&gpu, &wave(2).view())?;
    let q = Tensor::full(&gpu, &[2, 16], 0.5f32)?;

    let aaren = Aaren::new(&gpu, Config::new())?;
    let mut state = State::empty(&gpu, 1, 2, 16)?;
    for start in (0..500).step_by(50) {
        let (k, v) = (k.narrow(2, start, 50)?, v.narrow(2, start, 50)?);
        aaren.fold(&mut state, Inputs::new(&q, &k, &v))?;
    }
    println!("state of {} bytes, output {:?}", state.bytes(), state.out()?.shape());
    Ok(())
}
