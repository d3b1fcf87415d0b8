//! Expanded texts of a few variants, kept as files.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use attn_wgpu::{catalogue, expand};

use super::diff::diff;

/// Where the files are, from the root of the workspace.
const FOLDER: &str = "xtask/snapshots";

/// One variant a kernel: the device, the kernel, and how its variant begins and ends in the catalogue.
const KEPT: &[(&str, &str, &str, &str)] = &[
    ("GPU, 32 lanes", "attention_forward", "dims 64/64", ", f32, sinks, row maxima"),
    ("GPU, WebGPU limits", "attention_decode", "dims 64/64", ", f16, bit mask"),
    ("GPU, 32 lanes", "attention_backward_q", "dims 64/64", ", f32, soft cap, score modifier"),
    ("GPU, 32 lanes", "attention_backward_kv", "dims 64/64", ", bf16, mask modifier"),
    ("GPU, WebGPU limits", "attention_columns", "dims 64/64", ", f32, bit mask"),
    ("GPU, 32 lanes", "attention_transposed", "dims 64/64", "bit mask"),
    ("GPU, WebGPU limits", "attention_weights", "dims 64/64", ", f16, score modifier"),
    ("GPU, WebGPU limits", "attention_merge", "", ", bf16, f32 parts, sinks"),
    ("GPU, WebGPU limits", "attention_delta", "", ", f16, cotangent of the lse"),
    ("GPU, WebGPU limits", "attention_sinks", "", ""),
    ("GPU, 32 lanes", "attention_plan", "dims 64/64", "TILED ENTRIES BLOCKS NEAR"),
    ("GPU, WebGPU limits", "attention_plan_merge", "bf16", "LISTING TILED WEIGHTS"),
    ("GPU, WebGPU limits", "plan_cost", "TILED ENTRIES BLOCK_BITS", "NEAR"),
    ("GPU, WebGPU limits", "plan_items", "", ""),
    ("GPU, WebGPU limits", "plan_dispatch", "", ""),
    ("GPU, 32 lanes", "attention_plan_q", "dims 64/64", "TILED ENTRIES BLOCKS NEAR"),
    ("GPU, 32 lanes", "attention_plan_kv", "dims 64/64", "TILED ENTRIES BLOCKS NEAR"),
    ("GPU, WebGPU limits", "attention_plan_keys", "", ""),
    ("GPU, WebGPU limits", "attention_plan_stats", "bf16", ""),
    ("GPU, WebGPU limits", "plan_places", "TILED ENTRIES BLOCK_BITS", "NEAR"),
    ("GPU, WebGPU limits", "plan_listing", "LISTS", ""),
    ("GPU, WebGPU limits", "plan_listed", "", ""),
    ("GPU, WebGPU limits", "fill", "", ""),
    ("GPU, WebGPU limits", "copy", "", ""),
    ("GPU, WebGPU limits", "copy_half", "", ""),
    ("GPU, WebGPU limits", "map", "Gate(Silu)", ", f16 to f16"),
    ("GPU, 32 lanes", "norm", "64 lanes, bf16", "to f16 ADD"),
    ("GPU, 32 lanes", "simple_norm", "64 lanes, bf16", "to f16 BACKWARD"),
    ("GPU, WebGPU limits", "rope", "Half, 4 pairs", ", f32 to f16"),
    ("GPU, WebGPU limits", "gather_rows", "", "f16 to f32"),
    ("GPU, WebGPU limits", "softmax", "32 lanes, f16", "to f32"),
    ("GPU, 32 lanes", "log_softmax", "64 lanes, f32", "target true, soft cap true"),
    ("GPU, WebGPU limits", "argmax", "32 lanes, bf16", ""),
    ("GPU, 32 lanes", "top_k", "64 lanes, f16", ""),
    ("GPU, WebGPU limits", "top_k_rank", "", ""),
    ("software, 8 lanes", "sample", "8 lanes, f32", "7"),
    ("GPU, WebGPU limits", "copy_chunks", "", ", halves"),
    ("software, 8 lanes", "chunk_rows", "", ", bf16, transposed state"),
    ("GPU, WebGPU limits", "chunk_rows_tile", "", ", f32"),
    ("software, 8 lanes", "chunk_states", "", ", f16"),
    ("GPU, WebGPU limits", "chunk_states_tile", "", ", bf16"),
    ("GPU, WebGPU limits", "chunk_pass", "f32", ""),
    ("GPU, WebGPU limits", "linear_decode", "f16", ""),
    (
        "GPU, WebGPU limits",
        "scan_recurrence",
        "Form { dtype: F16, totals: false",
        "reversed: true, base: true }",
    ),
    ("GPU, WebGPU limits", "scan_recurrence_totals", "first true", "coefficients true"),
    ("GPU, WebGPU limits", "scan_softmax", "Form { v: BF16, out: Some(F32)", "base: true }"),
    ("GPU, WebGPU limits", "scan_softmax_totals", "first true", "last true"),
    ("GPU, WebGPU limits", "scan_columns", "bf16", "weights true"),
    ("GPU, 32 lanes", "row_dot", "", "f16 bf16, valid true"),
    ("GPU, WebGPU limits", "matmul_tile", "", "b by rows, everything"),
    ("GPU, 32 lanes", "matmul_rows", "few rows, 4 rows", "b by columns, silu"),
    ("software, 8 lanes", "matmul_direct", "direct, 2 rows", "b by rows"),
    ("GPU, WebGPU limits", "packed_tile", "", "Q4_1, everything"),
    ("GPU, 32 lanes", "packed_lanes", "", "Q6_K"),
    ("software, 8 lanes", "packed_direct", "", "Q4_K"),
    ("software, 8 lanes", "packed_few", "", "Q8_0"),
    ("GPU, WebGPU limits", "packed_gather", "rows of Q4_0", "f16"),
    ("GPU, WebGPU limits", "scatter_counts", "", ""),
    (
        "GPU, WebGPU limits",
        "scatter_pieces",
        "f16",
        "weights: true, pieces: false, accumulate: false }",
    ),
    (
        "GPU, WebGPU limits",
        "scatter_rows",
        "f32",
        "weights: true, pieces: false, accumulate: true }",
    ),
    ("GPU, WebGPU limits", "select_scan", "Tiles", ""),
    ("GPU, WebGPU limits", "select_sort", "Pass { first: false, count: false }", ""),
    ("GPU, WebGPU limits", "select_bounds", "", ""),
    ("GPU, WebGPU limits", "select_keys", "", "[\"ENTRIES\"]"),
    ("GPU, WebGPU limits", "select_take", "", "[]"),
    ("GPU, 32 lanes", "select_top", "64 lanes", "each true, bits true"),
    ("GPU, WebGPU limits", "select_cover", "32 lanes", "AtMost"),
    ("GPU, WebGPU limits", "select_bits", "", "[\"SHIFT\"]"),
    ("GPU, WebGPU limits", "select_bit_counts", "", ""),
    ("GPU, WebGPU limits", "select_bit_set", "", ""),
    ("GPU, WebGPU limits", "select_bit_columns", "", ""),
    ("GPU, WebGPU limits", "select_pool", "", "[\"SOURCE_BF16\", \"MEAN\"]"),
    ("GPU, WebGPU limits", "select_block_rows", "32 lanes", "causal true, softmax true"),
    ("GPU, 32 lanes", "select_probe_lse", "64 lanes", "more true"),
    ("GPU, WebGPU limits", "select_probe_columns", "", ""),
    ("GPU, WebGPU limits", "select_probe_distances", "", ""),
    ("GPU, WebGPU limits", "probe_copy", "", ""),
    ("GPU, WebGPU limits", "probe_fma", "", ", 3 chains"),
];

