//! The kernels of sparse plans in the variants that devices get: every head size and number of rows,
//! and at one head size every kind of rows and entries, every choice of a call, and all at once.

use attn_core::Modifier;

use super::gradients::{KEYS, PLACES, QUERIES, SUMS};
use super::group_stats::STATS;
use super::listing::{LISTED, LISTING};
use super::merge::MERGE;
use super::round::{COST, DISPATCH, FORWARD, ITEMS, scan_lanes};
use crate::attention::params::{Form, storage};
use crate::attention::variant::Variant;
use crate::capabilities::Capabilities;
use crate::kernel::{Constants, KernelSource};
use crate::ops;
use crate::select::each_constants;
use crate::tensor::DType;

type Variants = Vec<(KernelSource, Constants, String)>;

/// Flags of the kinds of rows.
const ROWS: [&[&str]; 3] = [&["TILED"], &["LISTS"], &[]];

/// Flags of the kinds of entries; none for a near part alone.
const ENTRIES: [&[&str]; 5] = [
    &[],
    &["ENTRIES", "BLOCKS"],
    &["ENTRIES", "BLOCK_BITS"],
    &["ENTRIES", "SPANS"],
    &["ENTRIES", "TOKENS"],
];

/// The flags of a pass, with a near part and without.
fn passes() -> impl Iterator<Item = Vec<&'static str>> {
    let kinds = ROWS.iter().flat_map(|rows| ENTRIES.iter().map(move |entries| (rows, entries)));
    kinds.flat_map(|(rows, entries)| {
        let flags: Vec<_> = rows.iter().chain(entries.iter()).copied().collect();
        let mut with_near = flags.clone();
        with_near.push("NEAR");
        match (rows.first(), entries.first()) {
            (Some(&"TILED"), Some(_)) => vec![flags, with_near],
            (Some(&"TILED"), None) => vec![with_near],
            (_, None) => Vec::new(),
            _ => vec![flags],
        }
    })
}

fn flagged(constants: Constants, flags: &[&str]) -> Constants {
    flags.iter().fold(constants, |constants, flag| constants.flag(flag, true))
}

/// Every variant of every kernel.
pub(crate) fn variants(capabilities: &Capabilities) -> Variants {
    let mut list = Vec::new();
    let workgroup = || Constants::new().int("WORKGROUP", ops::workgroup(capabilities));
    for flags in passes() {
        list.push((COST, flagged(workgroup(), &flags), flags.join(" ")));
    }
    let lanes = scan_lanes(capabilities.max_workgroup_threads);
    list.push((ITEMS, Constants::new().int("WORKGROUP", lanes), format!("workgroup {lanes}")));
    list.push((DISPATCH, Constants::new(), String::new()));
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for flags in [
            &["TILED"][..],
            &["LISTING"],
            &["LISTING", "TILED"],
            &["LISTING", "WEIGHTS"],
            &["LISTING", "TILED", "WEIGHTS"],
            &["TILED", "SUMS"],
            &["LISTING", "SUMS"],
            &["LISTING", "TILED", "SUMS"],
        ] {
            let constants = flagged(storage(workgroup(), dtype), flags);
            list.push((MERGE, constants, format!("{}, {}", dtype.name(), flags.join(" "))));
        }
    }
    let each = || each_constants(capabilities, 8).0;
    let each_long = || each_constants(capabilities, 1).0;
    for flags in passes() {
        list.push((PLACES, flagged(each_long(), &flags), flags.join(" ")));
    }
    for rows in ROWS {
        list.push((LISTING, flagged(each(), rows), rows.join(" ")));
    }
    list.push((LISTED, each(), String::new()));
    list.push((SUMS, each_long(), String::new()));
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        list.push((STATS, storage(workgroup(), dtype), dtype.name().into()));
    }
    forward(&mut list, capabilities);
    backward(&mut list, capabilities);
    list
}

/// Modifiers of both kinds.
fn modifiers() -> [Modifier; 2] {
    [
        Modifier::alibi(&attn_core::alibi_slopes(4)),
        Modifier::mask("near", "return f32(abs(position - key)) <= radius;")
            .with_scalar("radius", 3.0),
    ]
}

const PLAIN: Form<'static> =
    Form { dtype: DType::F32, soft_cap: false, modifier: None, bits: false };

