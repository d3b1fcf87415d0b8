//! A memory on a device: what it was told it knows, as long as it does not forget.

use attn_memory::titans::ndarray::{Array3, Array4};
use attn_memory::titans::reference;
use attn_memory::titans::{Config, Error, Gpu, Inputs, State, Tensor, Titans};

fn main() -> Result<(), Error> {
    let gpu = match Gpu::new() {
        Err(Error::NoAdapter { .. }) => {
            println!("no GPU and no software driver on this machine");
            return Ok(());
        }
        gpu => gpu?,
    };

    // One head, a linear memory from zeros, and the exact online rule: a step of 1 stores a pair.
    let config = Config::linear(1, 16).with_chunk(1).with_coefficient(1.0);
    let nothing = Array3::zeros((1, 16, 16));
    let state = State::upload(&gpu, &reference::State::new(&[nothing.view()], 1, &config)?)?;
    let titans = Titans::new(&gpu, config)?;

    // [batch, heads, tokens, dim]: ten keys of norm 1 at right angles, and ten values.
    let pair = |(_, _, t, d): (usize, usize, usize, usize)| if t == d { 1.0_f32 } else { 0.0 };
    let k = Array4::from_shape_fn((1, 1, 10, 16), pair);
    let v = Array4::from_shape_fn((1, 1, 10, 16), |(_, _, t, d)| ((t * 17 + d) as f32).sin());
    let up = |x: &Array4<f32>| Tensor::from_array(&gpu, &x.view().into_dyn());
    let (keys, values) = (up(&k)?, up(&v)?);
    let gate = |value: f32| Tensor::full(&gpu, &[1, 1, 10], value);
    let (theta, eta, alpha) = (gate(1.0)?, gate(0.0)?, gate(0.0)?);
    let inputs = Inputs { q: &keys, k: &keys, v: &values, theta: &theta, eta: &eta, alpha: &alpha };
    let state = titans.forward(inputs, &state)?.state;

    let known = titans.read(&keys, &state)?.to_array::<f32>()?;
    let error = known.iter().zip(&v).map(|(known, v)| (known - v).abs()).fold(0.0, f32::max);
    println!("ten pairs are read to {error:.0e}, state of {} bytes", state.bytes());
    Ok(())
}