/// Compares the files with what the loader makes now, or writes them.
pub fn check(root: &Path, wanted: &dyn Fn(&str) -> bool, bless: bool) -> Result<Vec<String>> {
    let folder = root.join(FOLDER);
    let mut complaints = Vec::new();
    let mut count = 0;
    for (device, kernel, begin, end) in KEPT.iter().filter(|kept| wanted(kept.1)) {
        let file = format!("{kernel}.txt");
        let now = text(device, kernel, begin, end)?;
        let path = folder.join(&file);
        count += 1;
        let before = fs::read_to_string(&path).ok().map(|text| text.replace("\r\n", "\n"));
        if before.as_ref() == Some(&now) {
            continue;
        }
        if bless {
            fs::create_dir_all(&folder)?;
            fs::write(&path, &now).with_context(|| format!("writing {FOLDER}/{file}"))?;
            println!("wrote {FOLDER}/{file}");
            continue;
        }
        let change = before.map_or("there is no such file".into(), |before| diff(&before, &now));
        complaints.push(format!(
            "{FOLDER}/{file}: the kernel's text changed (`cargo xtask check --bless` accepts it)\n{change}"
        ));
    }
    println!("snapshots: {count} compared");
    Ok(complaints)
}

fn text(device: &str, kernel: &str, begin: &str, end: &str) -> Result<String> {
    let devices = catalogue::devices();
    let Some((_, capabilities)) = devices.iter().find(|(name, _)| *name == device) else {
        bail!("a snapshot is of the device {device:?}, which is not in the catalogue");
    };
    let entries = catalogue::entries(capabilities);
    let found = entries.iter().find(|entry| {
        entry.source.name == kernel
            && entry.variant.starts_with(begin)
            && entry.variant.ends_with(end)
    });
    let Some(entry) = found else {
        bail!(
            "a snapshot is of a variant of {kernel} that begins with {begin:?} and ends with {end:?}: there is none"
        );
    };
    let text = expand(&entry.source, &entry.constants, capabilities.immediate_bytes > 0);
    let text = text.map_err(|error| anyhow!("{kernel}: {error}"))?;
    Ok(format!("{kernel}: {device}, {}\n\n{text}", entry.variant))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_kernel_has_one() {
        let devices = catalogue::devices();
        let entries = devices.iter().flat_map(|(_, capabilities)| catalogue::entries(capabilities));
        let kernels: BTreeSet<_> = entries.map(|entry| entry.source.name).collect();
        let kept: BTreeSet<_> = KEPT.iter().map(|kept| kept.1).collect();
        assert_eq!(kernels, kept);
        for (device, kernel, begin, end) in KEPT {
            text(device, kernel, begin, end).unwrap();
        }
    }
}
