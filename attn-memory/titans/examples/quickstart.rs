//! Attention in a window, gated by a memory that reads every token: a prompt, then token by token.

use attn_titans::layer::Layer;
use attn_titans::ndarray::Array3;
use attn_titans::reference::layer::Weights;
use attn_titans::{Combination, Config, Error, Gpu, LayerConfig, Tensor};

fn main() -> Result<(), Error> {
    let gpu = match Gpu::new() {
        Err(Error::NoAdapter { .. }) => {
            println!("no GPU and no software driver on this machine");
            return Ok(());
        }
        gpu => gpu?,
    };
    println!("{}", gpu.adapter());

    // Memories of two heads, 16 -> 32 -> 16, which take a step of gradients every 8 tokens, as the gate of
    // attention in a window of 32.
    let memory = Config::deep(2, 16, 32).with_chunk(8);
    let config = LayerConfig::new(memory, Combination::Gate { window: 32 });

    // Tokens of 24 elements, convolutions of 4 tokens, 2 persistent tokens. `Layer::load` reads trained
    // weights; here are waves.
    let mut weights = Weights::new(&config, 24, 4, 2)?;
    for (i, (_, mut array)) in weights.named_mut().into_iter().enumerate() {
        let wave = |j: usize| 0.3 * ((i * 331 + j * 17) as f64 * 0.37).sin();
        array.iter_mut().enumerate().for_each(|(j, x)| *x += wave(j));
    }
    let layer = Layer::new(&gpu, config, &weights)?;

    // [batch, tokens, d_model].
    let tokens = |seed: usize, count: usize| {
        let wave =
            |(_, t, d): (usize, usize, usize)| ((seed + t * 17 + d * 101) as f32 * 0.37).sin();
        Tensor::from_array(&gpu, &Array3::from_shape_fn((1, count, 24), wave).view().into_dyn())
    };
    let prompt = layer.forward(&tokens(1, 100)?, None)?;
    println!("output {:?}, of the memory {:?}", prompt.out.shape(), prompt.memory.shape());

    // The state has one size from the first full window on, and may be saved.
    let mut state = prompt.state;
    for seed in 0..5 {
        let out = layer.decode(&mut state, &tokens(seed, 1)?)?;
        println!("{:?} at {}", out.shape(), state.position());
    }
    println!("state of {} bytes", state.bytes());
    Ok(())
}
