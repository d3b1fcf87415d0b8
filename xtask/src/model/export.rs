//! `cargo xtask model export-hf`: any model as a Hugging Face folder.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use attn_model::{Source, export};

use super::{Dtype, bar};

/// Write a model as a Hugging Face folder: config.json, model.safetensors, tokenizer.json and the chat template.
///
/// Quantised weights are written as the numbers they stand for, rounded to the type asked for.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face folder or a GGUF file
    #[arg(long, value_name = "DIR|FILE")]
    model: PathBuf,
    /// The folder to write; it must be empty or not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Type of the weights: f32, f16 or bf16
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: Dtype,
}

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    let source = Source::open(&args.model)?;
    if std::fs::read_dir(&args.out).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty", args.out.display());
    }
    let bar = bar("writing tensor {pos}/{len} {wide_msg}");
    export(&source, &args.out, args.dtype.into(), |progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
        bar.set_message(progress.tensor.to_string());
    })
    .with_context(|| format!("exporting {}", args.model.display()))?;
    bar.finish_and_clear();
    println!("{}", args.out.display());
    Ok(())
}
