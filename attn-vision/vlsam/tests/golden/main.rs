//! Vectors from the paper's equations; there is no official code. `ATTN_GOLDEN_DIR` adds a folder of more.

mod flow;

use std::path::PathBuf;

use attn_core::testing::golden;

#[test]
fn vlsam() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let files = golden::files(&folder, "vlsam").unwrap();
    assert!(files.iter().any(|file| file.shipped), "no file in {}", folder.display());
    for file in files {
        println!("{}", file.path().display());
        match () {
            () if file.has(&flow::TENSORS) => flow::check(&file).unwrap(),
            () => panic!("{}: of no known kind", file.path().display()),
        }
    }
}
