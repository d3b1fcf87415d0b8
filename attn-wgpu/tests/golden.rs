//! Vectors from files: the masked attention and gradients of the Long-Context Attention Benchmark, and heads of a
//! real model. `ATTN_GOLDEN_DIR` adds a folder of more.

mod common;

use std::path::Path;

use attn_core::dense::Config;
use attn_core::ndarray::Axis;
use attn_core::plan::{PlanShape, Share, SparsePlan};
use attn_core::testing::golden::{self, GoldenFile};
use attn_core::testing::{HostInputs, compare};
use attn_core::{AttentionShape, BitMask, Mask};
use attn_wgpu::Gpu;
use common::{Result32, attend, gpu, gradients, judge, plans};

/// longca-bench: "Tolerance f32: out 1e-5, lse 1e-5, gradients 5e-5".
const OUT: f64 = 1e-5;
const LSE: f64 = 1e-5;
const GRAD: f64 = 5e-5;
/// The files of SmolLM2: "attention 1e-4".
const REAL_HEAD: f64 = 1e-4;

fn run(paper: &str, check: impl Fn(&GoldenFile) -> bool) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(paper);
    let files = golden::files(&folder, paper).unwrap();
    assert!(files.iter().any(|file| file.shipped), "no file in {}", folder.display());
    for file in files {
        let known = check(&file);
        let name = file.path().display();
        assert!(known || !file.shipped, "{name}: of no known kind");
        println!("{name}{}", if known { "" } else { ": skipped, not a matter of this crate" });
    }
}

fn vector(file: &GoldenFile, name: &str) -> Vec<f32> {
    file.f32(name).unwrap().into_raw_vec_and_offset().0
}

/// `q`, `k`, `v` without the batch dimension, or with it.
fn inputs(file: &GoldenFile) -> HostInputs {
    let shape = |name| {
        let shape = file.shape(name).unwrap();
        if shape.len() == 3 { [&[1], shape].concat() } else { shape.to_vec() }
    };
    HostInputs {
        shape: AttentionShape::from_shapes(&shape("q"), &shape("k"), &shape("v")).unwrap(),
        q: vector(file, "q"),
        k: vector(file, "k"),
        v: vector(file, "v"),
        sinks: None,
    }
}

#[test]
fn longca_bench() {
    let Some(gpu) = gpu() else { return };
    run("longca-bench", |file| {
        if file.contains("block_mask") {
            return block_sparse(&gpu, file);
        }
        if !file.has(&["q", "k", "v", "out", "lse"]) {
            // Masks alone have a test of their own.
            return file.contains("areas");
        }
        let inputs = inputs(file);
        let scale = file.number("scale").unwrap();
        let config = Config::new().with_mask(file.mask().unwrap()).with_scale(scale);
        let got = attend(&gpu, &inputs, &config).unwrap();
        let want: Vec<f64> = file.f64("out").unwrap().iter().copied().collect();
        let want_lse: Vec<f64> = file.lse("lse").unwrap().iter().copied().collect();
        let (out, lse) = (compare(&got.out, &want), compare(&got.lse, &want_lse));
        assert!(out.max_abs <= OUT && lse.max_abs <= LSE, "{}: {out:?} {lse:?}", file.name);
        if file.has(&["dout", "dq", "dk", "dv"]) {
            let got = gradients(&gpu, &inputs, &config, &vector(file, "dout"), None).unwrap();
            for (name, got) in [("dq", &got.dq), ("dk", &got.dk), ("dv", &got.dv)] {
                let want: Vec<f64> = file.f64(name).unwrap().iter().copied().collect();
                let errors = compare(got, &want);
                assert!(errors.max_abs <= GRAD, "{} {name}: {errors:?}", file.name);
            }
        }
        true
    });
}

/// `block_mask [KV, nq, nk]` between `row_offsets [KV, nq + 1]` and `col_offsets [KV, nk + 1]`.
fn block_sparse(gpu: &Gpu, file: &GoldenFile) -> bool {
    let inputs = inputs(file);
    let on = file.u8("block_mask").unwrap();
    let offsets = |name| -> Vec<Vec<u32>> {
        let all = file.i32(name).unwrap();
        all.rows().into_iter().map(|row| row.iter().map(|&x| x as u32).collect()).collect()
    };
    let plan = SparsePlan::from_variable_blocks(
        PlanShape::from(&inputs.shape),
        Share::PerKvHead,
        false,
        &offsets("row_offsets"),
        &offsets("col_offsets"),
        |plane, row, col| on[[plane, row, col]] != 0,
    )
    .unwrap();
    let config = Config::new().with_scale(file.number("scale").unwrap());
    let got = plans::run(gpu, &inputs, &plan, &config);
    plans::judge(&inputs, &plan, &config, &got).unwrap();
    let want: Vec<f64> = file.f64("out").unwrap().iter().copied().collect();
    let want_lse: Vec<f64> = file.lse("lse").unwrap().iter().copied().collect();
    let (out, lse) = (compare(&got.out, &want), compare(&got.lse, &want_lse));
    assert!(out.max_abs <= OUT && lse.max_abs <= LSE, "{}: {out:?} {lse:?}", file.name);
    true
}

