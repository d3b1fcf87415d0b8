//! What cargo knows about the workspace, reduced to what the commands need.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, MetadataCommand, TargetKind};

/// Features that tests need where a member has them, beside those that turn on other members: a facade's papers, and
/// what papers do for `attn-model`. They are never on by default. Segment Anything (`sam` of attn-vlsam) is linted
/// only: with candle, what wgpu is made of gets other features, and all of it would be built twice.
const TEST_FEATURES: [&str; 3] = ["testing", "bench", "data"];

/// The workspace as cargo describes it.
#[derive(Debug, Default)]
pub struct Workspace {
    pub root: PathBuf,
    pub target: PathBuf,
    pub members: Vec<Member>,
}

/// One crate of the workspace.
#[derive(Debug, Default, Clone)]
pub struct Member {
    pub name: String,
    /// Folder relative to the root, with forward slashes.
    pub dir: String,
    pub published: bool,
    /// Whether plain `cargo build` builds it; the others are tested by a stage of their own.
    pub default: bool,
    pub features: BTreeSet<String>,
    /// Names of the members it depends on.
    pub uses: Vec<Use>,
    pub examples: BTreeSet<String>,
    /// Names of the files in `tests/`.
    pub tests: BTreeSet<String>,
}

/// A dependency on another member.
#[derive(Debug, Clone)]
pub struct Use {
    pub name: String,
    pub optional: bool,
    pub dev: bool,
}

impl Workspace {
    /// Asks cargo. Nothing is downloaded: only the members' manifests are read.
    pub fn load() -> Result<Self> {
        let metadata = MetadataCommand::new()
            .no_deps()
            .exec()
            .context("cargo metadata, asked for the members of the workspace")?;
        let root = &metadata.workspace_root;
        let packages = metadata.workspace_packages();
        let names: BTreeSet<&str> = packages.iter().map(|p| p.name.as_str()).collect();
        let default = &metadata.workspace_default_members;
        let member = |package: &cargo_metadata::Package| {
            let dir = package.manifest_path.parent();
            let dir = dir.and_then(|dir| dir.strip_prefix(root).ok());
            let targets = |kind: TargetKind| {
                let of_kind = package.targets.iter().filter(|t| t.kind.contains(&kind));
                of_kind.map(|t| t.name.clone()).collect()
            };
            Member {
                name: package.name.to_string(),
                dir: dir.map_or(String::new(), |d| d.as_str().replace('\\', "/")),
                published: package.publish.as_ref().is_none_or(|to| !to.is_empty()),
                default: default.contains(&package.id),
                features: package.features.keys().cloned().collect(),
                uses: package
                    .dependencies
                    .iter()
                    .filter(|d| names.contains(d.name.as_str()))
                    .map(|d| Use {
                        name: d.name.clone(),
                        optional: d.optional,
                        dev: d.kind == DependencyKind::Development,
                    })
                    .collect(),
                examples: targets(TargetKind::Example),
                tests: targets(TargetKind::Test),
            }
        };
        Ok(Self {
            root: root.clone().into_std_path_buf(),
            target: metadata.target_directory.clone().into_std_path_buf(),
            members: packages.into_iter().map(member).collect(),
        })
    }

    /// `--workspace`, less the members that are not built by default.
    pub fn selection(&self) -> Vec<String> {
        let mut words = vec!["--workspace".to_string()];
        for member in self.members.iter().filter(|m| !m.default) {
            words.extend(["--exclude".into(), member.name.clone()]);
        }
        words
    }

    /// Members whose build needs no GPU crate, whatever the kind of dependency. xtask counts as one: its own
    /// tests never touch a device.
    pub fn without_gpu(&self) -> Vec<&Member> {
        let mut gpu = BTreeSet::from(["attn-wgpu"]);
        loop {
            let before = gpu.len();
            for member in &self.members {
                if member.uses.iter().any(|u| gpu.contains(u.name.as_str())) {
                    gpu.insert(&member.name);
                }
            }
            if gpu.len() == before {
                break;
            }
        }
        let keep = |m: &&Member| m.default && (m.name == "xtask" || !gpu.contains(m.name.as_str()));
        self.members.iter().filter(keep).collect()
    }

