//! Reading GGUF metadata. Rules that the files leave out are those of llama.cpp.

use super::{Activation, Biases, Family, LayerConfig, ModelConfig, check};
use crate::gguf::Gguf;
use crate::{Error, Result, RopeConfig, RopeScaling};

/// Gemma's files do not hold the scale of attention. It follows from the head dim, but in the largest
/// model of each generation, told by its number of layers, from hidden size / heads.
const GEMMA2_27B_LAYERS: usize = 46;
const GEMMA3_27B_LAYERS: usize = 62;

impl ModelConfig {
    /// Reads the metadata of a GGUF file.
    ///
    /// # Errors
    /// [`Error::Format`] where a key is missing or its value cannot be right, [`Error::Unsupported`]
    /// for other architectures and for what is not covered.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        const KEY: &str = "general.architecture";
        let arch = gguf.text(KEY)?.ok_or_else(|| missing(gguf, KEY))?;
        let family = match arch {
            "llama" => Family::Llama,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            "gemma2" => Family::Gemma2,
            "gemma3" => Family::Gemma3,
            other => {
                let supported = "llama, qwen2, qwen3, gemma2 and gemma3";
                return Err(Error::unsupported(gguf.name(), KEY, other, supported));
            }
        };
        read(&Metadata { gguf, arch, family })
    }
}

/// The keys of one architecture.
struct Metadata<'a> {
    gguf: &'a Gguf,
    arch: &'a str,
    family: Family,
}

fn missing(gguf: &Gguf, key: &str) -> Error {
    Error::format(gguf.name(), key, "the key", "none")
}

impl Metadata<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    fn unsigned(&self, name: &str) -> Result<Option<u64>> {
        self.gguf.unsigned(&self.key(name))
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        self.gguf.number(&self.key(name))
    }

    fn extent(&self, name: &str, bound: fn(&str, &str, u64) -> Result<usize>) -> Result<usize> {
        let key = self.key(name);
        let value = self.gguf.unsigned(&key)?.ok_or_else(|| missing(self.gguf, &key))?;
        bound(self.gguf.name(), &key, value)
    }

    fn optional(
        &self,
        name: &str,
        bound: fn(&str, &str, u64) -> Result<usize>,
    ) -> Result<Option<usize>> {
        let key = self.key(name);
        self.unsigned(name)?.map(|value| bound(self.gguf.name(), &key, value)).transpose()
    }

    fn positive(&self, name: &str) -> Result<Option<f64>> {
        let key = self.key(name);
        self.number(name)?.map(|v| check::positive(self.gguf.name(), &key, v)).transpose()
    }

    fn unsupported(&self, name: &str, got: impl ToString, supported: &str) -> Error {
        Error::unsupported(self.gguf.name(), self.key(name), got, supported)
    }
}

