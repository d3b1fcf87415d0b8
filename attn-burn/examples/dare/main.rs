//! Clicks from long histories with DARE: one set of embedding tables for search and representation (TWIN), two
//! sets, and tables that search of half and of a quarter of the width. Prints areas under the curve over several
//! seeds, each at the epoch that was best on validation events, which lie before those of testing. The first steps
//! are repeated with the definition in burn's own operations.
//!
//! `cargo xtask data fetch movielens --accept-terms` fetches MovieLens 100K.
//!
//! `cargo run -p attn-burn --example attn-burn-dare -- [movielens | synthetic | insteval FILE] [epochs] [seeds]`

mod plain;
mod train;

use std::time::Instant;

use attn_burn::attn_dare::data::{self, Dataset, Synthetic};

use train::{Apart, Failure, Kind, apart, train};

/// Of the data; models have others.
const SEED: u64 = 1;
/// Behaviours of a history.
const HISTORY: usize = 50;
/// Steps that are repeated by definition.
const COMPARED: usize = 20;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (mut rest, name) = (args.iter().skip(1), args.first().map_or("synthetic", String::as_str));
    let set = match name {
        "movielens" => {
            let cache = attn_model::cache_dir().ok_or("no cache folder: HOME is not set")?;
            let folder = cache.join("movielens");
            if !folder.is_dir() {
                return Err("`cargo xtask data fetch movielens` gets MovieLens 100K".into());
            }
            data::movielens(folder, HISTORY, SEED)?
        }
        "insteval" => data::insteval(rest.next().ok_or("insteval needs a file")?, HISTORY)?,
        "synthetic" => data::synthetic(&Synthetic::new(SEED))?,
        other => return Err(format!("there are no data `{other}`").into()),
    };
    let mut number = |default: usize| -> Result<usize, Failure> {
        Ok(rest.next().map_or(Ok(default), |text| text.parse())?)
    };
    let (epochs, seeds) = (number(3)?, number(3)?);
    compare(name, &set, epochs, seeds)
}

fn compare(name: &str, set: &Dataset, epochs: usize, seeds: usize) -> Result<(), Failure> {
    let Dataset { items, categories, .. } = *set;
    println!(
        "{name}: {} users, {items} items, {categories} categories; {} samples, {} of validation, {} of testing",
        set.users.len(),
        set.train.len(),
        set.valid.len(),
        set.test.len()
    );
    let device = attn_burn::device()?.autodiff();
    println!("| tables | seed | epoch | validation | test | seconds |");
    println!("|---|---:|---:|---:|---:|---:|");
    let kinds = [
        ("one, 16", Kind { tied: true, attention: 16 }),
        ("two, 16 and 16", Kind { tied: false, attention: 16 }),
        ("two, 8 and 16", Kind { tied: false, attention: 8 }),
        ("two, 4 and 16", Kind { tied: false, attention: 4 }),
    ];
    let mut rows = kinds.map(|(label, kind)| (label, kind.bytes(set), Vec::new()));
    // All kinds of one seed before the next: a run that is stopped leaves something to compare.
    for seed in 1..=seeds as u64 {
        for ((label, kind), (.., tests)) in kinds.iter().zip(&mut rows) {
            let start = Instant::now();
            let best = train(*kind, set, &device, seed, epochs)?;
            println!(
                "| {label} | {seed} | {} | {:.4} | {:.4} | {:.0} |",
                best.epoch,
                best.valid,
                best.test,
                start.elapsed().as_secs_f64()
            );
            tests.push(best.test);
        }
    }
    println!("\n| tables | KiB | test AUC, mean of {seeds} | deviation | minus one table |");
    println!("|---|---:|---:|---:|---:|");
    let mean = |tests: &[f64]| tests.iter().sum::<f64>() / tests.len().max(1) as f64;
    let one = mean(&rows[0].2);
    for (label, bytes, tests) in &rows {
        let own = mean(tests);
        let squares: f64 = tests.iter().map(|test| (test - own).powi(2)).sum();
        let deviation = (squares / tests.len().saturating_sub(1).max(1) as f64).sqrt();
        let (kib, more) = (bytes / 1024, own - one);
        println!("| {label} | {kib} | {own:.4} | {deviation:.4} | {more:+.4} |");
    }
    for tied in [true, false] {
        let kind = Kind { tied, attention: 16 };
        let Apart { defined, nudged, others } = apart(kind, set, &device, 1, COMPARED)?;
        let label = if tied { "one table" } else { "two tables" };
        println!("{label}: first {COMPARED} losses by definition within {defined:.1e} of them,");
        println!("  those from tables that are a rounding away within {nudged:.1e};");
        println!("  the definition would keep others of {others} requests");
    }
    Ok(())
}
