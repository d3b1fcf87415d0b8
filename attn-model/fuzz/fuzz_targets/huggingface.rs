//! Any bytes as each file of a Hugging Face folder. The first byte says which.
#![no_main]

use attn_model::{Blob, DType, Message, ModelConfig, Result, Tokenizer, Weights};
use libfuzzer_sys::fuzz_target;

/// A tokenizer that every template may use.
const TOKENIZER: &[u8] = br#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
    "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
    "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}"#;

fn config(bytes: &[u8]) -> Result<()> {
    let config = ModelConfig::from_json("fuzz", bytes)?;
    assert!(config.layers.iter().all(|l| l.rope.attention_factor().is_finite()));
    let frequencies = config.layers[0].rope.frequencies(config.head_dim);
    assert!(frequencies.iter().all(|f| f.is_finite()), "{frequencies:?}");
    if let Ok(json) = config.to_json(DType::F32) {
        let again = ModelConfig::from_json("again", json.to_string().as_bytes())?;
        assert_eq!(again.tensors(), config.tensors());
    }
    config.with_generation_json("fuzz", bytes)?;
    Ok(())
}

fn tensors(bytes: &[u8]) -> Result<()> {
    let weights = Weights::from_safetensors(&[Blob::from_bytes("fuzz", bytes)])?;
    for name in weights.names() {
        let shape = weights.shape(name)?.to_vec();
        let _ = weights.tensor(name, &shape, DType::F16);
    }
    Ok(())
}

fn chat(tokenizer: Tokenizer) -> Result<()> {
    let turns = [Message::new("user", "Hi"), Message::new("assistant", "Hello")];
    tokenizer.chat(&turns, true)?;
    Ok(())
}

fn choose(kind: u8, bytes: &[u8]) -> Result<()> {
    match kind % 4 {
        0 => config(bytes),
        1 => tensors(bytes),
        2 => chat(Tokenizer::from_json(TOKENIZER)?.with_config_json("fuzz", bytes)?),
        _ => match std::str::from_utf8(bytes) {
            Ok(source) => chat(Tokenizer::from_json(TOKENIZER)?.with_template(source)),
            Err(_) => Ok(()),
        },
    }
}

fuzz_target!(|bytes: &[u8]| {
    if let Some((kind, bytes)) = bytes.split_first() {
        let _ = choose(*kind, bytes);
    }
});
