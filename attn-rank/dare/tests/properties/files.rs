//! Tables and heads in files.

use std::path::PathBuf;

use attn_core::ArrayFile;
use attn_dare::Tables;
use attn_dare::reference::{self, Head};
use attn_wgpu::testing::gpu;

use crate::support::{config, head, tables};

fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("attn-dare-{}-{name}.safetensors", std::process::id()))
}

#[test]
fn what_is_written_is_read() {
    let own = tables(1, [9, 4, 6], &config([3, 2, 1], [4, 2, 2], 3));
    let tied = reference::Tables::tied(own.attention.clone());
    for (name, tables) in [("apart", &own), ("tied", &tied)] {
        let path = path(name);
        tables.save(&path).unwrap();
        assert_eq!(&reference::Tables::load(&path).unwrap(), tables);
        if let Some(gpu) = gpu() {
            let on = Tables::load(&gpu, &path).unwrap();
            assert_eq!(on.is_tied(), name == "tied");
            assert_eq!(
                on.bytes(),
                4 * (9 * 3 + 4 * 2 + 6)
                    + if on.is_tied() { 0 } else { 4 * (9 * 4 + 4 * 2 + 6 * 2) }
            );
            on.save(&path).unwrap();
            // Numbers that f32 holds come back as they were.
            assert_eq!(&reference::Tables::load(&path).unwrap(), tables);
        }
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn heads_share_a_file() {
    let (main, auxiliary) = (head(1, &[6, 4, 3, 2]), head(2, &[6, 5, 2]));
    let path = path("heads");
    let file = auxiliary.write(main.write(ArrayFile::new("dare"), "main_mlp"), "auxiliary_mlp");
    file.write(&path).unwrap();
    let file = ArrayFile::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(Head::read(&file, "main_mlp").unwrap(), main);
    assert_eq!(Head::read(&file, "auxiliary_mlp").unwrap(), auxiliary);
    assert!(Head::read(&file, "other").unwrap_err().to_string().contains("other.0.weight"));
}
