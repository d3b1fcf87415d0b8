//! Attention in blocks, scores of documents, and the gradient of the loss that makes scores of attention.

use attn_blockrank::ndarray::Array4;
use attn_blockrank::{BlockRank, Config, Error, Gpu, Inputs, Positives, Segments, Tensor};

fn main() -> Result<(), Error> {
    let gpu = match Gpu::new() {
        Err(Error::NoAdapter { .. }) => {
            println!("no GPU and no software driver on this machine");
            return Ok(());
        }
        gpu => gpu?,
    };

    // An instruction of 12 tokens, four documents, a query of 9 tokens.
    let segments = Segments::one(&[12, 40, 25, 33, 18, 9])?;
    // [batch, heads, tokens, dim]: four query heads on two key heads.
    let wave = |heads, seed: usize| {
        let number = |(_, h, t, d): (usize, usize, usize, usize)| {
            (((h * 37 + t * 11 + d * 5 + seed) % 97) as f32 * 0.7).sin()
        };
        let array = Array4::from_shape_fn((1, heads, segments.tokens(), 32), number);
        Tensor::from_array(&gpu, &array.view().into_dyn())
    };
    let (q, k, v) = (wave(4, 1)?, wave(2, 2)?, wave(2, 3)?);

    let blockrank = BlockRank::new(&gpu, Config::new())?;
    let on_device = blockrank.segments(&segments)?;
    let output = blockrank.forward(Inputs::new(&q, &k, &v), &on_device)?;
    println!("output {:?}, {} pairs a head", output.out.shape(), segments.pairs());

    // How much of the attention of the last two tokens each document gets.
    let signal = blockrank.signal_queries(&q, &on_device)?;
    let (scores, saved) = blockrank.doc_scores_saved(&signal, &k, &on_device)?;
    println!("scores {:.3?}", scores.to_vec::<f32>()?);

    // Document 2 is the right one.
    let positives = Positives::new(&gpu, &segments, &[vec![2]])?;
    let loss = blockrank.loss(&scores, &positives)?;
    let grads = blockrank.doc_scores_backward(&saved, &loss.d_scores)?;
    println!("loss {:.3?}, gradient {:?}", loss.loss.to_vec::<f32>()?, grads.dk.shape());
    Ok(())
}
