//! Vectors from the authors' code and from the paper's equations. `ATTN_GOLDEN_DIR` adds a folder of
//! more.

use std::path::PathBuf;

use attn_core::Result;
use attn_core::plan::Entries;
use attn_core::testing::golden::{self, GoldenFile};
use attn_flexprefill::reference::{Head, Inputs, Selection, forward};
use attn_flexprefill::{BudgetRule, Config, FlexPrefill, Tensor};
use attn_wgpu::testing::gpu;
use ndarray::{Array4, Ix4};

/// Tolerances of the specification in f32 (absolute): integers exact.
const MASS: f64 = 1e-5;
const DIVERGENCE: f64 = 2e-4;
const OUT: f64 = 2e-5;

#[test]
fn flexprefill() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let files = golden::files(&folder, "flexprefill").unwrap();
    assert!(files.iter().any(|file| file.shipped), "no file in {}", folder.display());
    for file in files {
        let known = file.has(&["q", "k", "v", "v_tok", "s_tok", "djs", "row_ptr", "col", "out"]);
        assert!(known, "{}: of no known kind", file.path().display());
        println!("{}", file.path().display());
        check(&file).unwrap();
    }
}

fn config(file: &GoldenFile) -> Config {
    let number = |key: &str| file.number(key).unwrap();
    let optional = |key: &str| file.config()[key].as_u64().map(|number| number as usize);
    let mut config = Config::new()
        .with_block(number("block") as usize)
        .with_gamma(number("gamma"))
        .with_tau(number("tau"))
        .with_budget(optional("min_budget"), optional("max_budget"))
        .with_scale(number("scale"));
    config.line_divisor = optional("line_divisor");
    config.slash_both = file.config()["slash_both"].as_bool().unwrap();
    config.budget_rule = match file.config()["budget_rule"].as_str().unwrap() {
        "tokens_div" => BudgetRule::TokensDiv,
        "block_cover" => BudgetRule::BlockCover,
        other => panic!("budget rule {other}"),
    };
    config
}

fn close(what: &str, got: impl IntoIterator<Item = f64>, want: &[f64], bound: f64) {
    let got: Vec<f64> = got.into_iter().collect();
    assert_eq!(got.len(), want.len(), "{what}");
    let off = |(got, want): (&f64, &f64)| if got == want { 0.0 } else { (got - want).abs() };
    let worst = got.iter().zip(want).map(off).fold(0.0, f64::max);
    assert!(worst <= bound, "{what}: {worst:e} above {bound:e}");
    println!("  {what}: {worst:.1e}");
}

fn check(file: &GoldenFile) -> Result<()> {
    let config = config(file);
    let read =
        |name| -> Result<Array4<f64>> { Ok(file.f64(name)?.into_dimensionality::<Ix4>().unwrap()) };
    let [q, k, v] = [read("q")?, read("k")?, read("v")?];
    let inputs = Inputs::new(q.view(), k.view(), v.view());
    let (output, selection) = forward(inputs, &config)?;

    let heads = &selection.heads;
    type Mass = fn(&Head) -> &Vec<f64>;
    let masses: [(&str, Mass); 5] = [
        ("v_tok", |head| &head.columns),
        ("s_tok", |head| &head.distances),
        ("v_blk", |head| &head.column_blocks),
        ("s_blk", |head| &head.distance_blocks),
        ("abar", |head| &head.pooled),
    ];
    for (name, mass) in masses {
        let want: Vec<f64> = file.f64(name)?.iter().copied().collect();
        close(name, heads.iter().flat_map(mass).copied(), &want, MASS);
    }
    let want: Vec<f64> = file.f64("djs")?.iter().copied().collect();
    close("djs", heads.iter().map(|head| head.divergence), &want, DIVERGENCE);
    type Number = fn(&Head) -> usize;
    let numbers: [(&str, Number); 5] = [
        ("query_aware", |head| usize::from(head.query_aware)),
        ("cover_v", |head| head.covers[0]),
        ("cover_s", |head| head.covers[1]),
        ("n_v", |head| head.lines[0]),
        ("n_s", |head| head.lines[1]),
    ];
    for (name, number) in numbers {
        let want: Vec<usize> = file.i32(name)?.iter().map(|&number| number as usize).collect();
        assert_eq!(heads.iter().map(number).collect::<Vec<_>>(), want, "{name}");
    }

    selection.plan.validate()?;
    let Entries::Bits { words, .. } = &selection.plan.parts[0].entries else { unreachable!() };
    let row_ptr: Vec<usize> = file.i32("row_ptr")?.iter().map(|&at| at as usize).collect();
    let want: Vec<usize> = file.i32("col")?.iter().map(|&column| column as usize).collect();
    let per_row = words.len() / (row_ptr.len() - 1);
    for (row, words) in words.chunks(per_row).enumerate() {
        let is_on = |column: &usize| words[column / 32] >> (column % 32) & 1 == 1;
        let got: Vec<usize> = (0..32 * per_row).filter(is_on).collect();
        assert_eq!(got, want[row_ptr[row]..row_ptr[row + 1]], "blocks of row {row}");
    }

    let want: Vec<f64> = file.f64("out")?.iter().copied().collect();
    close("out", output.out.iter().copied(), &want, OUT);
    let want: Vec<f64> = file.lse("lse")?.iter().copied().collect();
    close("lse", output.lse.iter().copied(), &want, OUT);
    on_the_device(file, &config, &selection)
}

/// The same on a device: decisions and blocks exactly, numbers within the tolerances.
fn on_the_device(file: &GoldenFile, config: &Config, expected: &Selection) -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    let upload = |name| -> Result<Tensor> {
        let data = file.f32(name)?;
        Ok(Tensor::from_array(&gpu, &data.view()).unwrap())
    };
    let (q, k, v) = (upload("q")?, upload("k")?, upload("v")?);
    let method = FlexPrefill::new(&gpu, config.clone()).unwrap();
    let output = method.forward(attn_flexprefill::Inputs::new(&q, &k, &v)).unwrap();
    let heads = output.selection.heads.as_ref().unwrap().read().unwrap();
    assert_eq!(heads.len(), expected.heads.len());
    for (got, want) in heads.iter().zip(&expected.heads) {
        assert_eq!((got.query_aware, got.lines), (want.query_aware, want.lines));
        assert!((f64::from(got.divergence) - want.divergence).abs() <= DIVERGENCE);
    }
    assert_eq!(output.selection.download().unwrap(), expected.plan);
    let floats = |tensor: &Tensor| tensor.to_vec::<f32>().unwrap().into_iter().map(f64::from);
    let want: Vec<f64> = file.f64("out")?.iter().copied().collect();
    close("out on the device", floats(&output.out), &want, OUT);
    let want: Vec<f64> = file.lse("lse")?.iter().copied().collect();
    close("lse on the device", floats(&output.lse), &want, OUT);
    Ok(())
}
