//! What the commands that run a model have in common: the model on a device, and a text as its tokens.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use attn_model::attn_wgpu::Gpu;
use attn_model::{Model, Options, Source, Tokenizer};

use super::{Dtype, WeightsAs, bar};
use crate::driver::install;

/// Which model, and how it lies on the device.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// A Hugging Face folder or a GGUF file
    #[arg(long, value_name = "DIR|FILE")]
    pub model: PathBuf,
    /// How the weights lie on the device
    #[arg(long, value_name = "TYPE", default_value = "packed")]
    pub weights: WeightsAs,
    /// Type of cached keys and values
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    pub cache: Dtype,
}

impl ModelArgs {
    /// Puts the weights on the device.
    pub fn load(&self, gpu: &Gpu, source: &Source) -> Result<Model> {
        load(gpu, source, self.weights.options(self.cache))
    }
}

pub fn load(gpu: &Gpu, source: &Source, options: Options) -> Result<Model> {
    let bar = bar("loading {bar:30} {bytes}/{total_bytes}");
    let model = Model::from_source(gpu, source, options, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    Ok(model)
}

/// Types of a model's matrices on the device, packed ones first: `Q4_1 + Q8_0`, `f16`.
pub fn matrices(model: &Model) -> String {
    // Vectors come last.
    let forms = model.weight_forms().split_last().map_or(&[][..], |(_, forms)| forms);
    forms.iter().map(|form| form.name).collect::<Vec<_>>().join(" + ")
}

/// The best device, with its name on the terminal.
pub fn device() -> Result<Gpu> {
    let gpu = Gpu::new().with_context(install::advice)?;
    eprintln!("{}", gpu.adapter());
    Ok(gpu)
}

pub fn tokenizer(source: &Source) -> Result<Tokenizer> {
    source.tokenizer()?.context("the model has no tokenizer")
}

pub fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// A text as tokens, and those that the model wants in front of every text.
pub struct Tokens {
    pub front: Vec<u32>,
    pub text: Vec<u32>,
}

impl Tokens {
    pub fn of(tokenizer: &Tokenizer, text: &str) -> Result<Self> {
        let (text, whole) = (tokenizer.encode(text, false)?, tokenizer.encode(text, true)?);
        Ok(Tokens { front: front(&text, &whole).to_vec(), text })
    }
}

/// What `whole` has in front of `text`. What stands behind it, as an end of text, has no place behind a part.
fn front<'a>(text: &[u32], whole: &'a [u32]) -> &'a [u32] {
    let places = 0..=whole.len().saturating_sub(text.len());
    let place = places.into_iter().find(|&at| whole[at..].starts_with(text));
    &whole[..place.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_front_of_a_text() {
        assert_eq!(front(&[5, 6], &[1, 5, 6, 2]), [1]);
        assert!(front(&[5, 6], &[5, 6]).is_empty() && front(&[], &[]).is_empty());
        // A tokenizer that spells the two differently has none that could be told.
        assert!(front(&[5, 6], &[1, 7, 6]).is_empty());
    }
}
