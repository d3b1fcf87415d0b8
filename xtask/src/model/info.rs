//! `cargo xtask model info`: what a model is made of, and what it will take.

use std::path::PathBuf;

use anyhow::Result;
use attn_model::{DType, ModelConfig, Options, Source, cache_bytes, weight_bytes};

use super::{Dtype, mib};

/// Say what a model is made of and how much memory it will take, without loading it.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face folder or a GGUF file
    #[arg(long, value_name = "DIR|FILE")]
    model: PathBuf,
    /// Type of the weights on the device
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    weights: Dtype,
    /// Type of cached keys and values
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    cache: Dtype,
}

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    let source = Source::open(&args.model)?;
    let options =
        Options::default().with_weights(args.weights.into()).with_cache(args.cache.into());
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
    let name = |dtype: DType| dtype.name();
    println!(
        "on the device    {} of weights in {}",
        mib(weight_bytes(&source.config, options)),
        name(options.weights)
    );
    for tokens in [1024, source.config.context] {
        let bytes = cache_bytes(&source.config, options, tokens);
        println!(
            "                 {} of keys and values in {} for {tokens} tokens",
            mib(bytes),
            name(options.cache)
        );
    }
    Ok(())
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