fn form_words(form: &Form<'_>) -> String {
    let is_plain = form.dtype == DType::F32 && !form.soft_cap && form.modifier.is_none();
    if is_plain { String::new() } else { format!(", {form:?}") }
}

fn backward(list: &mut Variants, capabilities: &Capabilities) {
    let mut add = |dim, rows, form: &Form<'_>, flags: &[&str]| {
        let variant = Variant::plan_backward(dim, dim, rows, capabilities);
        let constants = form.constants(&variant).flag("BACKWARD", true);
        let words = format!("{variant}, {}{}", flags.join(" "), form_words(form));
        let of_keys = flags.contains(&"MULTISET");
        for source in [QUERIES, KEYS].into_iter().skip(usize::from(of_keys)) {
            list.push((source, flagged(constants.clone(), flags), words.clone()));
        }
    };
    let blocks = ["TILED", "ENTRIES", "BLOCKS"];
    for dim in [16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256] {
        add(dim, 1000, &PLAIN, &blocks);
    }
    [1, 9, 17, 33, 64, 128].into_iter().for_each(|rows| add(64, rows, &PLAIN, &blocks));
    for flags in passes() {
        let mut weighted = vec!["WEIGHTS"];
        weighted.extend(&flags);
        for rows in [1, 1000] {
            [&flags, &weighted].into_iter().for_each(|flags| add(64, rows, &PLAIN, flags));
        }
    }
    for entries in [ENTRIES[1], ENTRIES[3], ENTRIES[4]] {
        for end in [&["KEY_BIAS"][..], &["NEAR", "KEY_BIAS"]] {
            let flags: Vec<_> = ["TILED"].iter().chain(entries).chain(end).copied().collect();
            add(64, 1000, &PLAIN, &flags);
        }
    }
    for dtype in [DType::F16, DType::BF16] {
        add(64, 1000, &Form { dtype, ..PLAIN }, &blocks);
    }
    add(64, 1000, &Form { soft_cap: true, ..PLAIN }, &blocks);
    for modifier in &modifiers() {
        let form = Form { modifier: Some(modifier), soft_cap: true, ..PLAIN };
        add(64, 1000, &form, &["TILED", "ENTRIES", "TOKENS", "NEAR", "KEY_BIAS"]);
    }
    for end in [&["MULTISET"][..], &["NEAR", "KEY_BIAS", "MULTISET"]] {
        add(64, 1000, &PLAIN, &[&blocks[..], end].concat());
    }
}

fn forward(list: &mut Variants, capabilities: &Capabilities) {
    let mut add = |dim, rows, form: &Form<'_>, flags: &[&str]| {
        let (variant, split) = Variant::plan(dim, dim, rows, capabilities);
        let (own, biased) = match flags {
            [own @ .., "KEY_BIAS"] => (own, true),
            own => (own, false),
        };
        // In the order of the executor, as kernels are known by it.
        let constants = flagged(form.constants(&variant).flag("SPLIT", split), own);
        let constants = constants.flag("KEY_BIAS", biased);
        let words = format!("{variant}, {}{}", flags.join(" "), form_words(form));
        list.push((FORWARD, constants, words));
    };
    let blocks = ["TILED", "ENTRIES", "BLOCKS"];
    for dim in [16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256] {
        [1, 1000].into_iter().for_each(|rows| add(dim, rows, &PLAIN, &blocks));
    }
    (1..=16).chain([24, 32, 64, 128]).for_each(|rows| add(64, rows, &PLAIN, &blocks));
    for rows in [1, 1000] {
        passes().for_each(|flags| add(64, rows, &PLAIN, &flags));
        for entries in [ENTRIES[1], ENTRIES[3], ENTRIES[4]] {
            for end in [&["KEY_BIAS"][..], &["NEAR", "KEY_BIAS"]] {
                let flags: Vec<_> = ["TILED"].iter().chain(entries).chain(end).copied().collect();
                add(64, rows, &PLAIN, &flags);
            }
        }
        for dtype in [DType::F16, DType::BF16] {
            add(64, rows, &Form { dtype, ..PLAIN }, &blocks);
        }
        add(64, rows, &Form { soft_cap: true, ..PLAIN }, &blocks);
        for modifier in &modifiers() {
            let form = Form { modifier: Some(modifier), soft_cap: true, ..PLAIN };
            add(64, rows, &form, &["TILED", "ENTRIES", "TOKENS", "NEAR", "KEY_BIAS"]);
        }
    }
}
