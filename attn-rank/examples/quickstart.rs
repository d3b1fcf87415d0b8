//! Which of three documents the last tokens of a prompt attend to.

use attn_rank::blockrank::ndarray::Array4;
use attn_rank::blockrank::{BlockRank, Config, Error, Gpu, Segments, Tensor};

fn main() -> Result<(), Error> {
    let gpu = match Gpu::new() {
        Err(Error::NoAdapter { .. }) => {
            println!("no GPU and no software driver on this machine");
            return Ok(());
        }
        gpu => gpu?,
    };

    // An instruction of 5 tokens, documents of 8, 3 and 6, a query of 4.
    let segments = Segments::one(&[5, 8, 3, 6, 4])?;
    // [batch, heads, tokens, dim]: keys of the second document point where the queries point.
    let key = |(_, _, t, d): (usize, usize, usize, usize)| {
        let second = (13..16).contains(&t);
        if second && d == 0 { 4.0 } else { ((t * 7 + d * 3) as f32).sin() }
    };
    let keys = Array4::from_shape_fn((1, 1, segments.tokens(), 16), key);
    let query = |(_, _, _, d): (usize, usize, usize, usize)| if d == 0 { 4.0_f32 } else { 0.0 };
    let signal = Array4::from_shape_fn((1, 2, 2, 16), query);
    let signal = Tensor::from_array(&gpu, &signal.view().into_dyn())?;
    let keys = Tensor::from_array(&gpu, &keys.view().into_dyn())?;

    let blockrank = BlockRank::new(&gpu, Config::new())?;
    let scores = blockrank.doc_scores(&signal, &keys, &blockrank.segments(&segments)?)?;
    println!("scores {:.3?}", scores.to_vec::<f32>()?);
    Ok(())
}
