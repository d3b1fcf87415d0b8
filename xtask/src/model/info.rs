//! `cargo xtask model info`: what a model is made of, and what it will take.

use std::path::PathBuf;

use anyhow::Result;
use attn_model::{ModelConfig, Source, cache_bytes, weight_bytes, weight_forms};

use super::{Dtype, WeightsAs, mib};

/// Say what a model is made of and how much memory it will take, without loading it.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face folder or a GGUF file
    #[arg(long, value_name = "DIR|FILE")]
    model: PathBuf,
    /// How the weights lie on the device (packed, where the file has such blocks, f16 and f32 by default)
    #[arg(long, value_name = "TYPE")]
    weights: Option<WeightsAs>,
    /// Type of cached keys and values
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    cache: Dtype,
    /// Tokens of a context whose keys and values are counted
    #[arg(long, value_name = "N", default_value_t = 2048)]
    tokens: usize,
}

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    let source = Source::open(&args.model)?;
    print!("{}", text(&source.config));
    println!("stored as");
    for stored in source.weights.types() {
        let (tensors, elements) = (stored.tensors, stored.elements as f64 / 1e6);
        println!(
            "  {:<5} {tensors:>4} tensors, {elements:>8.2} M elements, {}",
            stored.name,
            mib(stored.bytes)
        );
    }
    let tokenizer = match source.tokenizer() {
        Ok(Some(tokenizer)) => {
            let templates: Vec<_> = tokenizer.templates().collect();
            format!("{} tokens, chat templates: {}", tokenizer.vocabulary(), templates.join(", "))
        }
        Ok(None) => "none".into(),
        Err(error) => error.to_string(),
    };
    println!("tokenizer        {tokenizer}");
    print!("{}", memory(&source, args.weights, args.cache, args.tokens));
    Ok(())
}

/// What the device will hold.
pub fn memory(source: &Source, weights: Option<WeightsAs>, cache: Dtype, tokens: usize) -> String {
    let has_blocks =
        weight_forms(source, WeightsAs::Packed.options(cache)).iter().any(|form| form.is_packed);
    let all = match weights {
        Some(one) => vec![one],
        None if has_blocks => vec![WeightsAs::Packed, WeightsAs::F16, WeightsAs::F32],
        None => vec![WeightsAs::F16, WeightsAs::F32],
    };
    let mut text = String::new();
    for weights in all {
        let options = weights.options(cache);
        text += &format!("on the device, {}\n", weights.name());
        for form in weight_forms(source, options) {
            text += &format!(
                "  {:<5} {:>4} tensors, {:>8.2} M elements, {}{}\n",
                form.name,
                form.tensors,
                form.elements as f64 / 1e6,
                mib(form.bytes),
                if form.is_packed { ", packed" } else { "" },
            );
        }
        let own = weight_bytes(source, options);
        text += &format!("  {} of weights\n", mib(own));
        for tokens in [tokens, source.config.context] {
            let keys = cache_bytes(&source.config, options, tokens);
            text += &format!(
                "  {} with keys and values of {tokens} tokens, {} in {}\n",
                mib(own + keys),
                mib(keys),
                options.cache.name()
            );
        }
    }
    text
}

fn text(config: &ModelConfig) -> String {
    let elements: usize =
        config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let windows = config.layers.iter().filter(|layer| layer.window.is_some()).count();
    let sliding = match config.layers.iter().find_map(|layer| layer.window) {
        Some(window) => format!(", {windows} with a window of {window}"),
        None => String::new(),
    };
    format!(
        "family           {}\nparameters       {:.2} M\nlayers           {}{sliding}\nhidden, mlp      {}, {}\n\
         heads            {} of {}, {} for keys and values\nvocabulary       {}{}\ncontext          {}\n",
        config.family.model_type(),
        elements as f64 / 1e6,
        config.layers.len(),
        config.hidden,
        config.mlp,
        config.heads,
        config.head_dim,
        config.heads_kv,
        config.vocabulary,
        if config.tied { ", embedding and head tied" } else { "" },
        config.context,
    )
}
