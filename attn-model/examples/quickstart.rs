//! Continues a text.
//!
//! Usage: `attn-model-quickstart [FOLDER OR GGUF FILE]`, by default SmolLM2 from the cache of models.

use std::path::PathBuf;

use attn_model::attn_wgpu::{self, Gpu};
use attn_model::{Generate, Model, Options, Result, Source, cache_dir};

fn main() -> Result<()> {
    let cached = "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
    let path = std::env::args().nth(1).map(PathBuf::from);
    let path = path.or_else(|| cache_dir().map(|cache| cache.join(cached)));
    let Some(path) = path.filter(|path| path.exists()) else {
        println!(
            "no model: give a folder or a GGUF file, or run `cargo xtask model fetch smollm2`"
        );
        return Ok(());
    };
    let gpu = match Gpu::new() {
        Err(attn_wgpu::Error::NoAdapter { .. }) => {
            println!("no GPU and no software driver on this machine");
            return Ok(());
        }
        gpu => gpu?,
    };

    let source = Source::open(&path)?;
    let model = Model::from_source(&gpu, &source, Options::packed(), &mut |_, _| ())?;
    let Some(tokenizer) = source.tokenizer()? else {
        println!("no tokenizer: {} layers on {}", model.config().layers.len(), gpu.adapter());
        return Ok(());
    };

    let prompt = tokenizer.encode("The capital of France is", true)?;
    let mut session = model.session(64)?;
    let mut words = tokenizer.decode_stream();
    for token in session.generate(&prompt, Generate::greedy(8))? {
        print!("{}", words.push(token?)?);
    }
    println!("{}", words.finish()?);
    Ok(())
}
