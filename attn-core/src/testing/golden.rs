//! Golden files: inputs and results that somebody else computed.

use std::ops::Deref;
use std::path::Path;

use serde_json::Value;

use super::TensorFile;
use crate::{Error, Mask, Result};

/// One golden file; tensors are read through [`TensorFile`], to which it dereferences.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GoldenFile {
    /// File name without its ending.
    pub name: String,
    /// Whether it lies in the crate's own folder, where every file must be of a known kind.
    pub shipped: bool,
    file: TensorFile,
}

impl Deref for GoldenFile {
    type Target = TensorFile;

    fn deref(&self) -> &TensorFile {
        &self.file
    }
}

impl GoldenFile {
    /// What the file says it is: `op`, `mode` or `task` of its configuration. Where it says
    /// nothing, the set of tensor names decides.
    pub fn kind(&self) -> Option<&str> {
        ["op", "mode", "task"].iter().find_map(|key| self.config().get(key)?.as_str())
    }

    /// Whether all of these tensors are there.
    pub fn has(&self, names: &[&str]) -> bool {
        names.iter().all(|name| self.contains(name))
    }

    /// A number of the configuration.
    ///
    /// # Errors
    /// [`Error::File`] where it is not there.
    pub fn number(&self, key: &str) -> Result<f64> {
        let number = self.config().get(key).and_then(Value::as_f64);
        number.ok_or_else(|| Error::file(self.path(), format!("config has no number `{key}`")))
    }

    /// The mask that the configuration names under `mask`, with the parameters under `params` or,
    /// where there are none, beside it.
    ///
    /// # Errors
    /// [`Error::File`] where the name is unknown or a parameter is missing.
    pub fn mask(&self) -> Result<Mask> {
        let config = self.config();
        let name = config.get("mask").and_then(Value::as_str);
        let name = name.ok_or_else(|| Error::file(self.path(), "config names no mask"))?;
        mask_from_config(name, config.get("params").unwrap_or(config))
            .map_err(|error| Error::file(self.path(), error))
    }
}

/// Every `*.safetensors` in `folder`, then every one in `$ATTN_GOLDEN_DIR/<paper>/` where that
/// variable is set and the folder exists; each folder sorted by name.
///
/// # Errors
/// [`Error::File`] where `folder` does not exist, or a file cannot be read.
pub fn files(folder: &Path, paper: &str) -> Result<Vec<GoldenFile>> {
    let mut files = read_folder(folder, true)?;
    if let Some(root) = std::env::var_os("ATTN_GOLDEN_DIR") {
        let folder = Path::new(&root).join(paper);
        if folder.is_dir() {
            files.extend(read_folder(&folder, false)?);
        }
    }
    Ok(files)
}

/// A mask by its name in the Long-Context Attention Benchmark. Parameters: `cu_seqlens` or `cu`,
/// `window` or `w`, `globals` or `g`, `prefix` or `p`, `block` or `B`.
///
/// # Errors
/// [`Error::Data`] where the name is unknown or a parameter is missing.
pub fn mask_from_config(name: &str, params: &Value) -> Result<Mask> {
    let find = |keys: [&'static str; 2]| keys.iter().find_map(|key| params.get(key));
    let missing = |keys: [&'static str; 2]| {
        Error::data("params", format!("`{}` for mask {name}", keys[0]), params)
    };
    let number = |keys| {
        let number = find(keys).and_then(Value::as_u64).and_then(|x| usize::try_from(x).ok());
        number.ok_or_else(|| missing(keys))
    };
    let offsets = || {
        let keys = ["cu_seqlens", "cu"];
        let list = find(keys).and_then(Value::as_array).ok_or_else(|| missing(keys))?;
        let offset = |x: &Value| x.as_u64().and_then(|x| usize::try_from(x).ok());
        list.iter().map(offset).collect::<Option<Vec<_>>>().ok_or_else(|| missing(keys))
    };
    let window = || number(["window", "w"]);
    let prefix = || number(["prefix", "p"]);
    Ok(match name {
        "full" => Mask::Full,
        "causal" => Mask::Causal,
        "sliding_window" => Mask::Window { left: window()?, right: window()? },
        "sliding_window_causal" => Mask::Window { left: window()?, right: 0 },
        "full_document" => Mask::documents(&offsets()?, Mask::Full),
        "causal_document" => Mask::documents(&offsets()?, Mask::Causal),
        "share_question" => Mask::ShareQuestion { cu: offsets()? },
        "causal_blockwise" => Mask::CausalBlockwise { cu: offsets()? },
        "global_sliding_window" => {
            Mask::GlobalWindow { window: window()?, global: number(["globals", "g"])? }
        }
        "prefix_lm_causal" => Mask::PrefixLm { prefix: prefix()? },
        "prefix_lm_document" => Mask::documents(&offsets()?, Mask::PrefixLm { prefix: prefix()? }),
        "block_causal_document" => {
            Mask::BlockCausalDocuments { cu: offsets()?, block: number(["block", "B"])? }
        }
        _ => return Err(Error::data("mask", "a mask of longca-bench", name)),
    })
}

fn read_folder(folder: &Path, shipped: bool) -> Result<Vec<GoldenFile>> {
    let bad = |error: std::io::Error| Error::file(folder, error);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(bad)? {
        let path = entry.map_err(bad)?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            paths.push(path);
        }
    }
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(GoldenFile { name, shipped, file: TensorFile::read(path)? })
    };
    paths.iter().map(read).collect()
}
