//! Dense attention in f64 under a mask, with gradients.

use attn_core::dense::{self, Config, Cotangents, Inputs};
use attn_core::ndarray::Array4;
use attn_core::{Mask, Result};

fn main() -> Result<()> {
    // Four query heads share two key heads: [batch, heads, tokens, dim].
    let q = Array4::from_shape_fn((1, 4, 6, 8), |(_, h, i, d)| ((h + i * d) as f64).sin());
    let k = Array4::from_shape_fn((1, 2, 6, 8), |(_, h, t, d)| ((h * t + d) as f64).cos());
    let v = Array4::from_shape_fn((1, 2, 6, 8), |(_, h, t, d)| (h + t + d) as f64);
    let inputs = Inputs::new(q.view(), k.view(), v.view());

    let config = Config::new().with_mask(Mask::Window { left: 2, right: 0 });
    let output = dense::forward(inputs, &config)?;
    println!("head 0, query 5: log-sum-exp {:.4}", output.lse[[0, 0, 5]]);
    println!("largest logit at key {:?}", output.argmax[[0, 0, 5]]);

    let d_out = Array4::ones(output.out.dim());
    let cotangents = Cotangents { out: d_out.view(), lse: None };
    let grads = dense::backward(inputs, &config, &output, cotangents)?;
    println!("the key gradient has shape {:?}", grads.dk.shape());
    Ok(())
}
