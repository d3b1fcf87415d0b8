//! Writing `config.json` for transformers.

use attn_wgpu::DType;
use serde_json::{Map, Value, json};

use super::{Activation, Family, LayerConfig, ModelConfig};
use crate::{Error, Result, RopeScaling};

/// What an export is called in messages.
const FILE: &str = "config.json";

impl ModelConfig {
    /// The configuration as `config.json`, with the keys that transformers 4 and 5 both read; `dtype` is
    /// the type that the weights are written in.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the family has no keys for what this configuration asks for.
    pub fn to_json(&self, dtype: DType) -> Result<Value> {
        let mut keys = Map::new();
        let mut set = |key: &str, value: Value| keys.insert(key.into(), value);
        set("model_type", json!(self.family.model_type()));
        set("architectures", json!([architecture(self.family)]));
        set("hidden_size", json!(self.hidden));
        set("intermediate_size", json!(self.mlp));
        set("num_hidden_layers", json!(self.layers.len()));
        set("num_attention_heads", json!(self.heads));
        set("num_key_value_heads", json!(self.heads_kv));
        set("head_dim", json!(self.head_dim));
        set("vocab_size", json!(self.vocabulary));
        set("max_position_embeddings", json!(self.context));
        set("rms_norm_eps", json!(self.eps));
        set("tie_word_embeddings", json!(self.tied));
        set("bos_token_id", json!(self.bos));
        set("eos_token_id", one_or_list(&self.eos));
        set("pad_token_id", json!(self.pad));
        set("torch_dtype", json!(dtype_name(dtype)?));
        set("hidden_act", json!(activation(self.activation)));
        match self.family {
            Family::Llama => {
                if self.biases.qkv != self.biases.output {
                    let got = "biases on queries, keys and values alone";
                    return Err(unsupported(got, "attention_bias for all four maps or none"));
                }
                set("attention_bias", json!(self.biases.qkv));
                set("mlp_bias", json!(self.biases.mlp));
            }
            Family::Gemma2 | Family::Gemma3 => {
                set("hidden_activation", json!(activation(self.activation)));
                set("query_pre_attn_scalar", number((1.0 / self.scale).powi(2)));
                set("attn_logit_softcapping", json!(self.attention_soft_cap));
                set("final_logit_softcapping", json!(self.final_soft_cap));
                set("attention_bias", json!(false));
            }
            _ => {}
        }
        self.windows(&mut keys)?;
        self.ropes(&mut keys)?;
        Ok(Value::Object(keys))
    }

    fn windows(&self, keys: &mut Map<String, Value>) -> Result<()> {
        let mut windows: Vec<usize> = self.layers.iter().filter_map(|l| l.window).collect();
        windows.dedup();
        if windows.len() > 1 || (self.family == Family::Llama && !windows.is_empty()) {
            return Err(unsupported(format!("windows {windows:?}"), "one window for this family"));
        }
        let window = windows.first();
        if self.family == Family::Llama {
            return Ok(());
        }
        keys.insert("sliding_window".into(), json!(window));
        if self.family == Family::Mistral {
            // Transformers lets all layers of Mistral slide, or none.
            if window.is_some() && self.layers.iter().any(|l| l.window.is_none()) {
                return Err(unsupported("some layers", "a window in all layers or none"));
            }
            return Ok(());
        }
        let kind = |layer: &LayerConfig| match layer.window {
            Some(_) => "sliding_attention",
            None => "full_attention",
        };
        keys.insert("layer_types".into(), self.layers.iter().map(kind).collect());
        if matches!(self.family, Family::Qwen2 | Family::Qwen3) {
            let first = self.layers.iter().position(|l| l.window.is_some());
            keys.insert("use_sliding_window".into(), json!(window.is_some()));
            keys.insert("max_window_layers".into(), json!(first.unwrap_or(self.layers.len())));
        }
        Ok(())
    }

    fn ropes(&self, keys: &mut Map<String, Value>) -> Result<()> {
        let of_kind =
            |slides: bool| self.layers.iter().filter(move |l| l.window.is_some() == slides);
        let (full, sliding) = (of_kind(false).next(), of_kind(true).next());
        let Some(main) = full.or(sliding) else {
            return Err(unsupported("a model without layers", "at least one layer"));
        };
        let same = |kind: Option<&LayerConfig>, slides: bool| {
            kind.is_none_or(|first| of_kind(slides).all(|layer| layer.rope == first.rope))
        };
        if !same(full, false) || !same(sliding, true) {
            return Err(unsupported("several rotations", "one for each kind of layer"));
        }
        if self.family == Family::Gemma3 {
            let local = sliding.map_or(10_000.0, |layer| layer.rope.theta);
            keys.insert("rope_local_base_freq".into(), json!(local));
            if sliding.is_some_and(|layer| layer.rope.scaling != RopeScaling::None) {
                return Err(unsupported("scaling in sliding layers", "scaling in full ones"));
            }
        } else if full.zip(sliding).is_some_and(|(full, sliding)| full.rope != sliding.rope) {
            return Err(unsupported("a rotation for each kind of layer", "one for all layers"));
        }
        keys.insert("rope_theta".into(), json!(main.rope.theta));
        keys.insert("rope_scaling".into(), scaling(&main.rope.scaling));
        Ok(())
    }
}

fn unsupported(got: impl ToString, supported: &str) -> Error {
    Error::unsupported(FILE, "writing", got, supported)
}

/// Whole numbers without a fraction, as such files have them; rounding in `scale` is taken back.
fn number(value: f64) -> Value {
    let whole = value.round();
    if (value - whole).abs() <= 1e-12 * value.abs() && whole.abs() < 1e15 {
        json!(whole as i64)
    } else {
        json!(value)
    }
}

fn one_or_list(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [one] => json!(one),
        more => json!(more),
    }
}

fn architecture(family: Family) -> &'static str {
    match family {
        Family::Llama => "LlamaForCausalLM",
        Family::Qwen2 => "Qwen2ForCausalLM",
        Family::Qwen3 => "Qwen3ForCausalLM",
        Family::Mistral => "MistralForCausalLM",
        Family::Gemma2 => "Gemma2ForCausalLM",
        Family::Gemma3 => "Gemma3ForCausalLM",
    }
}

fn activation(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "silu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
    }
}

fn dtype_name(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("float32"),
        DType::F16 => Ok("float16"),
        DType::BF16 => Ok("bfloat16"),
        other => Err(unsupported(other.name(), "f32, f16 and bf16")),
    }
}

fn scaling(scaling: &RopeScaling) -> Value {
    match *scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_context,
            })
        }
        RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor } => {
            let mut yarn = json!({
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original_context,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
            });
            if let Some(factor) = attention_factor {
                yarn["attention_factor"] = json!(factor);
            }
            yarn
        }
    }
}