fn read(keys: &Metadata<'_>) -> Result<ModelConfig> {
    let Metadata { gguf, family, .. } = *keys;
    let file = gguf.name();
    refuse(keys)?;
    let hidden = keys.extent("embedding_length", check::width)?;
    let heads = keys.extent("attention.head_count", check::heads)?;
    let heads_kv = keys.optional("attention.head_count_kv", check::heads)?.unwrap_or(heads);
    let head_dim = match keys.optional("attention.key_length", check::head_dim)? {
        Some(dim) => dim,
        None => check::even_split(file, hidden, heads)?,
    };
    let values = keys.optional("attention.value_length", check::head_dim)?.unwrap_or(head_dim);
    if values != head_dim {
        let supported = format!("{head_dim}, the length of keys");
        return Err(keys.unsupported("attention.value_length", values, &supported));
    }
    let rotated = keys.optional("rope.dimension_count", check::head_dim)?.unwrap_or(head_dim);
    if rotated != head_dim {
        let supported = format!("{head_dim}, whole heads");
        return Err(keys.unsupported("rope.dimension_count", rotated, &supported));
    }
    let count = keys.extent("block_count", check::layers)?;
    let gemma = family.is_gemma();
    let largest = [(Family::Gemma2, GEMMA2_27B_LAYERS), (Family::Gemma3, GEMMA3_27B_LAYERS)];
    let scale_dim = match largest.contains(&(family, count)) {
        true => check::even_split(file, hidden, heads)?,
        false => head_dim,
    };
    const EPS: &str = "attention.layer_norm_rms_epsilon";
    let eps = keys.number(EPS)?.ok_or_else(|| missing(gguf, &keys.key(EPS)))?;
    let default_cap = |cap| Some(cap).filter(|_| family == Family::Gemma2);
    let config = ModelConfig {
        family,
        hidden,
        layers: layers(keys, count)?,
        heads,
        heads_kv,
        head_dim,
        mlp: keys.extent("feed_forward_length", check::width)?,
        vocabulary: vocabulary(keys)?,
        context: keys.extent("context_length", check::context)?,
        eps: check::number(file, EPS, eps, 1e-12, 1.0)?,
        activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
        biases: biases(gguf, family),
        qk_norm: matches!(family, Family::Qwen3 | Family::Gemma3),
        norm_offset: gemma,
        post_norms: gemma,
        scale: 1.0 / (scale_dim as f64).sqrt(),
        attention_soft_cap: keys.positive("attn_logit_softcapping")?.or(default_cap(50.0)),
        final_soft_cap: keys.positive("final_logit_softcapping")?.or(default_cap(30.0)),
        embedding_scale: if gemma { (hidden as f64).sqrt() } else { 1.0 },
        tied: gguf.tensor("output.weight").is_none(),
        bos: token(gguf, "bos")?,
        eos: ends(gguf)?,
        pad: token(gguf, "padding")?,
        dtype: None,
    };
    check::whole(file, &config)?;
    Ok(config)
}

/// What changes the arithmetic in ways that are not covered.
fn refuse(keys: &Metadata<'_>) -> Result<()> {
    if keys.unsigned("expert_count")?.unwrap_or(0) > 0 {
        return Err(keys.unsupported("expert_count", "above 0", "models without experts"));
    }
    for name in ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"] {
        if keys.gguf.tensor(name).is_some() {
            let supported = "rotations that the metadata describe";
            return Err(Error::unsupported(keys.gguf.name(), "tensor", name, supported));
        }
    }
    let gemma = keys.family.is_gemma();
    for name in ["attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window"] {
        if !gemma && keys.number(name)?.is_some_and(|value| value != 0.0) {
            return Err(keys.unsupported(name, "here", "Gemma with it"));
        }
    }
    Ok(())
}

fn biases(gguf: &Gguf, family: Family) -> Biases {
    if family != Family::Llama {
        return Biases { qkv: family == Family::Qwen2, ..Biases::default() };
    }
    // Llama's files have no key for it.
    let has = |name: &str| gguf.tensor(&format!("blk.0.{name}.bias")).is_some();
    Biases { qkv: has("attn_q"), output: has("attn_output"), mlp: has("ffn_gate") }
}

fn vocabulary(keys: &Metadata<'_>) -> Result<usize> {
    const EMBEDDING: &str = "token_embd.weight";
    let tensor = keys.gguf.tensor(EMBEDDING);
    let rows = tensor.and_then(|tensor| tensor.shape.first()).copied();
    let rows = rows.ok_or_else(|| Error::MissingTensor {
        file: keys.gguf.name().to_owned(),
        name: EMBEDDING.into(),
    })?;
    check::vocabulary(keys.gguf.name(), EMBEDDING, rows as u64)
}

fn token(gguf: &Gguf, name: &str) -> Result<Option<u32>> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let id = gguf.unsigned(&key)?;
    let fits = |id| u32::try_from(id).map_err(|_| Error::format(gguf.name(), &key, "a token", id));
    id.map(fits).transpose()
}

/// The end of a text and, where it is another one, the end of a turn.
fn ends(gguf: &Gguf) -> Result<Vec<u32>> {
    let mut ends: Vec<u32> =
        [token(gguf, "eos")?, token(gguf, "eot")?].into_iter().flatten().collect();
    ends.dedup();
    Ok(ends)
}

