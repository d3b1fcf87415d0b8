//! The stages of `cargo xtask test --all`, as data: what each is for, when it can run, and its commands.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::built::{Pick, Programs};
use crate::check;
use crate::cmd::Cmd;
use crate::driver::install;
use crate::model::fetch;
use crate::package;
use crate::tidy;
use crate::workspace::{Member, Workspace, test_features};

mod settings;

/// One of a program's environment.
type Variable = (&'static str, String);

/// Where the minutes of a stage are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    Build,
    Tests,
    Settings,
    Burn,
}

impl Budget {
    pub const ALL: [Self; 4] = [Self::Build, Self::Tests, Self::Settings, Self::Burn];

    /// What is counted, and the minutes it may take on two cores.
    pub fn limit(self) -> (&'static str, f64) {
        match self {
            Self::Build => ("build, clippy, docs, package", 18.0),
            Self::Tests => ("tests at 8 lanes", 12.0),
            Self::Settings => ("4 and 16 lanes, default limits", 12.0),
            Self::Burn => ("burn", 10.0),
        }
    }
}

/// What a stage needs before it can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    Driver,
    /// Stands in for a stage that needs a driver.
    NoDriver,
}

/// One command of a stage.
pub enum Step {
    Run(Cmd),
    /// Programs from the one build of all tests.
    Built(Pick),
    /// A command of xtask itself, called directly.
    Call(&'static str, fn(&Workspace) -> Result<()>),
    /// Left out on this machine or in this workspace, with the reason.
    Skip(String),
}

/// A named, timed part of the tests.
pub struct Stage {
    pub name: &'static str,
    pub why: &'static str,
    pub budget: Budget,
    pub needs: Needs,
    pub steps: Vec<Step>,
}

/// Stages of `cargo xtask test` without `--all`.
pub const SHORT: [&str; 3] = ["tests", "tests-cpu", "quickstart"];

/// Every paper has a test with this word in its name, in `tests/properties.rs`: the one that is run again with
/// other lane widths and limits.
pub const SMOKE: &str = "smoke";

/// What the list depends on besides the workspace.
pub struct Host {
    /// The target for browsers is installed.
    pub wasm: bool,
    /// Folder of Mesa's compiled shaders.
    pub shader_cache: PathBuf,
}

impl Host {
    /// Looks at this machine.
    pub fn here(workspace: &Workspace) -> Self {
        let sysroot = Cmd::new("rustc --print sysroot").read(&workspace.root);
        let installed = |sysroot: String| {
            let libraries = Path::new(sysroot.trim()).join("lib/rustlib");
            libraries.join("wasm32-unknown-unknown").is_dir()
        };
        let cache = std::env::var_os("MESA_SHADER_CACHE_DIR");
        // Tests run in the folders of their crates.
        let absolute = |path: std::ffi::OsString| std::path::absolute(&path).unwrap_or(path.into());
        Self {
            wasm: sysroot.is_ok_and(installed),
            shader_cache: cache.map_or(workspace.target.join("mesa-cache"), absolute),
        }
    }
}

/// All stages, cheap ones first.
pub fn stages(ws: &Workspace, host: &Host) -> Vec<Stage> {
    let fixed =
        |name, why, steps| Stage { name, why, budget: Budget::Build, needs: Needs::Nothing, steps };
    let settings = |name, why, tests| Stage {
        budget: Budget::Settings,
        needs: Needs::Driver,
        ..fixed(name, why, tests)
    };
    let own = |name, call| vec![Step::Call(name, call)];
    let gpu = |lanes| gpu_env(&host.shader_cache, lanes);
    let selected = |line: &str| Cmd::new(line).args(ws.selection());
    let clippy =
        selected("cargo clippy").args(words("--all-targets --all-features -- -D warnings"));
    let docs = selected("cargo doc")
        .args(words("--no-deps --all-features"))
        .env("RUSTDOCFLAGS", "-D warnings");

    vec![
        fixed(
            "system",
            "the Vulkan driver and the tools of later stages are installed",
            own("system packages", |_| install::system_packages(false)),
        ),
        fixed(
            "model",
            "the language model that some tests compare with golden data is there",
            vec![model(ws)],
        ),
        fixed(
            "tidy",
            "files, headers, dependencies and library code follow the house rules",
            own("cargo xtask tidy", tidy::check),
        ),
        fixed(
            "fmt",
            "code is formatted",
            vec![Step::Run(Cmd::new("cargo fmt --all --check -- -l"))],
        ),
        fixed("clippy", "no lint speaks up, with every feature on", vec![Step::Run(clippy)]),
        fixed("docs", "documentation builds, and its links resolve", vec![Step::Run(docs)]),
        fixed("wasm", "attn-core compiles for browsers", vec![wasm(ws, host)]),
        fixed(
            "backends",
            "what has back-ends compiles with one of them alone",
            ["attn-wgpu", "attn-model"].map(|name| backend(ws, name)).into(),
        ),
        fixed(
            "check",
            "every variant of every kernel passes naga, for all drivers, and Tint",
            own("cargo xtask check", check::check),
        ),
        Stage {
            budget: Budget::Tests,
            needs: Needs::Driver,
            ..fixed(
                "tests",
                "every test, from buffers full of NaN, at 8 lanes",
                settings::all(ws, gpu(8)),
            )
        },
        Stage {
            budget: Budget::Tests,
            needs: Needs::NoDriver,
            ..fixed(
                "tests-cpu",
                "where there is no driver: the tests of crates that need none",
                vec![cpu_tests(ws)],
            )
        },
        settings("lanes-4", "subgroups of 4", settings::at_lanes(ws, gpu(4), 4)),
        settings("lanes-16", "subgroups of 16", settings::at_lanes(ws, gpu(16), 16)),
        settings(
            "plain",
            "a device with WebGPU's default limits and without any optional feature",
            settings::plain(ws, gpu(8)),
        ),
        Stage {
            budget: Budget::Tests,
            needs: Needs::Driver,
            ..fixed(
                "quickstart",
                "the examples that the READMEs show run",
                quickstarts(ws, &gpu(8)),
            )
        },
        fixed(
            "package",
            "what would be published builds on its own and is complete",
            own("cargo xtask package", package::check),
        ),
        Stage {
            budget: Budget::Burn,
            needs: Needs::Driver,
            ..fixed(
                "burn",
                "members that plain builds leave out: lints and documentation with every feature, tests",
                outside(ws, &gpu(8)),
            )
        },
    ]
}

/// What every test on a device gets. LP_NATIVE_VECTOR_WIDTH sets the subgroup size of Mesa's software driver,
/// whose older versions forget that width in their cache: hence one folder for each. Hardware ignores both.
fn gpu_env(cache: &Path, lanes: u32) -> Vec<Variable> {
    let cache = cache.join(lanes.to_string());
    vec![
        ("ATTN_POISON", "1".into()),
        ("LP_NATIVE_VECTOR_WIDTH", (32 * lanes).to_string()),
        ("MESA_SHADER_CACHE_DIR", cache.to_string_lossy().into_owned()),
    ]
}

fn with(cmd: Cmd, env: &[Variable]) -> Cmd {
    let add = |cmd: Cmd, (name, value): &Variable| cmd.env(name, value);
    env.iter().fold(cmd, add)
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(String::from).collect()
}

fn find<'a>(ws: &'a Workspace, name: &str) -> Option<&'a Member> {
    ws.members.iter().find(|m| m.name == name)
}

