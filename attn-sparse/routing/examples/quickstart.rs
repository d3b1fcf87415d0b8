//! A layer of two heads, trained for one step, and the same text token by token.

use attn_routing::ndarray::{Array3, Array4};
use attn_routing::{Config, Cotangents, Error, Gpu, Inputs, Routing, Tensor, Uninitialised};

fn main() -> Result<(), Error> {
    let gpu = match Gpu::new() {
        Err(Error::NoAdapter { .. }) => {
            println!("no GPU and no software driver on this machine");
            return Ok(());
        }
        gpu => gpu?,
    };
    println!("{}", gpu.adapter());

    // [batch, heads, tokens, dim]: keys are the queries, and each of 8 centroids takes 32 tokens.
    let wave = |at: usize| ((at * 7919 % 1009) as f32 * 0.37).sin();
    let tokens = |seed: usize| {
        let of =
            |(_, h, t, d): (usize, usize, usize, usize)| wave(seed + h * 31 + t * 17 + d * 101);
        Tensor::from_array(&gpu, &Array4::from_shape_fn((1, 2, 256, 32), of).view().into_dyn())
    };
    let (q, v) = (tokens(1)?, tokens(2)?);
    let first = Array3::from_shape_fn((2, 8, 32), |(h, c, d)| wave(h * 13 + c * 57 + d * 3));
    let first = Tensor::from_array(&gpu, &first.view().into_dyn())?;
    let centroids = Uninitialised::new(2, 8, 32).with_normals(&first)?;

    let layer = Routing::new(&gpu, Config::new(8, 32))?;
    let inputs = Inputs::new(&q, &q, &v);
    let (output, saved) = layer.forward_saved(inputs, None, &centroids)?;
    println!("output {:?}", output.out.shape());
    let grads = layer.backward(&saved, Cotangents { out: &output.out })?;
    println!("gradient {:?}", grads.dq.shape());
    let loss = layer.commitment_loss(inputs, &output.routes, &centroids)?.loss;
    println!("commitment loss {:.2e}", loss.to_vec::<f32>()?[0]);
    let centroids = layer.update(inputs, &output.routes, &centroids)?;

    // Token by token, each attends to what the centroids hold when it comes.
    let mut state = layer.state(1, 2, 32, 32)?;
    let out = layer.decode(&mut state, inputs, &centroids)?;
    println!("{} tokens, output {:?}, state of {} bytes", state.len(), out.shape(), state.bytes());
    Ok(())
}
