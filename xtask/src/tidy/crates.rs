//! Rules for the files that make a crate.

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;
use crate::stages::SMOKE;
use crate::workspace::Member;

const REQUIRED: [&str; 5] =
    ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE", "src/lib.rs"];

/// Settings that the workspace decides for all.
const INHERITED: [&str; 4] = ["version", "edition", "license", "rust-version"];

/// How the paths of a paper's property tests start.
pub const PROPERTIES: &str = "tests/properties";

/// Every published crate brings the same files.
pub fn furniture(member: &Member, files: &BTreeSet<String>) -> Vec<Finding> {
    if !member.published {
        return Vec::new();
    }
    let manifest = format!("{}/Cargo.toml", member.dir);
    let missing = |name: &&&str| !files.contains(&format!("{}/{name}", member.dir));
    let lacks = |name: &&str| Finding::new(&manifest, 1, format!("{} lacks {name}", member.name));
    REQUIRED.iter().filter(missing).map(lacks).collect()
}

/// The root of a crate says what the crate is.
pub fn root_docs(path: &str, text: &str) -> Vec<Finding> {
    let root = path.ends_with("/src/lib.rs") || path.ends_with("/src/main.rs");
    let first = text.lines().map(str::trim).find(|line| !line.is_empty());
    // `#![doc = include_str!(..)]` is documentation as well.
    let docs = first.is_some_and(|line| line.starts_with("//!") || line.starts_with("#![doc"));
    if root && !docs {
        return vec![Finding::new(path, 1, "the crate does not start with `//!` documentation")];
    }
    Vec::new()
}

/// A member takes version, edition, licence, minimum Rust version and lints from the workspace.
pub fn manifest(path: &str, text: &str) -> Vec<Finding> {
    if !path.ends_with("/Cargo.toml") {
        return Vec::new();
    }
    let sections = sections(text);
    let has = |section: &str, line: &str| {
        let lines = sections.get(section).map(Vec::as_slice);
        lines.unwrap_or_default().iter().any(|l| l == line)
    };
    let mut found = Vec::new();
    for key in INHERITED {
        let short = format!("{key}.workspace=true");
        let long = format!("{key}={{workspace=true}}");
        if !has("[package]", &short) && !has("[package]", &long) {
            let message = format!("`{key}` is not inherited from the workspace");
            found.push(Finding::new(path, 1, message));
        }
    }
    if !has("[lints]", "workspace=true") {
        let message = "`[lints] workspace = true` is missing";
        found.push(Finding::new(path, 1, message));
    }
    found
}

/// Lines of each section of a TOML file, without spaces.
fn sections(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut sections = BTreeMap::<String, Vec<String>>::new();
    let mut current = String::new();
    for line in text.lines() {
        let code = line.split('#').next().unwrap_or_default();
        let packed: String = code.split_whitespace().collect();
        if packed.starts_with('[') {
            current = packed;
        } else if !packed.is_empty() {
            sections.entry(current.clone()).or_default().push(packed);
        }
    }
    sections
}

/// Every paper has one quick test that also runs with other lane widths and limits.
pub fn smoke_test(path: &str, text: &str) -> Vec<Finding> {
    let named = |line: &str| {
        let name = line.trim_start().strip_prefix("fn ");
        name.is_some_and(|name| name.split('(').next().is_some_and(|n| n.contains(SMOKE)))
    };
    if text.lines().any(named) {
        return Vec::new();
    }
    let message = format!(
        "no test with `{SMOKE}` in its name in {PROPERTIES}: one is run with other lane widths and limits"
    );
    vec![Finding::new(path, 1, message)]
}

/// Notes dependencies of which two versions are built.
pub fn lock_duplicates(path: &str, text: &str) -> Vec<Finding> {
    if path != "Cargo.lock" {
        return Vec::new();
    }
    let mut versions = BTreeMap::<&str, Vec<(usize, &str)>>::new();
    let mut name = "";
    for (i, line) in text.lines().enumerate() {
        if let Some(value) = line.strip_prefix("name = ") {
            name = value.trim_matches('"');
        } else if let Some(value) = line.strip_prefix("version = ")
            && !name.is_empty()
        {
            versions.entry(name).or_default().push((i + 1, value.trim_matches('"')));
            name = "";
        }
    }
    versions.retain(|_, found| found.len() > 1);
    let notice = |(name, found): (&str, Vec<(usize, &str)>)| {
        let list: Vec<_> = found.iter().map(|(_, version)| *version).collect();
        Finding::notice(path, found[0].0, format!("{name} in versions {}", list.join(", ")))
    };
    versions.into_iter().map(notice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::tests::sample;

    #[test]
    fn missing_files() {
        let workspace = sample();
        let complete = |dir: &str| REQUIRED.iter().map(|name| format!("{dir}/{name}")).collect();
        let mut files: BTreeSet<String> = complete("attn-core");
        assert!(furniture(&workspace.members[0], &files).is_empty());
        files.remove("attn-core/LICENSE-MIT");
        let found = furniture(&workspace.members[0], &files);
        assert_eq!(found[0].to_string(), "attn-core/Cargo.toml:1: attn-core lacks LICENSE-MIT");
        // xtask is not published.
        assert!(furniture(&workspace.members[5], &BTreeSet::new()).is_empty());
    }

    #[test]
    fn documentation_of_the_crate() {
        assert!(root_docs("a/src/lib.rs", "\n//! What it is.\n").is_empty());
        assert!(root_docs("a/src/lib.rs", "#![doc = include_str!(\"../README.md\")]\n").is_empty());
        assert_eq!(root_docs("a/src/lib.rs", "mod a;\n//! Late.\n").len(), 1);
        assert!(root_docs("a/src/other.rs", "mod a;\n").is_empty());
    }

    #[test]
    fn manifests() {
        let good = "[package]\nname = \"a\"\nversion.workspace = true\nedition = { workspace = true } # as all\n\
                    license.workspace = true\nrust-version.workspace = true\n\n[lints]\nworkspace = true\n";
        assert!(manifest("a/Cargo.toml", good).is_empty());
        let bad = good.replace("version.workspace = true\nedition", "version = \"1.0.0\"\nedition");
        let found = manifest("a/Cargo.toml", &bad.replace("[lints]", "[other]"));
        assert_eq!(found.len(), 2);
        assert!(found[0].message.contains("`version`"));
        assert!(found[1].message.contains("[lints]"));
        // The workspace's own manifest is where these are set.
        assert!(manifest("Cargo.toml", "").is_empty());
    }

    #[test]
    fn smoke_tests() {
        assert!(smoke_test("p", "#[test]\nfn smoke() {}\n").is_empty());
        assert!(smoke_test("p", "    fn smoke_forward(gpu: &Gpu) {}\n").is_empty());
        assert_eq!(smoke_test("p", "// fn smoke\nfn other() { smoke() }\n").len(), 1);
    }

    #[test]
    fn two_versions() {
        let lock = "[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n\n[[package]]\nname = \"b\"\nversion = \"1.0.0\"\n\n\
                    [[package]]\nname = \"a\"\nversion = \"2.0.0\"\n";
        let found = lock_duplicates("Cargo.lock", lock);
        assert_eq!(found.len(), 1);
        assert!(found[0].notice);
        assert_eq!(found[0].message, "a in versions 1.0.0, 2.0.0");
    }
}
