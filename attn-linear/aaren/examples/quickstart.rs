//! All prefixes at once with gradients, and the same tokens as a stream.

use attn_aaren::ndarray::{Array2, Array4};
use attn_aaren::{Aaren, Config, Cotangents, Error, Gpu, Inputs, State, Tensor};

fn main() -> Result<(), Error> {
    let gpu = match Gpu::new() {
        Err(Error::NoAdapter { .. }) => {
            println!("no GPU and no software driver on this machine");
            return Ok(());
        }
        gpu => gpu?,
    };
    println!("{}", gpu.adapter());

    // One learned query a head; keys and values [batch, heads, tokens, dim].
    let wave = |at: usize| ((at * 7919 % 1009) as f32 * 0.37).sin();
    let tokens = |seed: usize| {
        let of =
            |(_, h, t, d): (usize, usize, usize, usize)| wave(seed + h * 31 + t * 17 + d * 101);
        Tensor::from_array(&gpu, &Array4::from_shape_fn((1, 4, 300, 32), of).view().into_dyn())
    };
    let (k, v) = (tokens(1)?, tokens(2)?);
    let q = Array2::from_shape_fn((4, 32), |(h, d)| wave(h * 13 + d * 3));
    let q = Tensor::from_array(&gpu, &q.view().into_dyn())?;

    let aaren = Aaren::new(&gpu, Config::new())?;
    let (output, saved) = aaren.forward_saved(Inputs::new(&q, &k, &v))?;
    println!("output {:?}", output.out.shape());
    let grads = aaren.backward(&saved, Cotangents::new(&output.out))?;
    println!("gradient of the queries {:?}", grads.dq.shape());

    // Token by token, in constant memory.
    let mut state = State::empty(&gpu, 1, 4, 32)?;
    for t in 0..300 {
        let (k, v) = (k.narrow(2, t, 1)?, v.narrow(2, t, 1)?);
        aaren.decode(&mut state, Inputs::new(&q, &k, &v))?;
    }
    println!("state of {} bytes, output {:?}", state.bytes(), state.out()?.shape());
    Ok(())
}