fn packages(members: &[&Member]) -> Vec<String> {
    let words = members.iter().flat_map(|m| ["-p".into(), m.name.clone()]);
    words.collect()
}

fn model(ws: &Workspace) -> Step {
    match find(ws, "attn-model") {
        Some(_) => Step::Call("cargo xtask model fetch smollm2", |_| {
            fetch::fetch(&fetch::SMOLLM2).map(|path| println!("{}", path.display()))
        }),
        None => Step::Skip("there is no attn-model".into()),
    }
}

fn wasm(ws: &Workspace, host: &Host) -> Step {
    if find(ws, "attn-core").is_none() {
        return Step::Skip("there is no attn-core".into());
    }
    if !host.wasm {
        return Step::Skip(
            "the target is missing: `rustup target add wasm32-unknown-unknown` installs it".into(),
        );
    }
    Step::Run(Cmd::new("cargo check -p attn-core --target wasm32-unknown-unknown"))
}

fn backend(ws: &Workspace, name: &str) -> Step {
    match find(ws, name) {
        Some(_) => {
            Step::Run(Cmd::new("cargo check --no-default-features --features vulkan -p").arg(name))
        }
        None => Step::Skip(format!("there is no {name}")),
    }
}

fn cpu_tests(ws: &Workspace) -> Step {
    let members = ws.without_gpu();
    let features = test_features(members.iter().copied());
    Step::Run(Cmd::new("cargo test").args(packages(&members)).args(features))
}

