//! Reading `config.json` and `generation_config.json`.

use attn_wgpu::DType;
use serde_json::Value;

use super::fields::Fields;
use super::rope::{self, Ropes};
use super::{Activation, Biases, Family, LayerConfig, ModelConfig, check};
use crate::{Error, Result};

const FAMILIES: &str = "llama, qwen2, qwen3, mistral, gemma2, gemma3 and gemma3_text";

impl ModelConfig {
    /// Reads `config.json`; `file` is for messages.
    ///
    /// # Errors
    /// [`Error::Format`] where a key is missing or its value cannot be right, [`Error::Unsupported`]
    /// where the model asks for something that is not covered.
    pub fn from_json(file: &str, json: &[u8]) -> Result<Self> {
        let value = parse(file, json)?;
        let outer = Fields::new(file, &value)?;
        let Some(text) = outer.object("text_config")? else {
            return read(&outer);
        };
        // Files of multimodal models keep what concerns the whole model outside.
        let inner = text.text("model_type")?;
        match (inner, outer.text("model_type")?) {
            (None, Some("gemma3")) => read_as(Family::Gemma3, &text.or(outer)),
            (None, _) => Err(Error::format(file, "text_config.model_type", "the key", "none")),
            (Some(_), _) => read(&text.or(outer)),
        }
    }

    /// Takes the tokens that end a text from `generation_config.json`, whose word counts more than that
    /// of `config.json`, as in transformers.
    ///
    /// # Errors
    /// [`Error::Format`] where a key holds no tokens of this vocabulary.
    pub fn with_generation_json(mut self, file: &str, json: &[u8]) -> Result<Self> {
        let value = parse(file, json)?;
        let fields = Fields::new(file, &value)?;
        if let Some(eos) = fields.tokens("eos_token_id")? {
            self.eos = eos;
        }
        if let Some(bos) = fields.tokens("bos_token_id")? {
            self.bos = bos.first().copied();
        }
        if let Some(pad) = pad(&fields)? {
            self.pad = Some(pad);
        }
        check::whole(file, &self)?;
        Ok(self)
    }
}

fn parse(file: &str, json: &[u8]) -> Result<Value> {
    serde_json::from_slice(json).map_err(|error| Error::format(file, "contents", "JSON", error))
}

fn read(fields: &Fields<'_>) -> Result<ModelConfig> {
    let family = match fields.text("model_type")?.ok_or_else(|| fields.missing("model_type"))? {
        "llama" => Family::Llama,
        "qwen2" => Family::Qwen2,
        "qwen3" => Family::Qwen3,
        "mistral" => Family::Mistral,
        "gemma2" => Family::Gemma2,
        "gemma3" | "gemma3_text" => Family::Gemma3,
        other => return Err(Error::unsupported(fields.file, "model_type", other, FAMILIES)),
    };
    read_as(family, fields)
}

fn read_as(family: Family, fields: &Fields<'_>) -> Result<ModelConfig> {
    refuse(family, fields)?;
    let file = fields.file;
    let hidden = fields.extent("hidden_size", check::width)?;
    let heads = fields.extent("num_attention_heads", check::heads)?;
    let heads_kv = match fields.unsigned("num_key_value_heads")? {
        Some(value) => check::heads(file, "num_key_value_heads", value)?,
        None if family == Family::Llama => heads,
        None => return Err(fields.missing("num_key_value_heads")),
    };
    let head_dim = match fields.unsigned("head_dim")? {
        Some(value) => check::head_dim(file, "head_dim", value)?,
        None if family.is_gemma() => 256,
        None if family == Family::Qwen3 => 128,
        None => check::even_split(file, hidden, heads)?,
    };
    let gemma = family.is_gemma();
    let pre_scalar = match fields.positive("query_pre_attn_scalar")? {
        Some(value) if gemma => value,
        None if gemma => 256.0,
        _ => head_dim as f64,
    };
    let eps = fields.number("rms_norm_eps")?.ok_or_else(|| fields.missing("rms_norm_eps"))?;
    let (attention_soft_cap, final_soft_cap) = caps(family, fields)?;
    let config = ModelConfig {
        family,
        hidden,
        layers: layers(family, fields)?,
        heads,
        heads_kv,
        head_dim,
        mlp: fields.extent("intermediate_size", check::width)?,
        vocabulary: fields.extent("vocab_size", check::vocabulary)?,
        context: fields.extent("max_position_embeddings", check::context)?,
        eps: check::number(file, "rms_norm_eps", eps, 1e-12, 1.0)?,
        activation: activation(family, fields)?,
        biases: biases(family, fields)?,
        qk_norm: matches!(family, Family::Qwen3 | Family::Gemma3),
        norm_offset: gemma,
        post_norms: gemma,
        scale: 1.0 / pre_scalar.sqrt(),
        attention_soft_cap,
        final_soft_cap,
        embedding_scale: if gemma { (hidden as f64).sqrt() } else { 1.0 },
        tied: fields.bool("tie_word_embeddings")?.unwrap_or(gemma),
        bos: fields.tokens("bos_token_id")?.and_then(|ids| ids.first().copied()),
        eos: fields.tokens("eos_token_id")?.unwrap_or_default(),
        pad: pad(fields)?,
        dtype: dtype(fields)?,
    };
    check::whole(file, &config)?;
    Ok(config)
}

