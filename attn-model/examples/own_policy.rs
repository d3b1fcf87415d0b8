//! Another attention in a model: Self-Extend (Jin et al., 2024), for texts beyond a model's length.

use attn_model::attn_core::{Mask, dense::Config};
use attn_model::attn_wgpu::attention::{Attention, Inputs, merge};
use attn_model::attn_wgpu::{Gpu, Tensor};
use attn_model::policy::{KeyForm, Layer};
use attn_model::{AttentionPolicy, Model, Options, Result, Source};

/// Keys in front of the last `window` ones are seen at a distance that is divided by `group`.
#[derive(Debug, Clone)]
pub(crate) struct SelfExtend {
    pub(crate) window: usize,
    pub(crate) group: u32,
}

impl AttentionPolicy for SelfExtend {
    fn keys(&self) -> KeyForm {
        KeyForm::Raw
    }

    fn attend(&mut self, layer: &Layer<'_>) -> Result<Tensor> {
        let attention = |mask: Mask, q: &Tensor, k: &Tensor, v: &Tensor| {
            let config = Config::new().with_mask(mask).with_scale(layer.scale());
            Attention::new(layer.gpu(), config)?.forward(Inputs::new(q, k, v))
        };
        let (q, k, v) = (layer.rotated_q()?, layer.rotated_keys()?, layer.values()?);
        let near = attention(Mask::Window { left: self.window - 1, right: 0 }, &q, &k, &v)?;
        let far = layer.positions().len().saturating_sub(self.window);
        if far == 0 {
            return Ok(near.out);
        }
        // A causal mask ends at the last key: without the last `window` keys, it hides as many from each query.
        let shift = self.window as u32 - self.window as u32 / self.group;
        let q_at: Vec<_> = layer.query_positions().iter().map(|p| p / self.group + shift).collect();
        let k_at: Vec<_> = layer.positions()[..far].iter().map(|p| p / self.group).collect();
        let q = layer.rotate(layer.q(), &q_at)?;
        let k = layer.rotate(&layer.keys()?.narrow(2, 0, far)?, &k_at)?;
        let far = attention(Mask::Causal, &q, &k, &v.narrow(2, 0, far)?)?;
        Ok(merge(&[(&near.out, &near.lse), (&far.out, &far.lse)])?.out)
    }

    fn fork(&self) -> Result<Box<dyn AttentionPolicy>> {
        Ok(Box::new(self.clone()))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("give a Hugging Face folder or a GGUF file")?;
    let source = Source::open(std::path::Path::new(&path))?;
    let model = Model::from_source(&Gpu::new()?, &source, Options::default(), &mut |_, _| ())?;
    let tokenizer = source.tokenizer()?.ok_or("the model has no tokenizer")?;
    let text = &tokenizer.encode(include_str!("../README.md"), true)?[..512];
    let own = model.session_with(512, SelfExtend { window: 128, group: 4 })?.score(text)?;
    let dense = model.session(512)?.score(text)?;
    let perplexity = |scores: &[f32]| (scores.iter().sum::<f32>() / scores.len() as f32).exp();
    println!("perplexity {:.2}, dense {:.2}", perplexity(&own), perplexity(&dense));
    Ok(())
}
