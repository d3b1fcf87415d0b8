//! Another text for one kernel file by `ATTN_MUTANT`, which exists under the feature `bench` only.
#![cfg(feature = "bench")]

mod common;

use std::path::Path;
use std::process::Command;

use attn_wgpu::{Constants, KernelSource, Tensor, expand};

const SOURCE: KernelSource = KernelSource {
    name: "outer",
    text: "#import \"inner\"\nconst OUTER = 1u;\n",
    imports: &[("inner", "const INNER = 1u;\n")],
};

/// What the process that runs this test makes of the source; the test below starts such processes.
#[test]
fn expanded_text() {
    match expand(&SOURCE, &Constants::new(), false) {
        Ok(text) => println!("<{}>", text.replace('\n', " ")),
        Err(message) => println!("<{message}>"),
    }
}

/// This program as it was started: through a loader with a path of its own, if that was so.
fn program() -> Command {
    let own = std::env::args().next().unwrap();
    let line = std::fs::read_to_string("/proc/self/cmdline").unwrap_or_default();
    let mut words: Vec<&str> = line.split('\0').take_while(|word| *word != own).collect();
    if words.len() == line.split('\0').count() {
        // Not told on this system.
        words.clear();
    }
    words.push(&own);
    let mut program = Command::new(words[0]);
    program.args(&words[1..]);
    program
}

fn child(test: &str, mutant: Option<&Path>) -> Command {
    let mut child = program();
    child.args(["--exact", test, "--nocapture"]).env_remove("ATTN_MUTANT");
    child.envs(mutant.map(|path| ("ATTN_MUTANT", path)));
    child
}

fn expanded_with(mutant: Option<&Path>) -> String {
    let output = child("expanded_text", mutant).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let (_, rest) = output.split_once('<').unwrap();
    rest.split_once('>').unwrap().0.to_string()
}

#[test]
fn one_text_is_replaced_and_only_on_request() {
    let folder = std::env::temp_dir().join(format!("attn-mutant-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let plain = "const INNER = 1u; const OUTER = 1u; ";
    assert_eq!(expanded_with(None), plain);
    let other = file("other.wgsl", "const OTHER = 2u;\n");
    assert_eq!(expanded_with(Some(&other)), plain);
    let inner = file("inner.wgsl", "const INNER = 2u;\n");
    assert_eq!(expanded_with(Some(&inner)), "const INNER = 2u; const OUTER = 1u; ");
    let outer = file("outer.wgsl", "const OUTER = 2u;\n");
    assert_eq!(expanded_with(Some(&outer)), "const OUTER = 2u; ");
    let missing = expanded_with(Some(&folder.join("none.wgsl")));
    assert!(missing.starts_with("ATTN_MUTANT=") && missing.contains("none.wgsl: "), "{missing}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// A fill of whole workgroups; the test below runs it with broken kernels.
#[test]
fn fill() {
    let Some(gpu) = common::gpu() else { return };
    let filled = Tensor::full(&gpu, &[5_120], 3f32).unwrap();
    assert_eq!(filled.to_vec::<f32>().unwrap(), [3.0; 5_120]);
}

#[test]
fn a_broken_kernel_turns_a_test_red() {
    if common::gpu().is_none() {
        return;
    }
    let kernel = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/fill.wgsl");
    let text = std::fs::read_to_string(&kernel).unwrap();
    let folder = std::env::temp_dir().join(format!("attn-broken-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let broken = folder.join("fill.wgsl");
    let green = |mutant| child("fill", mutant).output().unwrap().status.success();
    assert!(green(None) && green(Some(&kernel)));
    for (right, wrong) in [
        ("index < params.count", "index + 1u < params.count"),
        ("i < ITEMS", "i + 1u < ITEMS"),
        ("i * WORKGROUP", "i + WORKGROUP"),
        ("+ lane", "- lane"),
        ("] = params.word", "] = params.count"),
    ] {
        assert!(text.contains(right), "{right}");
        std::fs::write(&broken, text.replace(right, wrong)).unwrap();
        assert!(!green(Some(&broken)), "{wrong}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}
