//! Rotary embeddings in `config.json`: the older keys and those of transformers 5.

use super::check;
use super::fields::Fields;
use crate::{Error, Result, RopeConfig, RopeScaling};

/// Keys of `rope_parameters` with one object for each kind of layer.
const NESTED: [&str; 2] = ["sliding_attention", "full_attention"];

/// What the base is where no key says.
const THETA: f64 = 10_000.0;
const GEMMA3_THETA: f64 = 1_000_000.0;

/// Rotations of the full layers and of the sliding ones.
pub struct Ropes {
    pub full: RopeConfig,
    pub sliding: RopeConfig,
}

/// One rotation for all layers.
pub fn single(fields: &Fields<'_>) -> Result<Ropes> {
    refuse_partial(fields)?;
    let rope = match fields.object("rope_parameters")? {
        Some(new) => {
            if let Some(key) = NESTED.iter().find(|key| new.has(key)) {
                let supported = "one set of rope_parameters for all layers of this model_type";
                return Err(Error::unsupported(fields.file, "rope_parameters", key, supported));
            }
            agree(fields, &new)?;
            read(&new, new.number("rope_theta")?.or(fields.number("rope_theta")?), THETA)?
        }
        None => old(fields, THETA)?,
    };
    Ok(Ropes { full: rope.clone(), sliding: rope })
}

/// Gemma 3: full and sliding layers differ.
pub fn gemma3(fields: &Fields<'_>) -> Result<Ropes> {
    refuse_partial(fields)?;
    let Some(new) = fields.object("rope_parameters")? else {
        let theta = fields.number("rope_local_base_freq")?.unwrap_or(THETA);
        let sliding = RopeConfig::new(base(fields.file, "rope_local_base_freq", theta)?);
        return Ok(Ropes { full: old(fields, GEMMA3_THETA)?, sliding });
    };
    let part = |key: &str| {
        let part = new.object(key)?.ok_or_else(|| {
            let expected = "one object each for sliding_attention and full_attention";
            Error::format(fields.file, "rope_parameters", expected, format!("no {key}"))
        })?;
        let theta = part.number("rope_theta")?.ok_or_else(|| part.missing("rope_theta"))?;
        read(&part, Some(theta), THETA)
    };
    Ok(Ropes { sliding: part("sliding_attention")?, full: part("full_attention")? })
}

/// Older and newer keys side by side must say the same.
fn agree(fields: &Fields<'_>, new: &Fields<'_>) -> Result<()> {
    let theta = [fields.number("rope_theta")?, new.number("rope_theta")?];
    if let [Some(old), Some(new)] = theta
        && old != new
    {
        let expected = format!("{new}, as in rope_parameters");
        return Err(Error::format(fields.file, "rope_theta", expected, old));
    }
    if let Some(old) = fields.object("rope_scaling")? {
        let theta = theta[0].or(theta[1]);
        if read(&old, theta, THETA)? != read(new, theta, THETA)? {
            let expected = "the same as rope_parameters";
            return Err(Error::format(fields.file, "rope_scaling", expected, "something else"));
        }
    }
    Ok(())
}

fn old(fields: &Fields<'_>, default: f64) -> Result<RopeConfig> {
    let theta = fields.number("rope_theta")?;
    match fields.object("rope_scaling")? {
        Some(scaling) => read(&scaling, theta, default),
        None => Ok(RopeConfig::new(base(fields.file, "rope_theta", theta.unwrap_or(default))?)),
    }
}

fn base(file: &str, key: &str, theta: f64) -> Result<f64> {
    check::number(file, key, theta, 1.0 + 1e-6, 1e12)
}

/// Only whole heads are rotated here.
fn refuse_partial(fields: &Fields<'_>) -> Result<()> {
    let part = fields.number("partial_rotary_factor")?;
    match part {
        None | Some(1.0) => Ok(()),
        Some(_) => Err(fields.unsupported("partial_rotary_factor", "1")),
    }
}

fn read(fields: &Fields<'_>, theta: Option<f64>, default: f64) -> Result<RopeConfig> {
    refuse_partial(fields)?;
    let theta = base(fields.file, "rope_theta", theta.unwrap_or(default))?;
    let (kind, older) = (fields.text("rope_type")?, fields.text("type")?);
    if let (Some(kind), Some(older)) = (kind, older)
        && kind != older
    {
        let expected = format!("{kind:?}, as rope_type");
        return Err(Error::format(fields.file, "type of rope scaling", expected, older));
    }
    let scaling = match kind.or(older) {
        // Newer files have the object also where nothing is scaled.
        None if !fields.has("factor") => RopeScaling::None,
        None => return Err(fields.missing("rope_type")),
        Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: factor(fields)? },
        Some("llama3") => llama3(fields)?,
        Some("yarn") => yarn(fields)?,
        Some(other) => {
            let supported = "default, linear, llama3 and yarn";
            return Err(Error::unsupported(fields.file, "rope_type", other, supported));
        }
    };
    Ok(RopeConfig { theta, scaling })
}

fn factor(fields: &Fields<'_>) -> Result<f64> {
    let factor = fields.number("factor")?.ok_or_else(|| fields.missing("factor"))?;
    check::number(fields.file, "factor", factor, 1.0, 1e6)
}

fn required(fields: &Fields<'_>, key: &str) -> Result<f64> {
    fields.positive(key)?.ok_or_else(|| fields.missing(key))
}

fn original_context(fields: &Fields<'_>) -> Result<usize> {
    const KEY: &str = "original_max_position_embeddings";
    fields.context(KEY)?.ok_or_else(|| fields.missing(KEY))
}

fn llama3(fields: &Fields<'_>) -> Result<RopeScaling> {
    let low_freq_factor = required(fields, "low_freq_factor")?;
    let high_freq_factor = required(fields, "high_freq_factor")?;
    if high_freq_factor <= low_freq_factor {
        let expected = format!("more than low_freq_factor {low_freq_factor}");
        return Err(Error::format(fields.file, "high_freq_factor", expected, high_freq_factor));
    }
    Ok(RopeScaling::Llama3 {
        factor: factor(fields)?,
        low_freq_factor,
        high_freq_factor,
        original_context: original_context(fields)?,
    })
}

fn yarn(fields: &Fields<'_>) -> Result<RopeScaling> {
    for key in ["mscale", "mscale_all_dim"] {
        if fields.get(key).is_some() {
            return Err(fields.unsupported(key, "YaRN without it"));
        }
    }
    if fields.bool("truncate")? == Some(false) {
        return Err(fields.unsupported("truncate", "true"));
    }
    let beta_fast = fields.positive("beta_fast")?.unwrap_or(32.0);
    let beta_slow = fields.positive("beta_slow")?.unwrap_or(1.0);
    if beta_fast <= beta_slow {
        let expected = format!("more than beta_slow {beta_slow}");
        return Err(Error::format(fields.file, "beta_fast", expected, beta_fast));
    }
    Ok(RopeScaling::Yarn {
        factor: factor(fields)?,
        original_context: original_context(fields)?,
        beta_fast,
        beta_slow,
        attention_factor: fields.positive("attention_factor")?,
    })
}
