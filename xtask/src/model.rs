//! `cargo xtask model`: fetching, looking at, running, judging and converting language models.

mod capture;
mod export;
pub mod fetch;
mod info;
mod loaded;
mod needle;
mod policies;
mod ppl;
mod report;
mod run;
#[cfg(test)]
mod tests;

use anyhow::Result;
use attn_model::{DType, Options};
use clap::{Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

/// Fetch, describe, run, judge or convert a language model.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Fetch(fetch::Args),
    Info(info::Args),
    Run(run::Args),
    Ppl(ppl::Args),
    Needle(needle::Args),
    Capture(capture::Args),
    #[command(name = "export-hf")]
    ExportHf(export::Args),
}

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    match &args.command {
        Command::Fetch(args) => fetch::main(args),
        Command::Info(args) => info::main(args),
        Command::Run(args) => run::main(args),
        Command::Ppl(args) => ppl::main(args),
        Command::Needle(args) => needle::main(args),
        Command::Capture(args) => capture::main(args),
        Command::ExportHf(args) => export::main(args),
    }
}

/// Tokens of a prompt that run at once.
const PROMPT_CHUNK: usize = 512;

/// Storage types, as they are spelled on the command line.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Dtype {
    F32,
    F16,
    Bf16,
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> DType {
        match dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::Bf16 => DType::BF16,
        }
    }
}

/// How weights lie on a device, as it is spelled on the command line.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum WeightsAs {
    /// Quantised blocks as the file has them, wherever kernels read them; other matrices in f16
    Packed,
    F32,
    F16,
    Bf16,
}

impl WeightsAs {
    fn options(self, cache: Dtype) -> Options {
        let options = Options::default().with_cache(cache.into());
        match self {
            WeightsAs::Packed => options.with_packed(true).with_weights(DType::F16),
            WeightsAs::F32 => options.with_weights(DType::F32),
            WeightsAs::F16 => options.with_weights(DType::F16),
            WeightsAs::Bf16 => options.with_weights(DType::BF16),
        }
    }

    fn name(self) -> &'static str {
        match self {
            WeightsAs::Packed => "packed",
            WeightsAs::F32 => "f32",
            WeightsAs::F16 => "f16",
            WeightsAs::Bf16 => "bf16",
        }
    }
}

/// A progress bar that looks like `template`.
fn bar(template: &str) -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
