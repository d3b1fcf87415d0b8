//! Another text for one kernel file by `ATTN_MUTANT`, which exists under the feature `bench` only.
#![cfg(feature = "bench")]

use std::path::Path;
use std::process::Command;

use attn_wgpu::{Constants, KernelSource, expand};

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

fn expanded_with(mutant: Option<&Path>) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "expanded_text", "--nocapture"]).env_remove("ATTN_MUTANT");
    child.envs(mutant.map(|path| ("ATTN_MUTANT", path)));
    let output = String::from_utf8(child.output().unwrap().stdout).unwrap();
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
