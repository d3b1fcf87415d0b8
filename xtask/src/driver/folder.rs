//! A newer software driver in a folder of its own, beside the system's: Debian's next release with its
//! backports, from the mirror that the system itself uses.
//!
//! No chroot is needed to use it. A program that is started through the folder's own dynamic loader gets all
//! libraries from there: the C library that the driver was built for, the Vulkan loader, and the driver.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::install::{DRIVER, Machine};
use super::{Disk, Files, Found, detect};
use crate::cmd::Cmd;

/// Debian's release that has a Mesa which differs much from the one of stable systems.
const RELEASE: &str = "trixie";

/// A folder with a driver in it.
#[derive(Debug, Clone)]
pub struct Folder {
    root: String,
    arch: &'static str,
}

/// The dynamic loader of an architecture, from the folder's root.
fn dynamic_loader(arch: &str) -> Option<&'static str> {
    match arch {
        "x86_64" => Some("lib64/ld-linux-x86-64.so.2"),
        "aarch64" => Some("lib/ld-linux-aarch64.so.1"),
        _ => None,
    }
}

impl Folder {
    /// Looks whether a driver is there.
    pub fn open(dir: &Path) -> Result<Self> {
        let folder = Self::at(dir)?;
        if !folder.found().usable() {
            bail!(
                "there is no driver in {}; `cargo xtask driver install {0}` puts one there",
                folder.root
            );
        }
        Ok(folder)
    }

    fn at(dir: &Path) -> Result<Self> {
        let arch = std::env::consts::ARCH;
        if std::env::consts::OS != "linux" || dynamic_loader(arch).is_none() {
            bail!("a driver in a folder works on Linux on x86_64 and aarch64 only");
        }
        let root = std::path::absolute(dir)?;
        let root = root.to_str().context("the folder's path is not Unicode")?;
        // Cargo takes a runner as words.
        if root.contains(char::is_whitespace) {
            bail!("the path {root:?} has spaces");
        }
        Ok(Self { root: root.trim_end_matches('/').into(), arch })
    }

    /// What is in the folder, seen by the rules for systems.
    pub fn found(&self) -> Found {
        let var = |name: &str| match name {
            "VK_DRIVER_FILES" => Some(self.manifest(&Disk)),
            "LD_LIBRARY_PATH" => Some(self.libraries()),
            _ => None,
        };
        let mut found = Found { hardware: false, ..detect("linux", self.arch, &var, &Disk) };
        // The system's loader is no part of the folder.
        found.loader = found.loader.filter(|path| path.starts_with(&self.root));
        found
    }

    /// Where compiled shaders are kept: versions of Mesa do not share a cache.
    pub fn shader_cache(&self) -> PathBuf {
        Path::new(&self.root).join("mesa-cache")
    }

    fn libraries(&self) -> String {
        format!("{}/usr/lib/{}-linux-gnu", self.root, self.arch)
    }

    /// Mesa has named it with and without the architecture.
    fn manifest(&self, files: &dyn Files) -> String {
        let dir = format!("{}/usr/share/vulkan/icd.d", self.root);
        let name = files.list(&dir).into_iter().find(|name| name.starts_with("lvp_icd"));
        format!("{dir}/{}", name.unwrap_or_else(|| "lvp_icd.json".into()))
    }

    /// The words in front of a program that is to use the driver.
    fn runner(&self) -> [String; 3] {
        let loader = dynamic_loader(self.arch).unwrap_or_default();
        [format!("{}/{loader}", self.root), "--library-path".into(), self.libraries()]
    }

    /// The command with this driver: cargo hands it to the programs that it starts.
    pub fn wrap(&self, cmd: Cmd) -> Cmd {
        let cmd = cmd.env("VK_DRIVER_FILES", self.manifest(&Disk));
        if cmd.is("cargo") {
            let name =
                format!("CARGO_TARGET_{}_UNKNOWN_LINUX_GNU_RUNNER", self.arch.to_uppercase());
            return cmd.env(&name, self.runner().join(" "));
        }
        let [loader, words @ ..] = self.runner();
        cmd.through(&loader, words)
    }
}

