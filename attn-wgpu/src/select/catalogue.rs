//! The kernels that select, in the variants that devices get.

use super::choose::{self, Cover};
use super::pool::{self, PoolKind};
use super::{bits, each_constants, lanes, probe, scan, scores, sort};
use crate::capabilities::Capabilities;
use crate::kernel::KernelSource;
use crate::rows::Sharing;
use crate::rows::catalogue::Variant;

/// Every variant of every kernel.
pub(crate) fn variants(capabilities: &Capabilities) -> Vec<Variant> {
    let lanes = lanes(capabilities);
    let mut list = Vec::new();
    for way in scan::Way::ALL {
        list.push((scan::SCAN, way.constants(lanes), format!("{way:?}, {lanes} lanes")));
    }
    let sort_lanes = sort::sort_lanes(capabilities);
    for (first, count) in [(true, true), (true, false), (false, true), (false, false)] {
        let pass = sort::Pass { first, count };
        let words = format!("{pass:?}, {sort_lanes} lanes");
        list.push((sort::SORT, pass.constants(sort_lanes), words));
    }
    let mut each = |source: KernelSource, items, flags: &[&str]| {
        let (constants, _) = each_constants(capabilities, items);
        let constants = flags.iter().fold(constants, |constants, flag| constants.flag(flag, true));
        list.push((source, constants, format!("{flags:?}")));
    };
    for (source, flags) in INDEPENDENT {
        each(source, super::ITEMS, flags);
    }
    each(probe::COLUMNS, 1, &[]);
    each(probe::DISTANCES, 1, &[]);
    for kind in PoolKind::ALL {
        for storage in [None, Some("SOURCE_F16"), Some("SOURCE_BF16")] {
            let flags: Vec<&str> = storage.into_iter().chain(kind.flag()).collect();
            each(pool::POOL, 1, &flags);
        }
    }
    for sharing in sharings(probe::PASSES, capabilities) {
        for more in [false, true] {
            let words = format!("{} lanes, more {more}", sharing.lanes);
            list.push((probe::LSE, probe::constants(&sharing, more), words));
        }
    }
    for sharing in sharings(scores::PASSES, capabilities) {
        for (causal, softmax) in [(false, false), (false, true), (true, false), (true, true)] {
            let words = format!("{} lanes, causal {causal}, softmax {softmax}", sharing.lanes);
            list.push((scores::BLOCK_ROWS, scores::constants(&sharing, causal, softmax), words));
        }
    }
    for sharing in sharings(choose::PASSES, capabilities) {
        for (each, bits) in [(false, false), (false, true), (true, false), (true, true)] {
            let words = format!("{} lanes, each {each}, bits {bits}", sharing.lanes);
            list.push((choose::TOP, choose::top_constants(&sharing, each, bits), words));
        }
        for cover in [Cover::AtMost, Cover::AtLeast] {
            let words = format!("{} lanes, {cover:?}", sharing.lanes);
            list.push((choose::COVER, choose::cover_constants(&sharing, cover), words));
        }
    }
    list
}

/// How rows of any width are shared, each way once.
fn sharings(passes: usize, capabilities: &Capabilities) -> Vec<Sharing> {
    let mut found = Vec::new();
    for bits in 0..=24 {
        let sharing = Sharing::new(1 << bits, passes, capabilities);
        if !found.contains(&sharing) {
            found.push(sharing);
        }
    }
    found
}

/// Kernels whose invocations are independent, with the flags they run with.
const INDEPENDENT: [(KernelSource, &[&str]); 11] = [
    (bits::BITS, &["OR"]),
    (bits::BITS, &["SHIFT"]),
    (bits::BITS, &["CAUSAL"]),
    (bits::BIT_COUNTS, &[]),
    (bits::BIT_SET, &[]),
    (bits::BIT_COLUMNS, &[]),
    (sort::BOUNDS, &[]),
    (sort::KEYS, &[]),
    (sort::KEYS, &["ENTRIES"]),
    (sort::TAKE, &["MODULO"]),
    (sort::TAKE, &[]),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::select::{
        Wanted, bits_causal, bits_from_indices, bits_or, bits_shift_or, bits_to_csr, cover_rows,
        gather_lists, popcount_rows, scan_u32, top_k_bits, top_k_rows, transpose_csr,
    };
    use crate::tensor::DType;
    use crate::testing;
    use crate::{Gpu, Result, Tensor};

    /// Calls that need every kernel.
    fn calls(gpu: &Gpu) -> Result<()> {
        for count in [3, 20_000] {
            scan_u32(&Tensor::zeros(gpu, &[count], DType::U32)?)?;
        }
        let class = Tensor::zeros(gpu, &[2, 9], DType::U32)?;
        let lists = gather_lists(&class, 20)?;
        transpose_csr(&lists.offsets, &lists.positions, 2, 9)?;
        let (q, k) = (&[1, 2, 9, 8], &[1, 1, 70_000, 8]);
        let (q, k) = (Tensor::zeros(gpu, q, DType::F32)?, Tensor::zeros(gpu, k, DType::BF16)?);
        let blocks = pool::pool(&k, &pool::Pool::new(600, PoolKind::Max))?;
        probe::probe(&q, &k, 1.0)?;
        for causal in [false, true] {
            let config = scores::BlockScores { causal, ..scores::BlockScores::new(1.0) };
            scores::block_scores(&q, &blocks, &config)?;
        }
        for width in [5, 1000, 9000] {
            let x = Tensor::zeros(gpu, &[3, width], DType::F32)?;
            let counts = cover_rows(&x, 0.5, Cover::AtMost)?;
            cover_rows(&x, 0.5, Cover::AtLeast)?;
            for wanted in [Wanted::Same(2), Wanted::Each(&counts)] {
                let chosen = top_k_rows(&x, wanted, 4)?;
                let set = bits_or(
                    &bits_from_indices(&chosen.indices, &chosen.counts, width)?,
                    &top_k_bits(&x, wanted)?.bits,
                )?;
                let shifted =
                    bits_shift_or(&set, &set.narrow(0, 0, 1)?.reshape(&[set.shape()[1]])?, 0)?;
                popcount_rows(&bits_to_csr(&bits_causal(&shifted, 0)?, 9)?.col.reshape(&[1, 9])?)?;
            }
        }
        Ok(())
    }

    #[test]
    fn what_runs_is_listed() {
        let Some(gpu) = testing::open() else { return };
        let ((), profile) = gpu.profile(|| calls(&gpu)).unwrap();
        let ran: HashSet<String> = profile.kernels.into_iter().map(|time| time.kernel).collect();
        let variants = variants(gpu.capabilities());
        let names: HashSet<&str> = variants.iter().map(|(source, ..)| source.name).collect();
        for name in &names {
            let begin = format!("{name} ");
            assert!(ran.iter().any(|label| label.starts_with(&begin)), "{name}: {ran:?}");
        }
        let label = |(source, constants, _): Variant| {
            gpu.kernel(&source, constants).unwrap().label().to_string()
        };
        let listed: HashSet<String> = variants.into_iter().map(label).collect();
        for label in ran.iter().filter(|label| label.starts_with("select_")) {
            assert!(listed.contains(label), "{label} runs and is not listed");
        }
    }
}
