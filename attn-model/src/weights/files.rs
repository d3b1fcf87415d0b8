//! Finding the files of a Hugging Face folder.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::{Stored, Weights, names, safetensors};
use crate::blob::Blob;
use crate::{Error, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// The tensors of a Hugging Face folder: `model.safetensors`, or the files that
    /// `model.safetensors.index.json` names. Names of multimodal models lose their prefix.
    ///
    /// # Errors
    /// [`Error::Io`] where a file cannot be opened; [`Error::Format`] where a header cannot be right, or
    /// the index names files outside the folder or tensors that are not there.
    pub fn open_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        if !folder.join(INDEX).is_file() {
            if !folder.join(SINGLE).is_file() {
                let reason = format!("neither {SINGLE} nor {INDEX} is there");
                return Err(Error::io(folder, reason));
            }
            return Weights::from_safetensors(&[Blob::open(folder.join(SINGLE))?]);
        }
        let index = Blob::open(folder.join(INDEX))?;
        let places = weight_map(index.name(), &index.bytes(0, index.len())?)?;
        let mut files = BTreeMap::new();
        let mut tensors = BTreeMap::new();
        for (name, file) in places {
            if !files.contains_key(&file) {
                let blob = Blob::open(folder.join(&file))?;
                files.insert(file.clone(), safetensors::read(&blob)?);
            }
            let stored = files.get_mut(&file).and_then(|tensors| tensors.remove(&name));
            let absent =
                || Error::format(index.name(), &name, format!("a tensor of {file}"), "none");
            tensors.insert(name.clone(), stored.ok_or_else(absent)?);
        }
        named(&folder.display().to_string(), tensors)
    }

    /// The tensors of safetensors files that together are one model.
    ///
    /// # Errors
    /// [`Error::Format`] where a header cannot be right, or two files have a tensor of the same name.
    pub fn from_safetensors(files: &[Blob]) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for blob in files {
            for (name, stored) in safetensors::read(blob)? {
                if tensors.contains_key(&name) {
                    let got = "another file with it";
                    return Err(Error::format(blob.name(), name, "a tensor once", got));
                }
                tensors.insert(name, stored);
            }
        }
        named(files.first().map_or("no file", Blob::name), tensors)
    }
}

/// Which file of a folder holds which tensor, from the contents of an index.
pub(super) fn weight_map(file: &str, json: &[u8]) -> Result<BTreeMap<String, String>> {
    let index: Index = serde_json::from_slice(json)
        .map_err(|error| Error::format(file, "contents", "JSON with a weight_map", error))?;
    for (tensor, part) in &index.weight_map {
        let inside = !part.contains(['/', '\\', ':', '\0']) && ![".", ".."].contains(&&**part);
        if !inside || !part.ends_with(".safetensors") {
            let expected = "the name of a safetensors file in the same folder";
            return Err(Error::format(file, tensor, expected, format!("{part:?}")));
        }
    }
    Ok(index.weight_map)
}

fn named(file: &str, tensors: BTreeMap<String, Stored>) -> Result<Weights> {
    let prefix = names::prefix(|name| tensors.contains_key(name)).unwrap_or("model.");
    let mut plain = BTreeMap::new();
    for (name, stored) in tensors {
        let Some(meaning) = names::plain(&name, prefix) else {
            continue;
        };
        if plain.insert(meaning, stored).is_some() {
            return Err(Error::format(file, name, "one tensor of this meaning", "two"));
        }
    }
    Ok(Weights { name: file.into(), tensors: Arc::new(plain) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_stays_in_its_folder() {
        let map = |file: &str| {
            let json = serde_json::json!({ "weight_map": { "a": file } }).to_string();
            weight_map("index", json.as_bytes())
        };
        assert_eq!(map("model-00001-of-00002.safetensors").unwrap().len(), 1);
        for bad in ["../m.safetensors", "/m.safetensors", "a/m.safetensors", "..", "", "m.bin"] {
            assert!(matches!(map(bad), Err(Error::Format { .. })), "{bad}");
        }
        assert!(weight_map("index", b"{}").is_err());
    }
}
