//! Tests and examples that cargo has built, as commands of their own.
//!
//! `cargo test -p one-crate` may choose other features for shared dependencies than `cargo test --workspace`
//! does, and then builds wgpu a second time. The stages that repeat some tests with other settings therefore
//! ask for the same build as the stage of all tests, and start the programs that they want from it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use anyhow::{Context, Result, bail};
use cargo_metadata::{Artifact, Message, TargetKind};

use crate::cmd::Cmd;
use crate::workspace::{Workspace, test_features};

/// Which of a member's programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Programs {
    /// Unit tests and everything in `tests/`.
    AllTests,
    /// All but these files of `tests/`.
    TestsBut(Vec<&'static str>),
    /// These files of `tests/`.
    Tests(Vec<&'static str>),
    /// One file of `tests/`.
    Test(&'static str),
    Example(String),
}

/// Programs of one member with arguments and variables.
#[derive(Clone, Debug)]
pub struct Pick {
    pub member: String,
    pub programs: Programs,
    pub args: Vec<String>,
    pub env: Vec<(&'static str, String)>,
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.env {
            write!(f, "{name}={value} ")?;
        }
        let what = match &self.programs {
            Programs::AllTests => "tests".into(),
            Programs::TestsBut(names) => format!("tests but `{}`", names.join("`, `")),
            Programs::Tests(names) => format!("tests `{}`", names.join("`, `")),
            Programs::Test(name) => format!("test `{name}`"),
            Programs::Example(name) => format!("example `{name}`"),
        };
        write!(f, "(built {what} of {})", self.member)?;
        for arg in &self.args {
            write!(f, " {arg}")?;
        }
        Ok(())
    }
}

/// `cargo test` for all default members with the features that tests need.
pub fn cargo_test(workspace: &Workspace) -> Cmd {
    let members = workspace.members.iter().filter(|m| m.default);
    Cmd::new("cargo test").args(workspace.selection()).args(test_features(members))
}

/// The commands behind picks. Builds first, which is quick where the stage of all tests went before.
pub fn commands(workspace: &Workspace, picks: &[&Pick]) -> Result<Vec<Cmd>> {
    let mut built: BTreeMap<String, Vec<Artifact>> = BTreeMap::new();
    let mut commands = Vec::new();
    for pick in picks {
        let member = workspace.members.iter().find(|m| m.name == pick.member);
        let dir = member.map_or("", |m| m.dir.as_str());
        let build = build_of(workspace, pick);
        let built = match built.entry(build.to_string()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(artifacts(workspace, build)?),
        };
        let command = |(_, path): (String, String)| {
            let cmd = Cmd::program(&path).args(pick.args.clone());
            let add = |cmd: Cmd, (name, value): &(&str, String)| cmd.env(name, value);
            pick.env.iter().fold(cmd, add).within(dir)
        };
        commands.extend(of(workspace, built, pick)?.into_iter().map(command));
    }
    Ok(commands)
}

/// Names and paths of the programs of a pick, which are built first.
pub fn programs(workspace: &Workspace, pick: &Pick) -> Result<Vec<(String, String)>> {
    of(workspace, &artifacts(workspace, build_of(workspace, pick))?, pick)
}

/// All tests at once, or those of a member that plain builds leave out.
fn build_of(workspace: &Workspace, pick: &Pick) -> Cmd {
    match workspace.members.iter().find(|m| m.name == pick.member && !m.default) {
        Some(member) => Cmd::new("cargo test -p").arg(&member.name),
        None => cargo_test(workspace),
    }
}

fn artifacts(workspace: &Workspace, build: Cmd) -> Result<Vec<Artifact>> {
    let build = build.arg("--no-run").arg("--message-format=json-render-diagnostics");
    println!("$ {build}");
    let output = build.read_aloud(&workspace.root)?;
    let mut artifacts = Vec::new();
    for message in Message::parse_stream(output.as_bytes()) {
        if let Message::CompilerArtifact(artifact) = message.context("reading cargo's messages")? {
            artifacts.push(artifact);
        }
    }
    Ok(artifacts)
}

/// Names and paths of the programs of a pick, among what was built.
fn of(workspace: &Workspace, built: &[Artifact], pick: &Pick) -> Result<Vec<(String, String)>> {
    let member = workspace.members.iter().find(|m| m.name == pick.member);
    let dir = member.map_or("", |m| m.dir.as_str());
    let manifest = workspace.root.join(dir).join("Cargo.toml");
    let chosen = built
        .iter()
        .filter(|artifact| artifact.manifest_path == manifest && wanted(artifact, &pick.programs));
    let programs: Vec<_> = chosen
        .filter_map(|artifact| {
            Some((artifact.target.name.clone(), artifact.executable.as_ref()?.to_string()))
        })
        .collect();
    if programs.is_empty() {
        bail!(
            "cargo did not build anything for {pick}; does it require more features than tests have?"
        );
    }
    Ok(programs)
}

fn wanted(artifact: &Artifact, programs: &Programs) -> bool {
    let target = &artifact.target;
    let is = |kind: TargetKind, name: &str| target.kind.contains(&kind) && target.name == name;
    let any_test = artifact.profile.test && !target.kind.contains(&TargetKind::Example);
    match programs {
        Programs::AllTests => any_test,
        Programs::TestsBut(names) => any_test && !names.iter().any(|n| is(TargetKind::Test, n)),
        Programs::Tests(names) => names.iter().any(|n| is(TargetKind::Test, n)),
        Programs::Test(name) => is(TargetKind::Test, name),
        Programs::Example(name) => is(TargetKind::Example, name) && !artifact.profile.test,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::tests::sample;

    fn artifact(kind: &str, name: &str, test: bool) -> Artifact {
        let json = format!(
            r#"{{"package_id":"x","manifest_path":"/a/Cargo.toml","features":[],"filenames":[],
            "executable":"/a/x","fresh":true,
            "target":{{"kind":["{kind}"],"crate_types":["bin"],"name":"{name}","src_path":"/a/x.rs",
            "edition":"2024","doctest":false,"test":true}},
            "profile":{{"opt_level":"2","debuginfo":1,"debug_assertions":true,"overflow_checks":true,
            "test":{test}}}}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn programs_are_told_apart() {
        let unit = artifact("lib", "attn_wgpu", true);
        let test = artifact("test", "properties", true);
        let example = artifact("example", "quickstart", false);
        let library = artifact("lib", "attn_wgpu", false);
        let all = [&unit, &test, &example, &library];
        let of = |programs| all.map(|a| wanted(a, &programs));
        assert_eq!(of(Programs::AllTests), [true, true, false, false]);
        assert_eq!(of(Programs::TestsBut(vec!["properties"])), [true, false, false, false]);
        assert_eq!(of(Programs::Tests(vec!["other", "properties"])), [false, true, false, false]);
        assert_eq!(of(Programs::Test("properties")), [false, true, false, false]);
        assert_eq!(of(Programs::Example("quickstart".into())), [false, false, true, false]);
    }

    #[test]
    fn one_build_for_all() {
        let pick = |member: &str| Pick {
            member: member.into(),
            programs: Programs::AllTests,
            args: Vec::new(),
            env: Vec::new(),
        };
        let build = |member| build_of(&sample(), &pick(member)).to_string();
        assert_eq!(build("attn-wgpu"), cargo_test(&sample()).to_string());
        assert_eq!(build("attn-burn"), "cargo test -p attn-burn");
        assert_eq!(
            cargo_test(&sample()).to_string(),
            "cargo test --workspace --exclude attn-burn \
             --features attn-core/testing,attn-wgpu/bench,attn-lightning/bench"
        );
    }
}
