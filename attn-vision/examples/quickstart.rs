//! Where a token looks, through all layers of a stack, and what to point a segmenter at.

use attn_vision::vlsam::ndarray::Array4;
use attn_vision::vlsam::{
    AttentionFlow, Config, Error, Gpu, LayerAttention, Layers, QueriesKeys, Tensor, TokenLayout,
    dense,
};

fn main() -> Result<(), Error> {
    let gpu = match Gpu::new() {
        Err(Error::NoAdapter { .. }) => {
            println!("no GPU and no software driver on this machine");
            return Ok(());
        }
        gpu => gpu?,
    };

    // BOS, an image of 4 x 6 patches, a prompt of 7 tokens; 6 layers of four query heads on two key heads.
    let (tokens, patch) = (1 + 24 + 7, 1 + 2 * 6 + 4);
    let wave = |heads: usize, seed: usize, object: usize| {
        let mut x = Array4::from_shape_fn((1, heads, tokens, 16), |(_, h, t, d)| {
            (((h * 37 + t * 11 + d * 5 + seed) % 97) as f32 * 0.7).sin()
        });
        // What the last token looks for is in one patch.
        x.slice_mut(attn_vision::vlsam::ndarray::s![0, .., object, ..]).fill(1.5);
        Tensor::from_array(&gpu, &x.into_dyn().view())
    };
    let causal = dense::Config::new().with_mask(attn_vision::vlsam::Mask::Causal);
    let layers = (0..6).map(|l| {
        let (q, k) = (wave(4, l, tokens - 1)?, wave(2, 50 + l, patch)?);
        Ok(LayerAttention::QueriesKeys(QueriesKeys::new(&q, &k, causal.clone())))
    });
    let source = Layers::new(tokens, layers.collect::<Result<_, Error>>()?);

    // The name of the object is the last token.
    let layout = TokenLayout::new(1..25, (4, 6), [tokens - 1]);
    let map = AttentionFlow::new(&gpu, Config::new())?.forward(&source, &layout)?.read()?;
    for row in map.values().chunks(6) {
        println!("{row:.2?}");
    }
    println!("strongest patch {:?}, planted in (2, 4)", map.peak());
    Ok(())
}
