//! What every JSON report of a model says about its origin.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use attn_model::Model;
use serde::{Deserialize, Serialize};

use super::loaded::matrices;
use crate::bench::report::{Adapter, Host};
use crate::bench::{command, machine, shown};

/// Raised whenever a reader of older reports would misunderstand a newer one.
pub const SCHEMA: u32 = 1;

/// How, where and on what a report was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    pub schema: u32,
    /// UTC, as `2026-01-31T12:00:00Z`.
    pub date: String,
    /// The command as a shell would take it.
    pub command: String,
    pub host: Host,
    pub adapter: Adapter,
    pub model: ModelRecord,
    pub text: TextRecord,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// Name of the file or folder.
    pub name: String,
    pub family: String,
    /// Types of the weights on the device; with blocks of quantised files, these are packed.
    pub weights: String,
    /// Type of cached keys and values.
    pub cache: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextRecord {
    pub file: String,
    /// Tokens of the whole text.
    pub tokens: usize,
}

impl Origin {
    /// Of the running command.
    pub fn here(root: &Path, file: &Path, model: &Model, text: (&Path, usize)) -> Self {
        let (gpu, options) = (model.gpu(), model.options());
        let mut adapter = Adapter::of(gpu.adapter());
        adapter.opened(gpu);
        Origin {
            schema: SCHEMA,
            date: machine::now(),
            command: command().to_string(),
            host: Host::here(root),
            adapter,
            model: ModelRecord {
                name: name(file),
                family: model.config().family.model_type().into(),
                weights: matrices(model),
                cache: options.cache.name().into(),
            },
            text: TextRecord { file: shown(text.0, root), tokens: text.1 },
        }
    }
}

/// Last part of a path.
pub fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// Writes a report where one is wanted, and says so.
pub fn write(path: Option<&Path>, contents: impl FnOnce() -> Result<String>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    fs::write(path, contents()?).with_context(|| format!("writing {}", path.display()))?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

pub fn json(report: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(report)? + "\n")
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::bench::report::tests::sample;

    /// The origin of a report that nobody made.
    pub fn origin() -> Origin {
        let mut bench = sample();
        Origin {
            schema: SCHEMA,
            date: bench.date,
            command: "cargo xtask model".into(),
            host: bench.host,
            adapter: bench.adapters.remove(0).adapter,
            model: ModelRecord {
                name: "a model".into(),
                family: "llama".into(),
                weights: "f16".into(),
                cache: "f32".into(),
            },
            text: TextRecord { file: "a <text>".into(), tokens: 100 },
        }
    }

    #[test]
    fn only_the_last_part_of_a_path_is_told() {
        assert_eq!(name(Path::new("/home/me/model.gguf")), "model.gguf");
        assert_eq!(name(Path::new("/")), "/");
    }
}