/// Keys that change the arithmetic in ways that are not covered.
fn refuse(family: Family, fields: &Fields<'_>) -> Result<()> {
    if fields.get("quantization_config").is_some() {
        return Err(fields.unsupported("quantization_config", "weights in f32, f16 and bf16"));
    }
    if family != Family::Llama {
        for key in ["attention_bias", "mlp_bias"] {
            // Qwen 2 has its biases without a key.
            if fields.bool(key)? == Some(true) && family != Family::Qwen2 {
                return Err(fields.unsupported(key, "false for this model_type"));
            }
        }
    }
    if fields.bool("use_bidirectional_attention")? == Some(true) {
        return Err(fields.unsupported("use_bidirectional_attention", "false"));
    }
    for key in ["num_local_experts", "num_experts", "n_routed_experts"] {
        if fields.unsigned(key)?.unwrap_or(0) > 0 {
            return Err(fields.unsupported(key, "models without experts"));
        }
    }
    Ok(())
}

/// Some files say -1 for none.
fn pad(fields: &Fields<'_>) -> Result<Option<u32>> {
    const KEY: &str = "pad_token_id";
    if fields.get(KEY).and_then(Value::as_i64) == Some(-1) {
        return Ok(None);
    }
    Ok(fields.tokens(KEY)?.and_then(|ids| ids.first().copied()))
}

fn activation(family: Family, fields: &Fields<'_>) -> Result<Activation> {
    if !family.is_gemma() {
        return match fields.text("hidden_act")? {
            None | Some("silu" | "swish") => Ok(Activation::Silu),
            Some(_) => Err(fields.unsupported("hidden_act", "silu for this model_type")),
        };
    }
    let newer = fields.text("hidden_activation")?;
    let key = if newer.is_some() { "hidden_activation" } else { "hidden_act" };
    match fields.text(key)? {
        None | Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some(_) => Err(fields.unsupported(key, "gelu_pytorch_tanh for this model_type")),
    }
}

fn biases(family: Family, fields: &Fields<'_>) -> Result<Biases> {
    Ok(match family {
        Family::Llama => {
            let attention = fields.bool("attention_bias")?.unwrap_or(false);
            let mlp = fields.bool("mlp_bias")?.unwrap_or(false);
            Biases { qkv: attention, output: attention, mlp }
        }
        Family::Qwen2 => Biases { qkv: true, ..Biases::default() },
        _ => Biases::default(),
    })
}

/// Soft-caps of attention and of the logits.
fn caps(family: Family, fields: &Fields<'_>) -> Result<(Option<f64>, Option<f64>)> {
    if !family.is_gemma() {
        for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if fields.get(key).is_some() {
                return Err(fields.unsupported(key, "none for this model_type"));
            }
        }
        return Ok((None, None));
    }
    let cap = |key: &str, default: f64| {
        // Null switches off what is on by default.
        let default = Some(default).filter(|_| family == Family::Gemma2 && !fields.has(key));
        Ok::<_, Error>(fields.positive(key)?.or(default))
    };
    Ok((cap("attn_logit_softcapping", 50.0)?, cap("final_logit_softcapping", 30.0)?))
}

