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
        if file.has(&flow::TENSORS) {
            flow::check(&file).unwrap();
            continue;
        }
        // What comes behind the map is held by `tests/prompt.rs`.
        let prompts = file.has(&["map", "object_ids", "steps"]);
        let merges = file.has(&["source", "keep_agnostic", "keep_per_class"]);
        assert!(prompts || merges, "{}: of no known kind", file.path().display());
    }
}