    /// Members that implement one paper.
    pub fn papers(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|m| m.is_paper())
    }
}

impl Member {
    /// A paper lives in the folder of its family: `attn-<family>/<paper>`.
    pub fn is_paper(&self) -> bool {
        self.dir.starts_with("attn-") && self.dir.contains('/')
    }

    /// Whether the stage `package` packages and builds it with the others.
    pub fn packaged(&self) -> bool {
        self.published && self.default
    }
}

/// `--features a/testing,b/bench` for the given members; empty where none has such a feature.
pub fn test_features<'a>(members: impl IntoIterator<Item = &'a Member>) -> Vec<String> {
    let mut features = Vec::new();
    for member in members {
        let optional = member.uses.iter().filter(|used| used.optional);
        let others = optional.filter_map(|used| used.name.strip_prefix("attn-"));
        for feature in TEST_FEATURES.into_iter().chain(others) {
            if member.features.contains(feature) {
                features.push(format!("{}/{feature}", member.name));
            }
        }
    }
    if features.is_empty() {
        return features;
    }
    vec!["--features".into(), features.join(",")]
}

#[cfg(test)]
pub mod tests {
    use super::*;

    fn member(name: &str, dir: &str, features: &[&str], uses: &[&str]) -> Member {
        Member {
            name: name.into(),
            dir: dir.into(),
            published: name != "xtask",
            default: name != "attn-burn",
            features: features.iter().map(|f| f.to_string()).collect(),
            uses: uses
                .iter()
                .map(|name| Use { name: name.to_string(), optional: false, dev: false })
                .collect(),
            ..Member::default()
        }
    }

    /// A small workspace with one member of each sort.
    pub fn sample() -> Workspace {
        let mut workspace = Workspace {
            root: "root".into(),
            target: "root/target".into(),
            members: vec![
                member("attn-core", "attn-core", &["testing"], &[]),
                member("attn-wgpu", "attn-wgpu", &["bench"], &["attn-core"]),
                member(
                    "attn-lightning",
                    "attn-linear/lightning",
                    &["bench", "serde"],
                    &["attn-core", "attn-wgpu"],
                ),
                member("attn-linear", "attn-linear", &["lightning"], &["attn-lightning"]),
                member("attn-burn", "attn-burn", &[], &["attn-lightning"]),
                member("xtask", "xtask", &[], &["attn-wgpu", "attn-lightning"]),
            ],
        };
        workspace.members[2].examples.insert("attn-lightning-quickstart".into());
        workspace.members[2].tests.insert("properties".into());
        workspace
    }

    #[test]
    fn features_of_tests_only() {
        let workspace = sample();
        let words = test_features(&workspace.members);
        assert_eq!(words, ["--features", "attn-core/testing,attn-wgpu/bench,attn-lightning/bench"]);
        let mut facade = workspace.members[3].clone();
        facade.uses[0].optional = true;
        assert_eq!(test_features([&facade]), ["--features", "attn-linear/lightning"]);
        assert!(test_features(&workspace.members[5..]).is_empty());
    }

    #[test]
    fn members_outside_the_default_are_left_out() {
        assert_eq!(sample().selection(), ["--workspace", "--exclude", "attn-burn"]);
    }

    #[test]
    fn gpu_is_inherited() {
        let workspace = sample();
        let names: Vec<_> = workspace.without_gpu().iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["attn-core", "xtask"]);
    }

    #[test]
    fn the_real_workspace_loads() {
        let workspace = Workspace::load().unwrap();
        assert!(workspace.members.iter().any(|m| m.name == "xtask"));
        assert!(workspace.papers().all(|m| m.dir.matches('/').count() == 1));
    }
}
