//! Cross-attention both ways with gradients, and a causal text as a stream.

use attn_flowformer::ndarray::Array4;
use attn_flowformer::{Config, Cotangents, Error, Flowformer, Gpu, Inputs, State, Tensor};

fn main() -> Result<(), Error> {
    let gpu = match Gpu::new() {
        Err(Error::NoAdapter { .. }) => {
            println!("no GPU and no software driver on this machine");
            return Ok(());
        }
        gpu => gpu?,
    };
    println!("{}", gpu.adapter());

    // [batch, heads, tokens, dim]: 200 queries on 300 keys.
    let wave = |at: usize| ((at * 7919 % 1009) as f32 * 0.37).sin();
    let tensor = |seed: usize, tokens: usize| {
        let of =
            |(_, h, t, d): (usize, usize, usize, usize)| wave(seed + h * 31 + t * 17 + d * 101);
        Tensor::from_array(&gpu, &Array4::from_shape_fn((1, 2, tokens, 32), of).view().into_dyn())
    };
    let (q, k, v) = (tensor(1, 200)?, tensor(2, 300)?, tensor(3, 300)?);
    let attention = Flowformer::new(&gpu, Config::new())?;
    let (output, saved) = attention.forward_saved(Inputs::new(&q, &k, &v))?;
    println!("output {:?}", output.out.shape());
    let grads = attention.backward(&saved, Cotangents { out: &output.out })?;
    println!("gradient {:?}", grads.dq.shape());

    // Token by token, in constant memory.
    let attention = Flowformer::new(&gpu, Config::causal())?;
    let mut state = State::empty(&gpu, [1, 2, 32, 32])?;
    for t in 0..200 {
        let part = |x: &Tensor| x.narrow(2, t, 1);
        let (q, k, v) = (part(&q)?, part(&k)?, part(&v)?);
        attention.decode(&mut state, Inputs::new(&q, &k, &v))?;
    }
    println!("state of {} bytes", state.bytes());
    Ok(())
}
