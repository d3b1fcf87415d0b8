//! The stages of tests: all of them, and some again with other settings of the device.

use super::{SMOKE, Step, Variable, find, with};
use crate::built::{Pick, Programs, cargo_test};
use crate::workspace::{Member, Workspace};

/// Most of the time of tests goes into Mesa's compiler, and half of that into optimisations that add nothing to a test
/// but speed.
pub(super) fn quick_compiler() -> Variable {
    ("GALLIVM_PERF", "nopt".into())
}

/// The member whose tests compute more than they compile: on a real model.
const COMPUTES: &str = "attn-model";

/// Programs of attn-wgpu that take Mesa's compiler minutes. At another lane width than 8 each runs only the test
/// named here, but for two whose kernels depend most on that width: they run whole at one of the two.
const LONG: [(&str, Option<u32>, &str); 13] = [
    ("attention", Some(16), "head_dims"),
    ("backward", None, "head_dims_and_ratios"),
    ("device", None, "many_threads_share_one_device"),
    ("forms", None, "decode_of_long_keys"),
    ("matmul", Some(4), "smoke_tile_edges_of_every_kernel"),
    ("packed", Some(16), "smoke_every_type_on_every_kernel"),
    ("places", None, "gradients_know_their_batch_and_head"),
    ("plan", None, "smoke_named_plans"),
    ("plan_backward", None, "head_dims"),
    ("plan_laws", None, "every_key_counts_once"),
    ("plan_lists", None, "clusters_of_tokens"),
    ("targets", None, "attention_over_plans"),
    ("weights", None, "heads_and_dims"),
];

/// What a test has in its name that compares kernels which run with the list of all: seconds each, and on a device
/// like that of the tests at 8 lanes.
const LISTS: &str = "what_runs_is_listed";

/// All tests of all members, the examples in their documentation too.
pub fn all(ws: &Workspace, env: Vec<Variable>) -> Vec<Step> {
    let long = || LONG.iter().map(|(program, ..)| *program).collect();
    let quick = [&env[..], &[quick_compiler()]].concat();
    let mut steps = Vec::new();
    for member in ws.members.iter().filter(|m| m.default) {
        match member.name.as_str() {
            "attn-wgpu" => {
                // The long ones first: programs run side by side, and none should be left alone at the end.
                steps.push(pick(&member.name, Programs::Tests(long()), &[], &quick));
                steps.push(pick(&member.name, Programs::TestsBut(long()), &[], &quick));
            }
            name if name == COMPUTES => steps.push(pick(name, Programs::AllTests, &[], &env)),
            name => steps.push(pick(name, Programs::AllTests, &[], &quick)),
        }
    }
    steps.push(Step::Run(with(cargo_test(ws).arg("--doc"), &env)));
    steps
}

fn pick(member: &str, programs: Programs, args: &[&str], env: &[Variable]) -> Step {
    Step::Built(Pick {
        member: member.into(),
        programs,
        args: args.iter().map(|a| a.to_string()).collect(),
        env: env.to_vec(),
    })
}

/// At another width of subgroups than the tests of all, with the long programs in brief.
pub fn at_lanes(ws: &Workspace, env: Vec<Variable>, lanes: u32) -> Vec<Step> {
    let elsewhere: Vec<_> = LONG.into_iter().filter(|(_, at, _)| *at != Some(lanes)).collect();
    run(ws, env, &elsewhere, &["--skip", LISTS])
}

/// Those of the long programs whose kernels the others run on such a device, too, or that take such capabilities in
/// the tests at 8 lanes.
const BRIEF_ON_PLAIN: [&str; 9] = [
    "forms",
    "matmul",
    "places",
    "plan",
    "plan_backward",
    "plan_laws",
    "plan_lists",
    "targets",
    "weights",
];

/// On a device with nothing that WebGPU does not promise.
pub fn plain(ws: &Workspace, mut env: Vec<Variable>) -> Vec<Step> {
    env.push(("ATTN_LIMITS", "webgpu".into()));
    env.push(("ATTN_DISABLE", "subgroup,f16,immediates,timestamps".into()));
    let brief = |(program, ..): &(&str, Option<u32>, &str)| BRIEF_ON_PLAIN.contains(program);
    run(ws, env, &LONG.into_iter().filter(brief).collect::<Vec<_>>(), &[])
}

/// The backend's own tests, with arguments, and one test of each paper. Of the programs in `brief` one test.
fn run(
    ws: &Workspace,
    mut env: Vec<Variable>,
    brief: &[(&'static str, Option<u32>, &'static str)],
    args: &[&str],
) -> Vec<Step> {
    if find(ws, "attn-wgpu").is_none() {
        return vec![Step::Skip("there is no attn-wgpu".into())];
    }
    // Random cases compile kernels by the dozen; here the tables have to do.
    env.push(("PROPTEST_CASES", "2".into()));
    env.push(quick_compiler());
    let whole = Programs::TestsBut(brief.iter().map(|(program, ..)| *program).collect());
    let mut steps = vec![pick("attn-wgpu", whole, args, &env)];
    for (program, _, test) in brief {
        steps.push(pick("attn-wgpu", Programs::Test(program), &["--exact", test], &env));
    }
    let tested = |m: &&Member| m.default && m.tests.contains("properties");
    for paper in ws.papers().filter(tested) {
        steps.push(pick(&paper.name, Programs::Test("properties"), &[SMOKE], &env));
    }
    steps
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn long_programs_have_the_tests_named_for_them() {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../attn-wgpu/tests");
        let long = LONG.map(|(program, ..)| program);
        assert!(BRIEF_ON_PLAIN.iter().all(|program| long.contains(program)));
        for (program, at, test) in LONG {
            assert!(matches!(at, None | Some(4 | 16)), "{program}");
            let text = fs::read_to_string(tests.join(format!("{program}.rs"))).unwrap();
            assert!(text.contains(&format!("fn {test}(")), "{program}: {test}");
        }
    }
}
