//! `cargo xtask package`: is what would be published complete, and does it build on its own.

use anyhow::{Result, bail};

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
    let committed = std::env::var_os("CI").is_some();
    command(workspace, committed).run(&workspace.root)
}

fn command(workspace: &Workspace, committed: bool) -> Cmd {
    let mut cmd = Cmd::new("cargo package --workspace");
    for member in workspace.members.iter().filter(|m| !m.published || !m.default) {
        cmd = cmd.arg("--exclude").arg(&member.name);
    }
    if !committed {
        cmd = cmd.arg("--allow-dirty");
    }
    // A package leaves the workspace's profile behind. With the same settings and the same folder, its
    // dependencies are those that are built already.
    cmd.env("CARGO_PROFILE_DEV_OPT_LEVEL", "2")
        .env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only")
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
    fn unpublished_members_stay_out() {
        let line = command(&sample(), true).to_string();
        assert!(line.contains("--exclude attn-burn --exclude xtask"), "{line}");
        assert!(!line.contains("--allow-dirty"));
        assert!(command(&sample(), false).to_string().contains(" --allow-dirty"));
    }
}
