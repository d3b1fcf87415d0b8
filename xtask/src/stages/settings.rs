//! The stages of tests: all of them, and some again with other settings of the device.

use super::{SMOKE, Step, Variable, find, with};
use crate::built::{Pick, Programs, cargo_test};
use crate::workspace::{Member, Workspace};

/// Most of the time of these goes into Mesa's compiler, and half of that into optimisations that add nothing to a
/// test but speed. The other programs have them.
fn quick_compiler() -> Variable {
    ("GALLIVM_PERF", "nopt".into())
}

/// Programs of attn-wgpu that take Mesa's compiler minutes. Each runs whole at one of the two other lane widths, and
/// at the second only the test named here.
const LONG: [(&str, u32, &str); 11] = [
    ("attention", 16, "head_dims"),
    ("backward", 4, "head_dims_and_ratios"),
    ("device", 4, "many_threads_share_one_device"),
    ("forms", 16, "decode_of_long_keys"),
    ("matmul", 4, "smoke_tile_edges_of_every_kernel"),
    ("places", 16, "gradients_know_their_batch_and_head"),
    ("plan", 4, "smoke_named_plans"),
    ("plan_backward", 16, "named_plans"),
    ("plan_laws", 4, "every_key_counts_once"),
    ("plan_lists", 16, "clusters_of_tokens"),
    ("weights", 16, "heads_and_dims"),
];

/// All tests of all members, the examples in their documentation too.
pub fn all(ws: &Workspace, env: Vec<Variable>) -> Vec<Step> {
    let long = || LONG.iter().map(|(program, ..)| *program).collect();
    let mut steps = Vec::new();
    for member in ws.members.iter().filter(|m| m.default) {
        if member.name == "attn-wgpu" {
            // The long ones first: programs run side by side, and none should be left alone at the end.
            let quick = [&env[..], &[quick_compiler()]].concat();
            steps.push(pick(&member.name, Programs::Tests(long()), &[], &quick));
            steps.push(pick(&member.name, Programs::TestsBut(long()), &[], &env));
        } else {
            steps.push(pick(&member.name, Programs::AllTests, &[], &env));
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

/// At another width of subgroups than the tests of all, with the long programs in turns.
pub fn at_lanes(ws: &Workspace, env: Vec<Variable>, lanes: u32) -> Vec<Step> {
    let elsewhere: Vec<_> = LONG.into_iter().filter(|(_, at, _)| *at != lanes).collect();
    run(ws, env, &elsewhere)
}

/// Those of the long programs whose kernels the others run on such a device, too.
const BRIEF_ON_PLAIN: [&str; 4] = ["places", "plan_laws", "plan_lists", "weights"];

/// On a device with nothing that WebGPU does not promise.
pub fn plain(ws: &Workspace, mut env: Vec<Variable>) -> Vec<Step> {
    env.push(("ATTN_LIMITS", "webgpu".into()));
    env.push(("ATTN_DISABLE", "subgroup,f16,immediates,timestamps".into()));
    let brief = |(program, ..): &(&str, u32, &str)| BRIEF_ON_PLAIN.contains(program);
    run(ws, env, &LONG.into_iter().filter(brief).collect::<Vec<_>>())
}

/// The backend's own tests, and one test of each paper. Of the programs in `brief` one test.
fn run(
    ws: &Workspace,
    mut env: Vec<Variable>,
    brief: &[(&'static str, u32, &'static str)],
) -> Vec<Step> {
    if find(ws, "attn-wgpu").is_none() {
        return vec![Step::Skip("there is no attn-wgpu".into())];
    }
    // Random cases compile kernels by the dozen; here the tables have to do.
    env.push(("PROPTEST_CASES", "2".into()));
    env.push(quick_compiler());
    let whole = Programs::TestsBut(brief.iter().map(|(program, ..)| *program).collect());
    let mut steps = vec![pick("attn-wgpu", whole, &[], &env)];
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
            assert!(matches!(at, 4 | 16), "{program}");
            let text = fs::read_to_string(tests.join(format!("{program}.rs"))).unwrap();
            assert!(text.contains(&format!("fn {test}(")), "{program}: {test}");
        }
    }
}
