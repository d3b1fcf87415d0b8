//! `cargo xtask tidy`: the house rules that a program can check.
//!
//! Each rule is a function from a file's path and text to findings, or from the workspace's facts where one
//! file is not enough.

mod crates;
mod layers;
mod lexer;
mod rust;
mod text;
mod wgsl;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use crate::cmd::Cmd;
use crate::workspace::Workspace;

/// Check headers, licences, manifests, dependency directions and library code against the house rules.
///
/// Looks at every file that git tracks or would track. Each finding is printed as `file:line: message`.
/// Notices (long files, two versions of one dependency) do not fail the check.
#[derive(clap::Args)]
pub struct Args {}

/// One place that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    pub path: String,
    pub line: usize,
    pub message: String,
    /// Worth knowing, but no error.
    pub notice: bool,
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.into(), line, message: message.into(), notice: false }
    }

    fn notice(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { notice: true, ..Self::new(path, line, message) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.notice { "notice: " } else { "" };
        write!(f, "{}:{}: {kind}{}", self.path, self.line, self.message)
    }
}

type Rule = fn(&str, &str) -> Vec<Finding>;

/// Rules that look at one file. Each decides by the path whether the file is its business.
const RULES: &[Rule] = &[
    text::dash,
    text::absolute_paths,
    text::length,
    wgsl::header,
    wgsl::binding_shapes,
    wgsl::forbidden,
    rust::debug_leftovers,
    rust::panics,
    rust::ignored_tests,
    rust::unsafe_reasons,
    crates::root_docs,
    crates::manifest,
    crates::lock_duplicates,
];

/// Runs the command.
pub fn main(_: &Args) -> Result<()> {
    check(&Workspace::load()?)
}

/// The stage of `cargo xtask test --all`.
pub fn check(workspace: &Workspace) -> Result<()> {
    let files = files(&workspace.root)?;
    let mut findings = Vec::new();
    for path in &files {
        // Binary files have no text to check.
        if let Ok(text) = fs::read_to_string(workspace.root.join(path)) {
            for rule in RULES {
                findings.extend(rule(path, &text));
            }
        }
    }
    for member in &workspace.members {
        findings.extend(crates::furniture(member, &files));
        let manifest = format!("{}/Cargo.toml", member.dir);
        let manifest = fs::read_to_string(workspace.root.join(manifest)).unwrap_or_default();
        findings.extend(layers::directions(workspace, member, &manifest));
        if member.is_paper() {
            // One file, or a folder of that name.
            let path = format!("{}/{}", member.dir, crates::PROPERTIES);
            let parts = files.iter().filter(|file| file.starts_with(&path));
            let text = |file| fs::read_to_string(workspace.root.join(file)).ok();
            let text: String = parts.filter_map(text).collect();
            findings.extend(crates::smoke_test(&format!("{}/Cargo.toml", member.dir), &text));
        }
    }
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    let errors = findings.iter().filter(|f| !f.notice).count();
    println!("{} files checked, {errors} findings", files.len());
    if errors > 0 {
        bail!("{errors} findings");
    }
    Ok(())
}

/// Files that git tracks or would track; without git, everything but hidden folders and build output.
fn files(root: &Path) -> Result<BTreeSet<String>> {
    // The folder may belong to someone else, as in a container.
    let trust = format!("safe.directory={}", root.display());
    let git = Cmd::new("git -c")
        .arg(trust)
        .args(["ls-files", "-z", "-co", "--exclude-standard"].map(String::from));
    println!("$ {git}");
    let listed = match git.read(root) {
        Ok(list) => list.split('\0').map(String::from).collect(),
        Err(error) => {
            println!("notice: looking at the folder itself, since git cannot tell: {error:#}");
            let mut found = BTreeSet::new();
            walk(root, "", &mut found)?;
            found
        }
    };
    // Git still lists a tracked file that was deleted.
    let exists = |path: &String| root.join(path).is_file();
    Ok(listed.into_iter().filter(exists).collect())
}

fn walk(dir: &Path, prefix: &str, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        if !entry.file_type()?.is_dir() {
            found.insert(path);
        } else if !name.starts_with('.') && !["target", "bench-results"].contains(&name.as_str()) {
            walk(&entry.path(), &format!("{path}/"), found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_shown_with_their_place() {
        let finding = Finding::new("a/b.rs", 7, "too odd");
        assert_eq!(finding.to_string(), "a/b.rs:7: too odd");
        let notice = Finding::notice("a/b.rs", 7, "odd");
        assert_eq!(notice.to_string(), "a/b.rs:7: notice: odd");
    }

    #[test]
    fn own_files_are_found_with_and_without_git() {
        let root = Workspace::load().unwrap().root;
        assert!(files(&root).unwrap().contains("xtask/src/tidy.rs"));
        let mut found = BTreeSet::new();
        walk(&root, "", &mut found).unwrap();
        assert!(found.contains("xtask/src/tidy.rs"));
        assert!(!found.iter().any(|path| path.starts_with("target/")));
    }
}
