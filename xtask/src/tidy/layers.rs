//! Which crate may depend on which. Dependencies go one way: core, backend, papers, facades.

use super::Finding;
use crate::workspace::{Member, Workspace};

/// The kinds of crates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layer {
    Core,
    Backend,
    Model,
    Parallel,
    Paper,
    Facade,
    Burn,
    Xtask,
}

/// What each kind may depend on in its library. Test dependencies are free.
const MAY_USE: &[(Layer, &[Layer])] = &[
    (Layer::Core, &[]),
    (Layer::Backend, &[Layer::Core]),
    (Layer::Model, &[Layer::Core, Layer::Backend]),
    (Layer::Parallel, &[Layer::Core, Layer::Backend]),
    // The model is for the feature `model`, see `directions`.
    (Layer::Paper, &[Layer::Core, Layer::Backend, Layer::Model]),
    (Layer::Facade, &[Layer::Paper]),
    (Layer::Burn, &[Layer::Core, Layer::Backend, Layer::Paper, Layer::Facade]),
    (
        Layer::Xtask,
        &[Layer::Core, Layer::Backend, Layer::Model, Layer::Parallel, Layer::Paper, Layer::Facade],
    ),
];

/// Papers that build on another paper: (crate, what it uses, why).
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

fn layer(workspace: &Workspace, member: &Member) -> Option<Layer> {
    let family = format!("{}/", member.dir);
    match member.name.as_str() {
        "attn-core" => Some(Layer::Core),
        "attn-wgpu" => Some(Layer::Backend),
        "attn-model" => Some(Layer::Model),
        "attn-parallel" => Some(Layer::Parallel),
        "attn-burn" => Some(Layer::Burn),
        "xtask" => Some(Layer::Xtask),
        _ if member.is_paper() => Some(Layer::Paper),
        _ if workspace.papers().any(|paper| paper.dir.starts_with(&family)) => Some(Layer::Facade),
        _ => None,
    }
}

/// Checks a member's dependencies on other members against the table.
pub fn directions(workspace: &Workspace, member: &Member, manifest: &str) -> Vec<Finding> {
    let path = format!("{}/Cargo.toml", member.dir);
    let Some(own) = layer(workspace, member) else {
        let message = format!("{} has no place in the table of dependency directions", member.name);
        return vec![Finding::new(&path, 1, message)];
    };
    let rows = MAY_USE.iter().filter(|(layer, _)| *layer == own);
    let allowed: Vec<Layer> = rows.flat_map(|(_, uses)| *uses).copied().collect();
    let mut found = Vec::new();
    for used in member.uses.iter().filter(|used| !used.dev) {
        let Some(other) = workspace.members.iter().find(|m| m.name == used.name) else {
            continue;
        };
        let declared = EXCEPTIONS.iter().any(|(a, b, _)| *a == member.name && *b == used.name);
        let kind = layer(workspace, other);
        let problem = if declared {
            None
        } else if !kind.is_some_and(|kind| allowed.contains(&kind)) {
            Some("against the direction of dependencies")
        } else if kind == Some(Layer::Model) && own == Layer::Paper && !used.optional {
            Some("only behind the feature `model`")
        } else if own == Layer::Facade && !other.dir.starts_with(&format!("{}/", member.dir)) {
            Some("a facade only re-exports the papers in its own folder")
        } else {
            None
        };
        if let Some(problem) = problem {
            let line = line_of(manifest, &used.name);
            let message = format!("{} depends on {}: {problem}", member.name, used.name);
            found.push(Finding::new(&path, line, message));
        }
    }
    found
}

fn line_of(manifest: &str, dependency: &str) -> usize {
    let declares = |line: &str| {
        let rest = line.strip_prefix(dependency);
        rest.is_some_and(|rest| rest.starts_with(['.', ' ', '=']))
    };
    manifest.lines().position(declares).map_or(1, |i| i + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Use;

    fn add(workspace: &mut Workspace, from: &str, to: &str, optional: bool, dev: bool) {
        let member = workspace.members.iter_mut().find(|m| m.name == from).unwrap();
        member.uses.push(Use { name: to.into(), optional, dev });
    }

    fn found(workspace: &Workspace) -> Vec<String> {
        let members = workspace.members.iter();
        members.flat_map(|m| directions(workspace, m, "")).map(|f| f.message).collect()
    }

    fn sample() -> Workspace {
        let mut workspace = crate::workspace::tests::sample();
        for (name, dir) in [("attn-model", "attn-model"), ("attn-hip", "attn-sparse/hip")] {
            workspace.members.push(Member {
                name: name.into(),
                dir: dir.into(),
                ..Member::default()
            });
        }
        workspace
    }

    #[test]
    fn the_house_as_planned() {
        assert_eq!(found(&sample()), [""; 0]);
        let mut workspace = sample();
        add(&mut workspace, "attn-hip", "attn-model", true, false);
        add(&mut workspace, "attn-core", "attn-wgpu", false, true);
        assert_eq!(found(&workspace), [""; 0]);
    }

    #[test]
    fn wrong_directions() {
        for (from, to) in [
            ("attn-core", "attn-wgpu"),
            ("attn-wgpu", "attn-lightning"),
            ("attn-hip", "attn-lightning"),
            ("attn-hip", "attn-model"),
            ("attn-hip", "attn-linear"),
            ("attn-linear", "attn-hip"),
            ("attn-model", "attn-hip"),
            ("xtask", "attn-burn"),
            ("attn-wgpu", "xtask"),
        ] {
            let mut workspace = sample();
            add(&mut workspace, from, to, false, false);
            let found = found(&workspace);
            assert_eq!(found.len(), 1, "{from} {to}");
            assert!(found[0].starts_with(&format!("{from} depends on {to}: ")));
        }
    }

    #[test]
    fn every_member_has_a_place() {
        let mut workspace = sample();
        workspace.members.push(Member {
            name: "stray".into(),
            dir: "stray".into(),
            ..Member::default()
        });
        assert!(found(&workspace)[0].contains("no place"));
    }

    #[test]
    fn place_in_the_manifest() {
        let manifest = "[dependencies]\nattn-core-x = \"1\"\nattn-core.workspace = true\n";
        assert_eq!(line_of(manifest, "attn-core"), 3);
        assert_eq!(line_of(manifest, "attn-gone"), 1);
    }
}
