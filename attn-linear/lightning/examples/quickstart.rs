//! Lightning attention on tokens of a wave, with gradients and token by token.

use attn_lightning::ndarray::Array4;
use attn_lightning::{Config, Cotangents, Error, Gpu, Inputs, Lightning, Tensor};

fn main() -> Result<(), Error> {
    let gpu = match Gpu::new() {
        Err(Error::NoAdapter { .. }) => {
            println!("no GPU and no software driver on this machine");
            return Ok(());
        }
        gpu => gpu?,
    };
    println!("{}", gpu.adapter());

    // [batch, heads, tokens, dim] for layer 0 of 24, with the decays of the released weights.
    let tokens = |seed: usize, count: usize| {
        let wave = |(_, h, t, d): (usize, usize, usize, usize)| {
            ((seed + h * 31 + t * 17 + d * 101) as f32 * 0.37).sin()
        };
        Tensor::from_array(&gpu, &Array4::from_shape_fn((1, 8, count, 32), wave).view().into_dyn())
    };
    let (q, k, v) = (tokens(1, 300)?, tokens(2, 300)?, tokens(3, 300)?);
    let lightning = Lightning::new(&gpu, Config::new(8).with_layer(0, 24))?;
    let (output, saved) = lightning.forward_saved(Inputs::new(&q, &k, &v))?;
    let grads = lightning.backward(&saved, Cotangents::new(&output.out))?;
    println!("output {:?}, gradient {:?}", output.out.shape(), grads.dq.shape());

    // A prompt, then the next token: the state has one size, whatever the length.
    let (_, mut state) = lightning.prefill(Inputs::new(&q, &k, &v))?;
    let new = tokens(4, 1)?;
    let out = lightning.decode(&mut state, Inputs::new(&new, &new, &new))?;
    println!("{:?} at {}, state of {} bytes", out.shape(), state.position(), state.bytes());
    Ok(())
}