/// Puts a driver into the folder.
pub fn install(dir: &Path) -> Result<()> {
    let folder = Folder::at(dir)?;
    if folder.found().usable() {
        println!("There is a driver in {} already.", folder.root);
        return Ok(());
    }
    let machine = Machine::here();
    if !machine.is_debian_root() {
        bail!("this works only as root on Debian, whose debootstrap and mirror it uses");
    }
    let here = Path::new(".");
    if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty", folder.root);
    }
    if Cmd::new("debootstrap --version").read(here).is_err() {
        for cmd in machine.commands(&["debootstrap"]) {
            cmd.run(here)?;
        }
    }
    let targets = Cmd::new("apt-get indextargets --format $(REPO_URI)").arg("Created-By: Packages");
    let mirror = mirror(&targets.read(here)?).context("apt-get names no mirror")?;
    let [bootstrap, rest @ ..] = commands(&folder.root, &mirror);
    bootstrap.run(here)?;
    fs::write(dir.join("etc/apt/sources.list"), sources(&mirror))?;
    rest.iter().try_for_each(|cmd| cmd.run(here))?;
    Folder::open(dir)?;
    println!("`cargo xtask test --driver {}` uses it.", folder.root);
    Ok(())
}

/// The first of the system's package sources that is not for security updates.
fn mirror(targets: &str) -> Option<String> {
    let lines = targets.lines().map(str::trim);
    let mut usable = lines.filter(|line| !line.is_empty() && !line.contains("security"));
    usable.next().map(String::from)
}

fn sources(mirror: &str) -> String {
    format!("deb {mirror} {RELEASE} main\ndeb {mirror} {RELEASE}-backports main\n")
}

fn commands(root: &str, mirror: &str) -> [Cmd; 3] {
    let chroot = |line: &str| {
        Cmd::new(&format!("chroot {root} env DEBIAN_FRONTEND=noninteractive apt-get {line}"))
    };
    let install = format!(
        "install --yes --no-install-recommends --target-release {RELEASE}-backports {}",
        DRIVER.join(" ")
    );
    [
        Cmd::new(&format!("debootstrap --variant=minbase {RELEASE} {root} {mirror}")),
        chroot("update"),
        chroot(&install),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> Folder {
        Folder { root: "/x/new".into(), arch: "x86_64" }
    }

    #[test]
    fn programs_start_through_the_folders_loader() {
        let program = folder().wrap(Cmd::program("target/debug/deps/a-1").arg("smoke"));
        assert_eq!(
            program.to_string(),
            "VK_DRIVER_FILES=/x/new/usr/share/vulkan/icd.d/lvp_icd.json \
             /x/new/lib64/ld-linux-x86-64.so.2 --library-path /x/new/usr/lib/x86_64-linux-gnu \
             target/debug/deps/a-1 smoke"
        );
    }

    #[test]
    fn cargo_gets_a_runner() {
        let cargo = folder().wrap(Cmd::new("cargo test"));
        let runner = cargo.value("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER").unwrap();
        assert_eq!(
            runner,
            "/x/new/lib64/ld-linux-x86-64.so.2 --library-path /x/new/usr/lib/x86_64-linux-gnu"
        );
        assert!(cargo.to_string().ends_with("cargo test"));
    }

    #[test]
    fn the_mirror_is_the_systems_own() {
        let targets = "\nhttp://mirror.example/debian-security/\nhttp://mirror.example/debian/\n";
        assert_eq!(mirror(targets).as_deref(), Some("http://mirror.example/debian/"));
        assert_eq!(mirror("\n"), None);
        assert!(sources("m").ends_with("deb m trixie-backports main\n"));
        let [first, .., last] = commands("/x", "m").map(|cmd| cmd.to_string());
        assert_eq!(first, "debootstrap --variant=minbase trixie /x m");
        assert!(last.ends_with("--target-release trixie-backports mesa-vulkan-drivers libvulkan1"));
    }

    #[test]
    fn folders_without_driver_are_refused() {
        let error = Folder::open(Path::new("no/such/folder")).unwrap_err().to_string();
        assert!(error.contains("driver"), "{error}");
    }
}
