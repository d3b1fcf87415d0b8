//! Vectors from files: the masks and attention of the Long-Context Attention Benchmark, and heads
//! of a real model. `ATTN_GOLDEN_DIR` adds a folder of more.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use attn_core::dense::{self, Config, Cotangents, Inputs};
use attn_core::ndarray::{Array3, Array4, ArrayD, Axis, Ix2, Ix3, Ix4};
use attn_core::plan::{self, PlanShape, Share, SparsePlan};
use attn_core::testing::golden::{self, GoldenFile, mask_from_config};
use attn_core::{BitMask, Lengths, Mask, Result};

/// Tolerances of the specification of longca-bench ("Tolerance f32: out 1e-5, lse 1e-5, gradients
/// 5e-5, integers exact").
const OUT: f64 = 1e-5;
const LSE: f64 = 1e-5;
const GRAD: f64 = 5e-5;

/// The specification of the SmolLM2 files gives 1e-4 for attention in f32. Their outputs came from
/// the rounded inputs in f64 and were stored in f32, so that an f64 reference has to do better.
const REAL_HEAD: f64 = 1e-6;

type Check = fn(&GoldenFile) -> Result<()>;

#[test]
fn longca_bench() {
    run("longca-bench", |file| match file.kind() {
        None if file.contains("areas") => Some(masks as Check),
        None if file.contains("block_mask") => Some(block_sparse as Check),
        None if file.has(&["q", "k", "v", "dout", "out", "lse", "dq", "dk", "dv"]) => {
            Some(attention as Check)
        }
        _ => None,
    });
}

#[test]
fn smollm2() {
    run("smollm2", |file| match file.kind() {
        None if file.has(&["q", "k", "v", "rows", "out_rows", "out_mean"]) => {
            Some(real_head as Check)
        }
        // The folder also holds logits and statistics of the whole model, for the model runner.
        None if !file.shipped && !file.contains("q") => Some(not_ours as Check),
        _ => None,
    });
}

/// Checks every file of `paper` and prints its name. A file of no known kind fails.
fn run(paper: &str, check_of: impl Fn(&GoldenFile) -> Option<Check>) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(paper);
    let files = golden::files(&folder, paper).unwrap();
    assert!(files.iter().any(|file| file.shipped), "no file in {}", folder.display());
    for file in files {
        let Some(check) = check_of(&file) else {
            panic!(
                "{}: of no known kind: {:?}",
                file.path().display(),
                file.names().collect::<Vec<_>>()
            )
        };
        println!("{}", file.path().display());
        check(&file).unwrap();
    }
}

fn not_ours(_: &GoldenFile) -> Result<()> {
    println!("  skipped: not a matter of this crate (output of a whole model)");
    Ok(())
}

/// `mask_<name>` `[N, N]`, `slices_<name>` `[m, 5]`, `areas` in the order of `config.order`.
fn masks(file: &GoldenFile) -> Result<()> {
    let order: Vec<&str> =
        file.config()["order"].as_array().unwrap().iter().map(|x| x.as_str().unwrap()).collect();
    let areas = file.i32("areas")?;
    assert_eq!(order.len(), areas.len());
    for (name, &area) in order.iter().zip(&areas) {
        let want = file.u8(&format!("mask_{name}"))?.into_dimensionality::<Ix2>().unwrap();
        let slices = file.i32(&format!("slices_{name}"))?.into_dimensionality::<Ix2>().unwrap();
        let mask = mask_from_config(name, file.config())?;
        let (queries, keys) = want.dim();
        let lengths = Lengths::new(queries, keys);
        mask.validate(lengths)?;
        for ((i, t), &allowed) in want.indexed_iter() {
            assert_eq!(mask.allows(lengths, i, t), allowed != 0, "{name}: allows({i}, {t})");
            assert_eq!(mask.row(lengths, i).contains(t), allowed != 0, "{name}: row({i}), key {t}");
            let covers =
                slices.rows().into_iter().filter(|s| in_slice(s.as_slice().unwrap(), i, t));
            assert_eq!(covers.count(), usize::from(allowed), "{name}: slices at ({i}, {t})");
        }
        assert_eq!(mask.pairs(lengths), area as u64, "{name}: area");
        let bits = Mask::Bits(BitMask::from_fn(queries, keys, |i, t| want[[i, t]] != 0));
        bits.validate(lengths)?;
        assert_eq!(bits.pairs(lengths), area as u64, "{name}: area of bits");
        for i in 0..queries {
            assert!(bits.keys(lengths, i).eq(mask.keys(lengths, i)), "{name}: bits of row {i}");
        }
        println!("  {name}: {area} pairs");
    }
    Ok(())
}

/// Whether pair (i, t) is in the slice `[q0, q1, k0, k1, type]`: type 0 all, 1 causal and aligned at
/// the bottom right, 2 inverse causal and aligned at the top left, 3 both.
fn in_slice(slice: &[i32], i: usize, t: usize) -> bool {
    let [q0, q1, k0, k1, kind] = slice.try_into().unwrap();
    let (i, t) = (i as i32, t as i32);
    let (a, b) = (i - q0, t - k0);
    let causal = b - ((k1 - k0) - (q1 - q0)) <= a;
    let inverse = b >= a;
    (q0..q1).contains(&i)
        && (k0..k1).contains(&t)
        && match kind {
            0 => true,
            1 => causal,
            2 => inverse,
            3 => causal && inverse,
            _ => panic!("slice type {kind}"),
        }
}

