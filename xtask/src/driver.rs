//! `cargo xtask driver`: is there a Vulkan driver, and how to get one.
//!
//! On Linux a driver is a loader (`libvulkan.so.1`) plus at least one manifest (an ICD file) whose library
//! exists. That does not prove that the driver finds hardware: Debian's package brings Intel and AMD drivers
//! along. It brings Mesa's software driver too, which always works, so a driver found here is good enough.
//! macOS (Metal) and Windows (Direct3D 12, with a software adapter) need nothing.

pub mod folder;
pub mod install;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Subcommand;

/// Show the Vulkan loader and drivers of this machine, or install the software driver.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Install Mesa's software driver with the system's package manager (with sudo when not root).
    ///
    /// With a folder: put a newer one there, beside the system's, for `cargo xtask test --driver`. As root on
    /// Debian only; takes a minute and 700 MB.
    Install { dir: Option<PathBuf> },
}

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    match &args.action {
        Some(Action::Install { dir: Some(dir) }) => return folder::install(dir),
        Some(Action::Install { dir: None }) => install::driver(true)?,
        None => {}
    }
    let found = here();
    println!("{found}");
    if !found.usable() {
        println!("{}", install::advice());
    }
    Ok(())
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The system draws without Vulkan.
    pub native: bool,
    /// Path of the Vulkan loader.
    pub loader: Option<String>,
    /// Manifests whose library exists.
    pub drivers: Vec<String>,
    /// Manifests that cannot work, with the reason.
    pub broken: Vec<(String, String)>,
    /// A device file of a GPU exists.
    pub hardware: bool,
}

impl Found {
    /// Whether GPU tests can run.
    pub fn usable(&self) -> bool {
        self.native || (self.loader.is_some() && !self.drivers.is_empty())
    }

    /// Whether Mesa's software driver is the only one that can find a device.
    pub fn software_only(&self) -> bool {
        let lavapipe = |path: &String| path.contains("lvp_icd");
        !self.native && !self.hardware && self.usable() && self.drivers.iter().any(lavapipe)
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.native {
            return write!(f, "driver: the system's own (no Vulkan needed)");
        }
        let loader = self.loader.as_deref().unwrap_or("none");
        writeln!(f, "Vulkan loader: {loader}")?;
        for driver in &self.drivers {
            writeln!(f, "driver: {driver}")?;
        }
        for (driver, why) in &self.broken {
            writeln!(f, "unusable driver: {driver}: {why}")?;
        }
        write!(f, "{}", if self.usable() { "usable" } else { "not usable" })?;
        if self.software_only() {
            write!(f, ", in software only (no device file of a GPU)")?;
        }
        Ok(())
    }
}

/// The parts of a file system that detection looks at; a map in tests.
pub trait Files {
    /// Names in a folder, sorted; empty where it does not exist.
    fn list(&self, dir: &str) -> Vec<String>;
    /// Text of a file.
    fn read(&self, path: &str) -> Option<String>;
    /// Whether a file exists.
    fn exists(&self, path: &str) -> bool;
}

/// This machine's disk.
pub struct Disk;

impl Files for Disk {
    fn list(&self, dir: &str) -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(path).ok()
    }
    fn exists(&self, path: &str) -> bool {
        Path::new(path).exists()
    }
}

/// Looks at this machine.
pub fn here() -> Found {
    let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    detect(std::env::consts::OS, std::env::consts::ARCH, &var, &Disk)
}

/// The rule of [`here`] as a function of system, processor, environment and files.
pub fn detect(
    os: &str,
    arch: &str,
    var: &dyn Fn(&str) -> Option<String>,
    files: &dyn Files,
) -> Found {
    let mut found = Found::default();
    if os == "macos" || os == "windows" {
        found.native = true;
        return found;
    }
    let libraries = library_dirs(arch, var, files);
    let find = |name: &str| {
        let paths = libraries.iter().map(|dir| format!("{dir}/{name}"));
        paths.into_iter().find(|path| files.exists(path))
    };
    found.loader = find("libvulkan.so.1");
    for manifest in manifests(var, files) {
        match library_of(&manifest, files) {
            Err(why) => found.broken.push((manifest, why)),
            Ok(library) => {
                let exists = if library.contains('/') {
                    files.exists(&library)
                } else {
                    find(&library).is_some()
                };
                if exists {
                    found.drivers.push(manifest);
                } else {
                    found.broken.push((manifest, format!("{library} is missing")));
                }
            }
        }
    }
    let nodes = files.list("/dev/dri");
    found.hardware = nodes.iter().any(|name| name.starts_with("renderD"))
        || files.exists("/dev/nvidiactl")
        || files.exists("/dev/dxg");
    found
}

