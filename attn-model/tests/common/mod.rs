//! Where models lie, and writers of small files.
#![allow(dead_code)]

pub mod policies;
pub mod quantised;
pub mod reference;
pub mod write;

use std::path::{Path, PathBuf};

pub fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

/// Model folders that ship with the crate, then those in `$ATTN_MODELS_DIR`.
pub fn model_folders() -> Vec<PathBuf> {
    let mut folders = folders_in(&data("models"));
    assert_eq!(folders.len(), 7, "the seven small models");
    if let Some(root) = std::env::var_os("ATTN_MODELS_DIR") {
        folders.extend(folders_in(Path::new(&root)));
    }
    folders
}

fn folders_in(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).unwrap();
    let mut found: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.join("config.json").is_file());
    found.sort();
    found
}

/// Files with an ending in the crate's folder, then in `$ATTN_GOLDEN_DIR/<name>`.
pub fn golden(name: &str, ending: &str) -> Vec<PathBuf> {
    let mut folders = vec![data(name)];
    if let Some(root) = std::env::var_os("ATTN_GOLDEN_DIR") {
        folders.push(Path::new(&root).join(name));
    }
    let mut found = Vec::new();
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        let mut files: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        found.extend(files.into_iter().filter(|path| path.to_str().unwrap().ends_with(ending)));
    }
    assert!(!found.is_empty(), "no {ending} in {folders:?}");
    found
}

/// The fetched SmolLM2, where it is there; else a notice.
pub fn smollm2() -> Option<PathBuf> {
    let file = "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
    let roots = [std::env::var_os("ATTN_MODELS_DIR").map(PathBuf::from), attn_model::cache_dir()];
    let found = roots.iter().flatten().map(|root| root.join(file)).find(|path| path.is_file());
    if found.is_none() {
        println!("skipped: SmolLM2 is not here; `cargo xtask model fetch smollm2` gets it");
    }
    found
}

/// A fresh folder for what a test writes.
pub fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}