/// `q [H, N, D]`, `k`, `v [KV, N, D]`, `dout`, `out`, `lse [H, N]`, `dq`, `dk`, `dv`, and in some
/// files the mask. The files of context parallelism (`cp_*`) hold the same beside their shards.
fn attention(file: &GoldenFile) -> Result<()> {
    let [q, k, v, d_out] = ["q", "k", "v", "dout"].map(|name| heads(file.f64(name).unwrap()));
    let config = Config::new().with_mask(file.mask()?).with_scale(file.number("scale")?);
    let inputs = Inputs::new(q.view(), k.view(), v.view());
    if file.contains("mask") {
        let want = file.u8("mask")?;
        let lengths = inputs.check()?.lengths();
        for i in 0..lengths.queries {
            for t in 0..lengths.keys {
                assert_eq!(config.mask.allows(lengths, i, t), want[[i, t]] != 0, "({i}, {t})");
            }
        }
    }
    let output = dense::forward(inputs, &config)?;
    let grads =
        dense::backward(inputs, &config, &output, Cotangents { out: d_out.view(), lse: None })?;
    let lse: Array3<f64> =
        file.lse("lse")?.insert_axis(Axis(0)).into_dimensionality::<Ix3>().unwrap();
    close("lse", output.lse.iter(), lse.iter(), LSE);
    close("out", output.out.iter(), heads(file.f64("out")?).iter(), OUT);
    close("dq", grads.dq.iter(), heads(file.f64("dq")?).iter(), GRAD);
    close("dk", grads.dk.iter(), heads(file.f64("dk")?).iter(), GRAD);
    close("dv", grads.dv.iter(), heads(file.f64("dv")?).iter(), GRAD);
    Ok(())
}

/// `q [H, N, D]`, `k`, `v [KV, N, D]`, `block_mask [KV, nq, nk]` between `row_offsets [KV, nq + 1]` and
/// `col_offsets [KV, nk + 1]`, `scores` and `topk_index` behind it, `density [KV]`, `out`, `lse`, and
/// where the file has them `dout`, `dq`, `dk`, `dv`.
fn block_sparse(file: &GoldenFile) -> Result<()> {
    let [q, k, v] = ["q", "k", "v"].map(|name| heads(file.f64(name).unwrap()));
    let inputs = Inputs::new(q.view(), k.view(), v.view());
    let shape = inputs.check()?;
    let blocks = file.u8("block_mask")?.into_dimensionality::<Ix3>().unwrap();
    let (planes, rows, cols) = blocks.dim();
    let offsets = |name| -> Vec<Vec<u32>> {
        let all = file.i32(name).unwrap();
        all.rows().into_iter().map(|row| row.iter().map(|&x| x as u32).collect()).collect()
    };
    let (row_offsets, col_offsets) = (offsets("row_offsets"), offsets("col_offsets"));
    let extents = PlanShape::from(&shape);
    let on = |plane, r, c| blocks[[plane, r, c]] != 0;
    let plan = SparsePlan::from_variable_blocks(
        extents,
        Share::PerKvHead,
        false,
        &row_offsets,
        &col_offsets,
        on,
    )?;
    plan.validate()?;

    let (scores, topk) = (file.f64("scores")?, file.i32("topk_index")?);
    for (plane, r) in (0..planes).flat_map(|plane| (0..rows).map(move |r| (plane, r))) {
        let mut best: Vec<usize> = (0..cols).collect();
        best.sort_by(|&a, &b| scores[[plane, r, b]].total_cmp(&scores[[plane, r, a]]));
        best.truncate(((file.number("keep")? * cols as f64) as usize).max(1));
        best.sort_unstable();
        let listed: BTreeSet<usize> =
            (0..topk.shape()[2]).map(|n| topk[[plane, r, n]] as usize).collect();
        assert!(listed.iter().eq(&best), "best blocks of ({plane}, {r})");
        assert!((0..cols).filter(|&c| on(plane, r, c)).eq(best), "blocks of ({plane}, {r})");
    }
    let (queries, keys) = (shape.queries, shape.keys);
    for (plane, density) in file.f64("density")?.iter().enumerate() {
        let mask = plan.to_dense_mask(0, plane * shape.group())?;
        let pairs: usize = (0..queries).map(|i| mask.count(i)).sum();
        let got = pairs as f64 / (queries * keys) as f64;
        assert!((got - density).abs() < 1e-6, "density {got}, expected {density}");
    }
    if file.config()["variable"] == false {
        let [bq, bk] = ["block_q", "block_k"].map(|name| file.number(name).unwrap() as u32);
        let row = |plane, r| (0..cols as u32).filter(move |&c| on(plane, r, c as usize));
        let (mut row_ptr, mut col) = (vec![0], Vec::new());
        for (plane, r) in (0..planes).flat_map(|plane| (0..rows).map(move |r| (plane, r))) {
            col.extend(row(plane, r));
            row_ptr.push(col.len() as u32);
        }
        let grid =
            SparsePlan::from_block_csr(extents, Share::PerKvHead, false, [bq, bk], row_ptr, col)?;
        for h in 0..shape.heads {
            assert_eq!(grid.to_dense_mask(0, h)?, plan.to_dense_mask(0, h)?);
        }
    }

    let config = Config::new().with_scale(file.number("scale")?);
    let output = plan::forward(inputs, &plan, &config)?;
    let lse = file.lse("lse")?.insert_axis(Axis(0)).into_dimensionality::<Ix3>().unwrap();
    close("lse", output.lse.iter(), lse.iter(), LSE);
    close("out", output.out.iter(), heads(file.f64("out")?).iter(), OUT);
    if file.contains("dout") {
        let d_out = heads(file.f64("dout")?);
        let cotangents = Cotangents { out: d_out.view(), lse: None };
        let grads = plan::backward(inputs, &plan, &config, cotangents)?;
        for (name, got) in [("dq", grads.dq), ("dk", grads.dk), ("dv", grads.dv)] {
            close(name, got.iter(), heads(file.f64(name)?).iter(), GRAD);
        }
    }
    Ok(())
}

