//! Names of tensors: GGUF and multimodal files to plain Hugging Face ones.

use super::Change;
use crate::config::{EMBEDDING, FINAL_NORM, HEAD};
use crate::{Family, ModelConfig};

/// What stands in front of the names of a language model, inside of multimodal models too.
const PREFIXES: [&str; 4] = ["model.", "language_model.model.", "model.language_model.", ""];
const HEADS: [&str; 3] = [HEAD, "language_model.lm_head.weight", "model.lm_head.weight"];

/// The prefix of a file's names, told by the embedding.
pub fn prefix<'a>(contains: impl Fn(&str) -> bool) -> Option<&'a str> {
    let embedding = EMBEDDING.trim_start_matches("model.");
    PREFIXES.into_iter().find(|prefix| contains(&format!("{prefix}{embedding}")))
}

/// The plain name of a tensor of a file with a prefix; none for other parts of a multimodal model.
pub fn plain(name: &str, prefix: &str) -> Option<String> {
    if HEADS.contains(&name) {
        return Some(HEAD.into());
    }
    name.strip_prefix(prefix).map(|rest| format!("model.{rest}"))
}

/// The Hugging Face name of a GGUF tensor; none for what no model here has.
pub fn from_gguf(name: &str, family: Family) -> Option<String> {
    match name {
        "token_embd.weight" => return Some(EMBEDDING.into()),
        "output_norm.weight" => return Some(FINAL_NORM.into()),
        "output.weight" => return Some(HEAD.into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (part, kind) = rest.rsplit_once('.')?;
    if !["weight", "bias"].contains(&kind) {
        return None;
    }
    let part = match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_norm" if family.is_gemma() => "pre_feedforward_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "post_attention_norm" => "post_attention_layernorm",
        "post_ffw_norm" => "post_feedforward_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{part}.{kind}"))
}

/// How llama.cpp's converter changed a tensor.
pub fn gguf_change(name: &str, config: &ModelConfig) -> Change {
    if config.norm_offset && name.ends_with("norm.weight") {
        return Change::PlusOne;
    }
    // Mistral comes as architecture llama.
    match config.family {
        Family::Llama if name.contains(".q_proj.") => Change::Interleaved { heads: config.heads },
        Family::Llama if name.contains(".k_proj.") => {
            Change::Interleaved { heads: config.heads_kv }
        }
        _ => Change::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_of_multimodal_files() {
        let find = |name: &'static str| prefix(move |wanted| wanted == name);
        assert_eq!(find("model.embed_tokens.weight"), Some("model."));
        assert_eq!(find("language_model.model.embed_tokens.weight"), Some("language_model.model."));
        assert_eq!(find("model.language_model.embed_tokens.weight"), Some("model.language_model."));
        assert_eq!(find("embed_tokens.weight"), Some(""));
        assert_eq!(find("wte.weight"), None);
        let plain = |name| plain(name, "model.language_model.");
        assert_eq!(plain("model.language_model.norm.weight").unwrap(), "model.norm.weight");
        assert_eq!(plain("lm_head.weight").unwrap(), "lm_head.weight");
        assert_eq!(plain("model.vision_tower.norm.weight"), None);
    }

    #[test]
    fn names_of_gguf_files() {
        let name = |name, family| from_gguf(name, family);
        assert_eq!(
            name("blk.12.ffn_norm.weight", Family::Llama).unwrap(),
            "model.layers.12.post_attention_layernorm.weight"
        );
        assert_eq!(
            name("blk.12.ffn_norm.weight", Family::Gemma2).unwrap(),
            "model.layers.12.pre_feedforward_layernorm.weight"
        );
        assert_eq!(
            name("blk.0.attn_k.bias", Family::Qwen2).unwrap(),
            "model.layers.0.self_attn.k_proj.bias"
        );
        for other in ["rope_freqs.weight", "blk.x.attn_q.weight", "blk.1.attn_q", "blk.1.y.weight"]
        {
            assert_eq!(name(other, Family::Llama), None, "{other}");
        }
    }
}
