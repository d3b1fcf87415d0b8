//! Limits that keep absurd numbers from becoming absurd allocations.

use super::ModelConfig;
use crate::{Error, Result};

/// Upper bounds, well above every published model.
const LAYERS: u64 = 4096;
const WIDTH: u64 = 1 << 20;
const HEADS: u64 = 1 << 14;
const HEAD_DIM: u64 = 1 << 12;
const VOCABULARY: u64 = 1 << 24;
const CONTEXT: u64 = 1 << 31;

/// A number of something that must be there: (name, value) against its bound.
pub fn extent(file: &str, key: &str, value: u64, most: u64) -> Result<usize> {
    let fits = usize::try_from(value).ok().filter(|_| (1..=most).contains(&value));
    fits.ok_or_else(|| Error::format(file, key, format!("1 to {most}"), value))
}

/// Bounds of the extents, by what they count.
pub fn layers(file: &str, key: &str, value: u64) -> Result<usize> {
    extent(file, key, value, LAYERS)
}

pub fn width(file: &str, key: &str, value: u64) -> Result<usize> {
    extent(file, key, value, WIDTH)
}

pub fn heads(file: &str, key: &str, value: u64) -> Result<usize> {
    extent(file, key, value, HEADS)
}

pub fn head_dim(file: &str, key: &str, value: u64) -> Result<usize> {
    extent(file, key, value, HEAD_DIM)
}

pub fn vocabulary(file: &str, key: &str, value: u64) -> Result<usize> {
    extent(file, key, value, VOCABULARY)
}

/// Windows and context lengths.
pub fn context(file: &str, key: &str, value: u64) -> Result<usize> {
    extent(file, key, value, CONTEXT)
}

/// A finite number within bounds.
pub fn number(file: &str, key: &str, value: f64, least: f64, most: f64) -> Result<f64> {
    if value.is_finite() && (least..=most).contains(&value) {
        return Ok(value);
    }
    Err(Error::format(file, key, format!("a number of {least} to {most}"), value))
}

/// A number that divides, scales or caps something.
pub fn positive(file: &str, key: &str, value: f64) -> Result<f64> {
    number(file, key, value, 1e-12, 1e12)
}

/// Dim of a head where the file does not say: hidden / heads.
pub fn even_split(file: &str, hidden: usize, heads: usize) -> Result<usize> {
    if hidden.is_multiple_of(heads) {
        return Ok(hidden / heads);
    }
    let got = format!("{hidden} and {heads}");
    Err(Error::format(file, "head_dim", "hidden size divisible by the number of heads", got))
}

/// What must hold between the numbers, whatever file they came from.
pub fn whole(file: &str, config: &ModelConfig) -> Result<()> {
    let ModelConfig { heads, heads_kv, head_dim, vocabulary, .. } = *config;
    if !heads.is_multiple_of(heads_kv) {
        let expected = "a number that divides the number of heads";
        let got = format!("{heads_kv} for {heads} heads");
        return Err(Error::format(file, "number of key and value heads", expected, got));
    }
    if !head_dim.is_multiple_of(2) {
        return Err(Error::format(file, "head_dim", "an even number", head_dim));
    }
    let ids = config.bos.iter().chain(&config.eos).chain(&config.pad);
    if let Some(id) = ids.into_iter().find(|id| **id as usize >= vocabulary) {
        let expected = format!("a token below {vocabulary}");
        return Err(Error::format(file, "bos, eos or pad token", expected, id));
    }
    let sizes = [config.hidden, heads * head_dim, config.mlp];
    // Products of these with each other and with the vocabulary stay far below 2^63.
    if sizes.iter().any(|size| *size as u64 > 4 * WIDTH) {
        let got = format!("{sizes:?}");
        return Err(Error::format(file, "hidden, heads x head_dim, mlp", "widths up to 2^22", got));
    }
    Ok(())
}
