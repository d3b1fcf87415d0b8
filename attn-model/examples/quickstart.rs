//! Opens a model's files, says what is in them, and reads one row of the embedding.
//!
//! Usage: `quickstart [FOLDER OR GGUF FILE]`, by default SmolLM2 from the cache of models.

use std::path::PathBuf;

use attn_model::{DType, EMBEDDING, Message, Result, Source, cache_dir};

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

    let source = Source::open(&path)?;
    let config = &source.config;
    let (layers, heads) = (config.layers.len(), config.heads);
    println!("{:?}: {layers} layers, {heads} heads of {}", config.family, config.head_dim);

    // Rows of a matrix are read without the rest of it.
    let shape = [config.vocabulary, config.hidden];
    let row = source.weights.rows(EMBEDDING, &shape, 7..8, DType::F32)?.to_f32();
    println!("token 7 starts with {:?}", &row[..3]);

    if let Some(tokenizer) = source.tokenizer()? {
        let chat = tokenizer.chat(&[Message::new("user", "Name a fruit.")], true);
        if let Ok(text) = chat {
            println!("{} tokens: {text:?}", tokenizer.encode(&text, false)?.len());
        }
    }
    Ok(())
}