/// `q`, `k`, `v` `[1, 1, N, D]` in f16, `out_rows` for the queries `rows`, `out_mean` over all.
fn real_head(file: &GoldenFile) -> Result<()> {
    let [q, k, v] =
        ["q", "k", "v"].map(|name| file.f64(name).unwrap().into_dimensionality::<Ix4>().unwrap());
    let mask = if file.config()["causal"] == true { Mask::Causal } else { Mask::Full };
    let config = Config::new().with_mask(mask).with_scale(file.number("scale")?);
    let inputs = Inputs::new(q.view(), k.view(), v.view());
    let rows: Vec<usize> = file.i32("rows")?.iter().map(|&row| row as usize).collect();
    let chosen = dense::forward_rows(inputs, &config, &rows)?;
    close("out_rows", chosen.out.iter(), file.f64("out_rows")?.iter(), REAL_HEAD);
    let all = dense::forward(inputs, &config)?;
    let mean = all.out.mean_axis(Axis(2)).unwrap();
    close("out_mean", mean.iter(), file.f64("out_mean")?.iter(), REAL_HEAD);
    Ok(())
}

fn heads(array: ArrayD<f64>) -> Array4<f64> {
    array.insert_axis(Axis(0)).into_dimensionality::<Ix4>().unwrap()
}

/// Empty rows must be -inf on both sides; everything else within `tolerance`.
fn close<'a>(
    what: &str,
    got: impl ExactSizeIterator<Item = &'a f64>,
    want: impl ExactSizeIterator<Item = &'a f64>,
    tolerance: f64,
) {
    assert_eq!(got.len(), want.len(), "{what}");
    let mut worst = 0.0_f64;
    for (index, (&got, &want)) in got.zip(want).enumerate() {
        if got != want {
            assert!((got - want).abs() <= tolerance, "{what} at {index}: {got}, expected {want}");
            worst = worst.max((got - want).abs());
        }
    }
    println!("  {what}: within {worst:.1e}");
}

/// The same window of seven keys, as every convention writes it.
#[test]
fn window_conventions() {
    let lengths = Lengths::new(40, 40);
    let ours = Mask::Window { left: 6, right: 0 };
    let hugging_face_window = 7;
    let plan_near_window = 7;
    let max_dist = 6;
    let longca_w = 6;
    let longca = mask_from_config("sliding_window_causal", &serde_json::json!({ "w": longca_w }));
    for (i, t) in (0..40).flat_map(|i| (0..40).map(move |t| (i, t))) {
        let allowed = ours.allows(lengths, i, t);
        assert_eq!(allowed, t <= i && i - t < hugging_face_window, "({i}, {t})");
        assert_eq!(allowed, t <= i && i < t + plan_near_window, "({i}, {t})");
        assert_eq!(allowed, t <= i && i - t <= max_dist, "({i}, {t})");
        assert_eq!(allowed, longca.as_ref().unwrap().allows(lengths, i, t), "({i}, {t})");
    }
    let both = mask_from_config("sliding_window", &serde_json::json!({ "window": longca_w }));
    assert_eq!(both, Ok(Mask::Window { left: 6, right: 6 }));
}

#[test]
fn a_mask_that_lacks_parameters_is_an_error() {
    let none = serde_json::json!({});
    for name in
        ["sliding_window", "causal_document", "prefix_lm_causal", "global_sliding_window", "new"]
    {
        assert!(mask_from_config(name, &none).is_err(), "{name}");
    }
    let odd = serde_json::json!({ "cu": [0, -1], "w": 1.5 });
    assert!(mask_from_config("causal_document", &odd).is_err());
    assert!(mask_from_config("sliding_window", &odd).is_err());
    assert!(golden::files(Path::new("no such folder"), "none").is_err());
}