/// The masks themselves, as explicit bits: with equal logits, every allowed key has the same weight.
#[test]
fn masks_of_longca_bench() {
    let Some(gpu) = gpu() else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/longca-bench");
    for file in golden::files(&folder, "longca-bench").unwrap() {
        let Some(order) = file.config()["order"].as_array().filter(|_| file.contains("areas"))
        else {
            continue;
        };
        println!("{}", file.path().display());
        let n = file.number("N").unwrap() as usize;
        for name in order.iter().map(|name| name.as_str().unwrap()) {
            let mask = golden::mask_from_config(name, file.config()).unwrap();
            let allowed = file.u8(&format!("mask_{name}")).unwrap();
            let bits = BitMask::from_fn(n, n, |query, key| allowed[[query, key]] != 0);
            // Values are unit vectors, so that the output is the row of weights.
            let shape = common::shape([1, 1, 1, n, n, 4, n]);
            let unit = |i: usize| f32::from(u8::from(i.is_multiple_of(n + 1)));
            let inputs = HostInputs {
                shape,
                q: vec![0.0; n * 4],
                k: vec![0.0; n * 4],
                v: (0..n * n).map(unit).collect(),
                sinks: None,
            };
            for mask in [mask, Mask::Bits(bits.clone())] {
                let got = attend(&gpu, &inputs, &Config::new().with_mask(mask)).unwrap().out;
                for query in 0..n {
                    let weight = 1.0 / bits.count(query).max(1) as f32;
                    for key in 0..n {
                        let want = if bits.get(query, key) { weight } else { 0.0 };
                        let error = (got[query * n + key] - want).abs();
                        assert!(error <= 1e-6, "{name} {query} {key}");
                    }
                }
            }
        }
    }
}

#[test]
fn smollm2() {
    let Some(gpu) = gpu() else { return };
    run("smollm2", |file| {
        if !file.has(&["q", "k", "v", "rows", "out_rows", "out_mean"]) {
            return false;
        }
        let inputs = inputs(file);
        let scale = file.number("scale").unwrap();
        let config = Config::new().with_mask(Mask::Causal).with_scale(scale);
        let got = attend(&gpu, &inputs, &config).unwrap();
        judge(&file.name, &inputs, &config, &got).unwrap();

        let Result32 { out, .. } = got;
        let dim = inputs.shape.dim_v;
        let rows = file.i32("rows").unwrap();
        let chosen: Vec<f32> =
            rows.iter().flat_map(|&row| &out[row as usize * dim..][..dim]).copied().collect();
        let want: Vec<f64> = file.f64("out_rows").unwrap().iter().copied().collect();
        let errors = compare(&chosen, &want);
        assert!(errors.max_abs <= REAL_HEAD, "{}: {errors:?}", file.name);

        let all = attn_core::ndarray::Array2::from_shape_vec((out.len() / dim, dim), out).unwrap();
        let mean = all.mapv(f64::from).mean_axis(Axis(0)).unwrap();
        let mean: Vec<f32> = mean.iter().map(|&x| x as f32).collect();
        let want: Vec<f64> = file.f64("out_mean").unwrap().iter().copied().collect();
        let errors = compare(&mean, &want);
        assert!(errors.max_abs <= REAL_HEAD, "{}: {errors:?}", file.name);
        true
    });
}

/// Blocks of GGUF files: "must match to the last bit or 1 ulp".
#[test]
fn packed_blocks() {
    use attn_wgpu::packed::{BlockType, Packed};
    let Some(gpu) = gpu() else { return };
    let kinds = [BlockType::Q4_0, BlockType::Q4_1, BlockType::Q8_0, BlockType::Q4K, BlockType::Q6K];
    run("gguf", |file| {
        for kind in kinds {
            let bytes = file.u8(&format!("{}.bytes", kind.name())).unwrap();
            let (rows, (width, _)) = (bytes.shape()[0], kind.block());
            let blocks = bytes.into_raw_vec_and_offset().0;
            let packed = Packed::from_blocks(&gpu, kind, rows, width, &blocks).unwrap();
            let got = packed.dequantize().unwrap().to_vec::<f32>().unwrap();
            let want = vector(file, &format!("{}.values", kind.name()));
            assert_eq!(got.len(), want.len());
            for (got, want) in got.into_iter().zip(want) {
                let apart = i64::from(got.to_bits()) - i64::from(want.to_bits());
                assert!(apart.abs() <= 1 || got == want, "{kind:?}: {got:e}, expected {want:e}");
            }
        }
        true
    });
}