/// Examples of all members share one folder, so that each name has its crate in it.
fn quickstart(member: &Member) -> String {
    format!("{}-quickstart", member.name)
}

fn quickstarts(ws: &Workspace, env: &[Variable]) -> Vec<Step> {
    let shown = |m: &&Member| m.default && m.examples.contains(&quickstart(m));
    let run = |member: &Member| {
        Step::Built(Pick {
            member: member.name.clone(),
            programs: Programs::Example(quickstart(member)),
            args: Vec::new(),
            env: env.to_vec(),
        })
    };
    let steps: Vec<_> = ws.members.iter().filter(shown).map(run).collect();
    if steps.is_empty() {
        return vec![Step::Skip("no member has an example of that name".into())];
    }
    steps
}

/// Members outside the default. Lints and documentation share what cargo checks for them, so both have every
/// feature; tests have the default ones, as each set of features is a build of its own.
fn outside(ws: &Workspace, env: &[(&'static str, String)]) -> Vec<Step> {
    let of = |member: &Member| {
        let cmd = |line: &str| Cmd::new(line).arg("-p").arg(&member.name);
        let clippy = cmd("cargo clippy").args(words("--all-targets --all-features -- -D warnings"));
        // With the examples, dependencies have the features that clippy has just checked them with.
        let docs = cmd("cargo doc").args(words("--no-deps --all-features --lib --examples"));
        let docs = docs.env("RUSTDOCFLAGS", "-D warnings");
        let tests = Pick {
            member: member.name.clone(),
            programs: Programs::AllTests,
            args: Vec::new(),
            env: [env, &[settings::quick_compiler()]].concat(),
        };
        // Examples are built with the tests, and the quickstart runs as the example of the README.
        let doc = with(cmd("cargo test").arg("--doc"), env);
        [Step::Run(clippy), Step::Run(docs), Step::Run(doc), Step::Built(tests)]
    };
    let steps: Vec<_> = ws.members.iter().filter(|m| !m.default).flat_map(of).collect();
    if steps.is_empty() {
        return vec![Step::Skip("every member is built by default".into())];
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::tests::sample;

    fn list(wasm: bool) -> Vec<Stage> {
        let host = Host { wasm, shader_cache: "cache".into() };
        stages(&sample(), &host)
    }

    fn lines(stages: &[Stage], name: &str) -> Vec<String> {
        let stage = stages.iter().find(|s| s.name == name).unwrap();
        let line = |step: &Step| match step {
            Step::Run(cmd) => cmd.to_string(),
            Step::Built(pick) => pick.to_string(),
            Step::Call(name, _) => name.to_string(),
            Step::Skip(why) => format!("skipped: {why}"),
        };
        stage.steps.iter().map(line).collect()
    }

    #[test]
    fn names_are_unique_and_every_stage_does_something() {
        let stages = list(true);
        for (i, stage) in stages.iter().enumerate() {
            assert!(!stage.steps.is_empty(), "{}", stage.name);
            assert!(stages[..i].iter().all(|s| s.name != stage.name));
        }
        for name in SHORT {
            assert!(stages.iter().any(|s| s.name == name));
        }
    }

    #[test]
    fn tests_have_features_poison_and_width() {
        let tests = lines(&list(true), "tests");
        let env = "ATTN_POISON=1 LP_NATIVE_VECTOR_WIDTH=256 MESA_SHADER_CACHE_DIR=cache/8 ";
        assert!(tests.iter().all(|line| line.starts_with(env)), "{tests:?}");
        assert!(tests[0].ends_with("(built tests of attn-core)"));
        assert!(tests[1].contains("GALLIVM_PERF=nopt (built tests `attention`, `backward`"));
        assert!(tests[2].contains("(built tests but `attention`, `backward`"), "{}", tests[2]);
        assert_eq!(tests.len(), 7);
        assert!(tests[6].ends_with(
            "cargo test --workspace --exclude attn-burn \
             --features attn-core/testing,attn-wgpu/bench,attn-lightning/bench --doc"
        ));
    }

    #[test]
    fn settings_run_the_backend_and_one_test_a_paper() {
        let stages = list(true);
        let lanes = lines(&stages, "lanes-16");
        assert!(lanes[0].contains("LP_NATIVE_VECTOR_WIDTH=512"));
        assert!(lanes[0].contains("(built tests but `backward`, `device`, `forms`, `matmul`, "));
        assert!(lanes[0].ends_with(" --skip what_runs_is_listed"));
        assert!(lanes[1].contains("MESA_SHADER_CACHE_DIR=cache/16"));
        assert!(
            lanes[1].ends_with("(built test `backward` of attn-wgpu) --exact head_dims_and_ratios")
        );
        assert_eq!(lanes.len(), 13);
        assert!(lanes[12].ends_with("(built test `properties` of attn-lightning) smoke"));
        let plain = &lines(&stages, "plain")[0];
        assert!(plain.contains("(built tests but `forms`, `matmul`, `places`, "), "{plain}");
        assert!(plain.contains("ATTN_LIMITS=webgpu ATTN_DISABLE=subgroup,f16"), "{plain}");
    }

    #[test]
    fn what_cannot_run_says_why() {
        assert!(lines(&list(false), "wasm")[0].contains("rustup target add"));
        assert!(lines(&list(true), "wasm")[0].starts_with("cargo check -p attn-core"));
        let cpu = lines(&list(true), "tests-cpu");
        assert_eq!(cpu, ["cargo test -p attn-core -p xtask --features attn-core/testing"]);
    }

    #[test]
    fn members_outside_the_default_have_a_stage_of_their_own() {
        let stages = list(true);
        let burn = lines(&stages, "burn");
        assert_eq!(burn.len(), 4);
        assert_eq!(
            burn[0],
            "cargo clippy -p attn-burn --all-targets --all-features -- -D warnings"
        );
        assert!(burn[2].ends_with("MESA_SHADER_CACHE_DIR=cache/8 cargo test -p attn-burn --doc"));
        assert!(burn[3].ends_with("GALLIVM_PERF=nopt (built tests of attn-burn)"));
        let others = stages.iter().filter(|stage| stage.name != "burn");
        let mut others = others.flat_map(|stage| lines(&stages, stage.name));
        assert!(others.all(|line| !line.contains("-p attn-burn")));
        assert!(!SHORT.contains(&"burn"));
    }

    #[test]
    fn quickstarts_are_found() {
        let quickstart = lines(&list(true), "quickstart");
        assert_eq!(quickstart.len(), 1);
        assert!(
            quickstart[0]
                .ends_with("(built example `attn-lightning-quickstart` of attn-lightning)")
        );
    }
}