fn dtype(fields: &Fields<'_>) -> Result<Option<DType>> {
    let name = fields.text("dtype")?.or(fields.text("torch_dtype")?);
    let name = name.map(|name| name.trim_start_matches("torch."));
    Ok(match name {
        Some("float32") => Some(DType::F32),
        Some("float16") => Some(DType::F16),
        Some("bfloat16") => Some(DType::BF16),
        // The files' own types count; this key is only told on.
        _ => None,
    })
}

fn layers(family: Family, fields: &Fields<'_>) -> Result<Vec<LayerConfig>> {
    let count = fields.extent("num_hidden_layers", check::layers)?;
    let ropes = match family {
        Family::Gemma3 => rope::gemma3(fields)?,
        _ => rope::single(fields)?,
    };
    let sliding = sliding(family, fields, count)?;
    let window = window(family, fields)?;
    let Ropes { full, sliding: local } = ropes;
    let layer = |slides: bool| match (slides, window) {
        (false, _) => Ok(LayerConfig { window: None, rope: full.clone() }),
        (true, Some(window)) => Ok(LayerConfig { window: Some(window), rope: local.clone() }),
        (true, None) => Err(fields.missing("sliding_window")),
    };
    sliding.into_iter().map(layer).collect()
}

fn window(family: Family, fields: &Fields<'_>) -> Result<Option<usize>> {
    match family {
        Family::Gemma2 | Family::Gemma3 if !fields.has("sliding_window") => Ok(Some(4096)),
        Family::Qwen2 | Family::Qwen3 if !uses_window(fields)? => Ok(None),
        // A window has no meaning in Llama; transformers ignores it as well.
        Family::Llama => Ok(None),
        _ => fields.context("sliding_window"),
    }
}

fn uses_window(fields: &Fields<'_>) -> Result<bool> {
    Ok(fields.bool("use_sliding_window")?.unwrap_or(false))
}

/// Which layers slide.
fn sliding(family: Family, fields: &Fields<'_>, count: usize) -> Result<Vec<bool>> {
    if fields.get("layer_types").is_some() {
        return layer_types(family, fields, count);
    }
    Ok(match family {
        Family::Llama => vec![false; count],
        Family::Mistral => vec![fields.get("sliding_window").is_some(); count],
        Family::Qwen2 | Family::Qwen3 => {
            if !uses_window(fields)? || fields.get("sliding_window").is_none() {
                return Ok(vec![false; count]);
            }
            let first = fields.unsigned("max_window_layers")?;
            let first = first.ok_or_else(|| fields.missing("max_window_layers"))?;
            (0..count as u64).map(|layer| layer >= first).collect()
        }
        Family::Gemma2 => (0..count).map(|layer| layer % 2 == 0).collect(),
        Family::Gemma3 => {
            let pattern = pattern(fields)?;
            (1..=count as u64).map(|layer| layer % pattern != 0).collect()
        }
    })
}

/// Every which layer of Gemma 3 is a full one.
fn pattern(fields: &Fields<'_>) -> Result<u64> {
    let newer = fields.unsigned("_sliding_window_pattern")?;
    let pattern = fields.unsigned("sliding_window_pattern")?.or(newer).unwrap_or(6);
    if pattern == 0 || newer.is_some_and(|newer| newer != pattern) {
        let expected = "a number above 0, the same under both names";
        return Err(fields.wrong("sliding_window_pattern", expected));
    }
    Ok(pattern)
}

fn layer_types(family: Family, fields: &Fields<'_>, count: usize) -> Result<Vec<bool>> {
    const KEY: &str = "layer_types";
    let kinds = fields.get(KEY).and_then(Value::as_array);
    let kinds = kinds.filter(|kinds| kinds.len() == count);
    let kinds = kinds.ok_or_else(|| fields.wrong(KEY, format!("a list of {count} layers")))?;
    let slides = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") if family != Family::Llama => Ok(true),
        _ => {
            let supported = "full_attention and, but for llama, sliding_attention";
            Err(Error::unsupported(fields.file, KEY, kind, supported))
        }
    };
    kinds.iter().map(slides).collect()
}