fn layers(keys: &Metadata<'_>, count: usize) -> Result<Vec<LayerConfig>> {
    let theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    let theta = theta_in_bounds(keys, "rope.freq_base", theta)?;
    let full = RopeConfig { theta, scaling: scaling(keys)? };
    if !keys.family.is_gemma() {
        return Ok(vec![LayerConfig { window: None, rope: full }; count]);
    }
    let pattern = pattern(keys)?;
    let window = match keys.optional("attention.sliding_window", check::context)? {
        Some(window) => window,
        None if keys.family == Family::Gemma2 => 4096,
        None => return Err(missing(keys.gguf, &keys.key("attention.sliding_window"))),
    };
    let local = match (keys.number("rope.freq_base_swa")?, keys.family) {
        (Some(theta), _) => RopeConfig::new(theta_in_bounds(keys, "rope.freq_base_swa", theta)?),
        (None, Family::Gemma3) => RopeConfig::new(10_000.0),
        (None, _) => full.clone(),
    };
    let layer = |layer: usize| match layer % pattern + 1 < pattern {
        true => LayerConfig { window: Some(window), rope: local.clone() },
        false => LayerConfig { window: None, rope: full.clone() },
    };
    Ok((0..count).map(layer).collect())
}

fn theta_in_bounds(keys: &Metadata<'_>, name: &str, theta: f64) -> Result<f64> {
    check::number(keys.gguf.name(), &keys.key(name), theta, 1.0 + 1e-6, 1e12)
}

/// The last layer of every so many is a full one.
fn pattern(keys: &Metadata<'_>) -> Result<usize> {
    const NAME: &str = "attention.sliding_window_pattern";
    let default = if keys.family == Family::Gemma2 { 2 } else { 6 };
    let pattern = match keys.gguf.get(&keys.key(NAME)) {
        Some(crate::gguf::GgufValue::Numbers(_)) => {
            return Err(keys.unsupported(NAME, "a list", "one number"));
        }
        _ => keys.optional(NAME, check::layers)?,
    };
    Ok(pattern.unwrap_or(default))
}

fn scaling(keys: &Metadata<'_>) -> Result<RopeScaling> {
    const KIND: &str = "rope.scaling.type";
    let kind = keys.gguf.text(&keys.key(KIND))?;
    // The older name of the factor of linear scaling.
    if keys.number("rope.scale_linear")?.is_some_and(|factor| factor != 1.0) {
        return Err(keys.unsupported("rope.scale_linear", "here", "rope.scaling.factor"));
    }
    let factor = |name: &str| {
        let key = keys.key(name);
        let value = keys.number(name)?.ok_or_else(|| missing(keys.gguf, &key))?;
        check::number(keys.gguf.name(), &key, value, 1.0, 1e6)
    };
    const FACTOR: &str = "rope.scaling.factor";
    match kind {
        None | Some("none") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: factor(FACTOR)? }),
        Some("yarn") => {
            for name in ["attn_factor", "yarn_log_multiplier", "yarn_ext_factor"] {
                let name = format!("rope.scaling.{name}");
                if keys.number(&name)?.is_some_and(|value| value != 1.0) {
                    return Err(keys.unsupported(&name, "here", "YaRN without it"));
                }
            }
            let beta = |name: &str| keys.positive(&format!("rope.scaling.yarn_beta_{name}"));
            let (beta_fast, beta_slow) =
                (beta("fast")?.unwrap_or(32.0), beta("slow")?.unwrap_or(1.0));
            if beta_fast <= beta_slow {
                let expected = format!("more than the slow one, {beta_slow}");
                let at = keys.key("rope.scaling.yarn_beta_fast");
                return Err(Error::format(keys.gguf.name(), at, expected, beta_fast));
            }
            Ok(RopeScaling::Yarn {
                factor: factor(FACTOR)?,
                original_context: keys
                    .extent("rope.scaling.original_context_length", check::context)?,
                beta_fast,
                beta_slow,
                attention_factor: None,
            })
        }
        Some(other) => Err(keys.unsupported(KIND, other, "none, linear and yarn")),
    }
}
