//! Any bytes as a GGUF file: header, configuration, tokenizer, every tensor.
#![no_main]

use attn_model::gguf::Gguf;
use attn_model::{Blob, DType, ModelConfig, Result, Tokenizer, Weights};
use libfuzzer_sys::fuzz_target;

fn open(bytes: &[u8]) -> Result<()> {
    let gguf = Gguf::read(Blob::from_bytes("fuzz", bytes))?;
    if let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) {
        let tokens = tokenizer.encode("a 12\u{e9}\n", true)?;
        tokenizer.decode(&tokens)?;
    }
    let config = ModelConfig::from_gguf(&gguf)?;
    let weights = Weights::from_gguf(&gguf, &config)?;
    for name in weights.names() {
        let shape = weights.shape(name)?.to_vec();
        let whole = weights.tensor(name, &shape, DType::BF16);
        let last = shape[0] - 1..shape[0];
        let row = weights.rows(name, &shape, last, DType::BF16);
        assert_eq!(whole.is_ok(), row.is_ok() && whole.is_ok());
    }
    Ok(())
}

fuzz_target!(|bytes: &[u8]| {
    let _ = open(bytes);
});