/// Folders in which the dynamic linker looks, in its order.
fn library_dirs(
    arch: &str,
    var: &dyn Fn(&str) -> Option<String>,
    files: &dyn Files,
) -> Vec<String> {
    let mut dirs = split(var("LD_LIBRARY_PATH"), "");
    for name in files.list("/etc/ld.so.conf.d") {
        let text = files.read(&format!("/etc/ld.so.conf.d/{name}"));
        let text = text.unwrap_or_default();
        let lines = text.lines().map(str::trim);
        dirs.extend(lines.filter(|l| l.starts_with('/')).map(String::from));
    }
    for root in ["/usr/lib", "/lib", "/usr/local/lib"] {
        dirs.extend([format!("{root}/{arch}-linux-gnu"), format!("{root}64"), root.to_string()]);
    }
    // NixOS keeps the drivers of the running system here.
    dirs.push("/run/opengl-driver/lib".into());
    dirs
}

/// Driver manifests in the places and the order of the Vulkan loader's documentation.
fn manifests(var: &dyn Fn(&str) -> Option<String>, files: &dyn Files) -> Vec<String> {
    let mut found = Vec::new();
    let mut add_dir = |dir: &str| {
        let names = files.list(dir).into_iter().filter(|n| n.ends_with(".json"));
        found.extend(names.map(|name| format!("{dir}/{name}")));
    };
    // Either variable replaces the search, and the newer one wins.
    if let Some(list) = var("VK_DRIVER_FILES").or_else(|| var("VK_ICD_FILENAMES")) {
        let (listed, dirs): (Vec<_>, Vec<_>) =
            split(Some(list), "").into_iter().partition(|path| path.ends_with(".json"));
        dirs.iter().for_each(|dir| add_dir(dir));
        found.extend(listed);
        return found;
    }
    let home = var("HOME").unwrap_or_default();
    let mut dirs = vec![var("XDG_CONFIG_HOME").unwrap_or(format!("{home}/.config"))];
    dirs.extend(split(var("XDG_CONFIG_DIRS"), "/etc/xdg"));
    dirs.extend(["/usr/local/etc".into(), "/etc".into()]);
    dirs.push(var("XDG_DATA_HOME").unwrap_or(format!("{home}/.local/share")));
    dirs.extend(split(var("XDG_DATA_DIRS"), "/usr/local/share:/usr/share"));
    dirs.extend(["/usr/local/share".into(), "/usr/share".into()]);
    dirs.push("/run/opengl-driver/share".into());
    let mut seen = Vec::new();
    for dir in dirs {
        let dir = format!("{}/vulkan/icd.d", dir.trim_end_matches('/'));
        if !seen.contains(&dir) {
            add_dir(&dir);
            seen.push(dir);
        }
    }
    found.extend(split(var("VK_ADD_DRIVER_FILES"), ""));
    found
}

/// The library that a manifest names: a path, or a bare name for the linker to find.
fn library_of(manifest: &str, files: &dyn Files) -> Result<String, String> {
    let text = files.read(manifest).ok_or("cannot be read")?;
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| format!("is not JSON: {e}"))?;
    let library = json["ICD"]["library_path"].as_str().ok_or("names no library_path")?;
    if library.starts_with('/') || !library.contains('/') {
        return Ok(library.into());
    }
    let dir = manifest.rsplit_once('/').map_or(".", |(dir, _)| dir);
    Ok(format!("{dir}/{library}"))
}

fn split(list: Option<String>, default: &str) -> Vec<String> {
    let list = list.unwrap_or_else(|| default.into());
    let parts = list.split(':').filter(|part| !part.is_empty());
    parts.map(String::from).collect()
}

#[cfg(test)]
mod tests;
