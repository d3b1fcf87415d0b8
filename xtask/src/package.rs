//! `cargo xtask package`: is what would be published complete, and does it build on its own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cmd::Cmd;
use crate::workspace::Workspace;

/// Files that every package brings along.
const REQUIRED: [&str; 4] = ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"];

/// Large test data stays in the repository.
const UNWANTED: &str = "tests/data/";

/// Package every published crate, check what the packages hold, and build each from its package.
///
/// Crates that are not on crates.io yet find each other: cargo puts the packages into a registry of its own.
/// Outside continuous integration (where the variable CI is set) changes need not be committed.
#[derive(clap::Args)]
pub struct Args {
    /// Only check the lists of files
    #[arg(long)]
    list: bool,
}

/// Runs the command.
pub fn main(args: &Args) -> Result<()> {
    let workspace = Workspace::load()?;
    contents(&workspace)?;
    if !args.list {
        build(&workspace)?;
    }
    Ok(())
}

/// The stage of `cargo xtask test --all`.
pub fn check(workspace: &Workspace) -> Result<()> {
    contents(workspace)?;
    build(workspace)
}

fn contents(workspace: &Workspace) -> Result<()> {
    let mut wrong = 0;
    for member in workspace.members.iter().filter(|m| m.published) {
        // The list is the same for changed files, so they are always allowed here.
        let cmd = format!("cargo package --list --allow-dirty -p {}", member.name);
        let cmd = Cmd::new(&cmd);
        println!("$ {cmd}");
        for problem in problems(&cmd.read(&workspace.root)?) {
            println!("{}/Cargo.toml:1: {problem}", member.dir);
            wrong += 1;
        }
    }
    if wrong > 0 {
        bail!("{wrong} problems with the contents of packages");
    }
    Ok(())
}

fn build(workspace: &Workspace) -> Result<()> {
    forget(workspace)?;
    let committed = std::env::var_os("CI").is_some();
    command(workspace, committed).run(&workspace.root)
}

/// Removes what an earlier run left of the packages.
///
/// Cargo takes a package of a registry for what it was when its version was first seen, unpacked and built, and
/// the registry of a run like this one is no exception: a crate would be built against yesterday's neighbours.
fn forget(workspace: &Workspace) -> Result<()> {
    let mut clean = Cmd::new("cargo clean");
    for member in workspace.members.iter().filter(|m| m.packaged()) {
        clean = clean.arg("-p").arg(&member.name);
    }
    clean.env("CARGO_TARGET_DIR", workspace.target.to_string_lossy()).run(&workspace.root)?;

    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let Some(home) = home.or_else(|| Some(std::env::home_dir()?.join(".cargo"))) else {
        return Ok(()); // cargo has no such folder either
    };
    let names: Vec<_> =
        workspace.members.iter().filter(|m| m.packaged()).map(|m| m.name.as_str()).collect();
    for dir in unpacked(&home.join("registry/src"), &names)? {
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    Ok(())
}

/// Where cargo unpacked packages of these names that come from folders of this machine.
fn unpacked(sources: &Path, names: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for registry in entries(sources)? {
        // A folder is named after the host of its registry and a hash; a registry on this machine has no host.
        if file_name(&registry).starts_with('-') {
            let ours = |dir: &PathBuf| {
                let dir = file_name(dir);
                dir.rsplit_once('-').is_some_and(|(name, _version)| names.contains(&name))
            };
            found.extend(entries(&registry)?.into_iter().filter(ours));
        }
    }
    Ok(found)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The entries of a folder, none if it does not exist.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(found) => Ok(found.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("read {}", dir.display())),
    }
}

fn command(workspace: &Workspace, committed: bool) -> Cmd {
    let mut cmd = Cmd::new("cargo package --workspace");
    for member in workspace.members.iter().filter(|m| !m.packaged()) {
        cmd = cmd.arg("--exclude").arg(&member.name);
    }
    if !committed {
        cmd = cmd.arg("--allow-dirty");
    }
    // What only has to compile does so faster without optimisations. Each crate brings dependencies with features
    // of its own, so that the largest are compiled several times in any case.
    cmd.env("CARGO_PROFILE_DEV_OPT_LEVEL", "0")
        .env("CARGO_PROFILE_DEV_DEBUG", "false")
        .env("CARGO_TARGET_DIR", workspace.target.to_string_lossy())
}

/// What is wrong with a package, given the list of its files.
fn problems(list: &str) -> Vec<String> {
    let files: Vec<String> = list.lines().map(|line| line.replace('\\', "/")).collect();
    let missing = REQUIRED.iter().filter(|name| !files.iter().any(|f| f == *name));
    let mut found: Vec<_> = missing.map(|name| format!("the package lacks {name}")).collect();
    if let Some(file) = files.iter().find(|f| f.starts_with(UNWANTED)) {
        found.push(format!("the package holds {file}; exclude {UNWANTED}"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::tests::sample;

    #[test]
    fn complete_packages_pass() {
        let list = "CHANGELOG.md\nCargo.toml\nLICENSE-APACHE\nLICENSE-MIT\nREADME.md\nsrc/lib.rs\n";
        assert!(problems(list).is_empty());
        let list = list.replace("LICENSE-MIT\n", "tests/data/a.safetensors\n");
        assert_eq!(
            problems(&list),
            [
                "the package lacks LICENSE-MIT",
                "the package holds tests/data/a.safetensors; exclude tests/data/"
            ]
        );
    }

    #[test]
    fn only_packages_from_this_machine_are_forgotten() {
        let sources = std::env::temp_dir().join(format!("attn-unpacked-{}", std::process::id()));
        for dir in [
            "-1f/a-core-0.1.0/src",
            "-1f/a-core-gpu-0.1.0",
            "-2e/a-core-0.2.0",
            "crates.io-3d/a-core-0.1.0",
        ] {
            fs::create_dir_all(sources.join(dir)).unwrap();
        }
        let mut found = unpacked(&sources, &["a-core"]).unwrap();
        found.sort();
        assert_eq!(found, ["-1f/a-core-0.1.0", "-2e/a-core-0.2.0"].map(|dir| sources.join(dir)));
        assert!(unpacked(&sources.join("none"), &["a-core"]).unwrap().is_empty());
        fs::remove_dir_all(&sources).unwrap();
    }

    #[test]
    fn unpublished_members_stay_out() {
        let line = command(&sample(), true).to_string();
        assert!(line.contains("--exclude attn-burn --exclude xtask"), "{line}");
        assert!(!line.contains("--allow-dirty"));
        assert!(command(&sample(), false).to_string().contains(" --allow-dirty"));
    }
}
