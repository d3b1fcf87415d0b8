//! Attention on the blocks that FlexPrefill selects, and how many pairs of a query and a key that saves.

use attn_sparse::flexprefill::ndarray::Array4;
use attn_sparse::flexprefill::{Config, Error, FlexPrefill, Gpu, Inputs, Tensor};

fn main() -> Result<(), Error> {
    let gpu = match Gpu::new() {
        Err(Error::NoAdapter { .. }) => {
            println!("no GPU and no software driver on this machine");
            return Ok(());
        }
        gpu => gpu?,
    };

    // [batch, heads, tokens, dim]: four query heads on two key heads.
    let wave = |heads, seed: usize| {
        let number = |(_, h, t, d): (usize, usize, usize, usize)| {
            (((h * 37 + t * 11 + d * 5 + seed) % 97) as f32 * 0.7).sin()
        };
        Array4::from_shape_fn((1, heads, 500, 32), number).into_dyn()
    };
    let q = Tensor::from_array(&gpu, &wave(4, 1).view())?;
    let k = Tensor::from_array(&gpu, &wave(2, 2).view())?;
    let v = Tensor::from_array(&gpu, &wave(2, 3).view())?;

    let config = Config::new().with_block(32).with_gamma(0.9).with_budget(None, None);
    let output = FlexPrefill::new(&gpu, config)?.forward(Inputs::new(&q, &k, &v))?;
    println!(
        "output {:?}, share of pairs {:.2?}",
        output.out.shape(),
        output.selection.densities()?
    );
    Ok(())
}
