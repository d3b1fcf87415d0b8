//! Vectors from the equations, checked by their makers against autograd and, for the forward pass with
//! GELU, against a third-party implementation. `ATTN_GOLDEN_DIR` adds a folder of more.

mod layers;
mod memory;

use std::path::PathBuf;

use attn_core::Result;
use attn_core::testing::golden::{self, GoldenFile};
use attn_titans::{Activation, Config};
use ndarray::{Array, Dimension};

/// Tolerances relative to the largest element, for files of anybody's. Those of this crate were made in f64
/// and rounded to f32, which is all that they may differ by.
const OUT: f64 = 2e-5;
const GRAD: f64 = 1e-4;
const ROUNDING: f64 = 1e-7;

#[test]
fn titans() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let files = golden::files(&folder, "titans").unwrap();
    assert!(files.iter().any(|file| file.shipped), "no file in {}", folder.display());
    for file in files {
        println!("{}", file.path().display());
        match file.kind() {
            Some("neural_memory") => memory::check(&file).unwrap(),
            Some("memory" | "mac" | "mag" | "mal") => layers::check(&file).unwrap(),
            kind => panic!("{}: of no known kind, {kind:?}", file.path().display()),
        }
    }
}

/// What all kinds of files say about their memories.
fn config(file: &GoldenFile, heads: usize, dims: [usize; 2], chunk: &str, depth: &str) -> Config {
    let text = |key: &str| file.config()[key].as_str().unwrap_or("none");
    let number = |key: &str| file.number(key).unwrap();
    let mut config = match number(depth) as usize {
        1 => Config::linear(heads, dims[0]),
        2 => Config::deep(heads, dims[0], number("Dh") as usize),
        depth => panic!("depth {depth}"),
    };
    config.dim_v = dims[1];
    config.activation = match text("activation") {
        "silu" => Activation::Silu,
        "gelu_erf" => Activation::Gelu,
        other => panic!("activation {other}"),
    };
    config.coefficient = number("grad_coef");
    config.chunk = number(chunk) as usize;
    config
}

fn read<D: Dimension>(file: &GoldenFile, name: &str) -> Result<Array<f64, D>> {
    Ok(file.f64(name)?.into_dimensionality().unwrap())
}

fn close<D: Dimension>(file: &GoldenFile, name: &str, got: &Array<f64, D>, bound: f64) {
    close_in_f32(file, name, got, if file.shipped { ROUNDING } else { bound });
}

/// The same for what was not computed in f64.
fn close_in_f32<D: Dimension>(file: &GoldenFile, name: &str, got: &Array<f64, D>, bound: f64) {
    let want = file.f64(name).unwrap();
    assert_eq!(got.shape(), want.shape(), "{name}");
    let largest = want.iter().fold(f64::MIN_POSITIVE, |largest, x| largest.max(x.abs()));
    let error = |(a, b): (&f64, &f64)| match (a - b).abs() {
        error if error.is_finite() => error / largest,
        _ => f64::INFINITY,
    };
    let worst = got.iter().zip(&want).map(error).fold(0.0, f64::max);
    println!("  {name}: {worst:.1e}");
    assert!(worst <= bound, "{name}: {worst:e} above {bound:e}");
}
