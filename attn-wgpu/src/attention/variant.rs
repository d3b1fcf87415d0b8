//! Which variant of the attention kernel runs: a pure function, tested by tables.

use crate::capabilities::{Capabilities, DeviceKind};
use crate::kernel::Constants;

/// Largest head dimension.
pub const MAX_DIM: usize = 256;

/// Head dimensions that kernels are compiled for; others run in the next larger one.
const BUCKETS: [u32; 12] = [16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256];

/// One compiled form of the attention kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Variant {
    /// Head dimension of queries and keys that it is compiled for.
    pub dim_qk: u32,
    /// Head dimension of values that it is compiled for.
    pub dim_v: u32,
    /// Lanes that share a query row; a power of two.
    pub lanes: u32,
    /// Query rows of one group of lanes.
    pub rows: u32,
    /// Keys absorbed per step.
    pub keys: u32,
    /// Invocations in a workgroup; a multiple of `lanes`.
    pub workgroup: u32,
    /// Whether lanes exchange values by subgroup shuffles; else through workgroup memory.
    pub subgroups: bool,
}

/// Measured settings of one kind of device.
struct Setting {
    /// Elements of the head dimension that one lane should hold.
    dim_per_lane: u32,
    max_lanes: u32,
    max_rows: u32,
    keys: u32,
    workgroup: u32,
}

/// Software drivers: memory accesses cost many FMAs whatever their pattern, so rows are many; a
/// workgroup of few lanes wastes least on the diagonal.
const CPU: Setting =
    Setting { dim_per_lane: 16, max_lanes: 8, max_rows: 16, keys: 1, workgroup: 16 };
/// GPUs: registers per lane are few, lanes are many.
const GPU: Setting =
    Setting { dim_per_lane: 8, max_lanes: 32, max_rows: 4, keys: 4, workgroup: 128 };
/// Without subgroups a step has two barriers, so it takes more keys.
const CPU_BASE: Setting =
    Setting { dim_per_lane: 16, max_lanes: 16, max_rows: 4, keys: 4, workgroup: 16 };
const GPU_BASE: Setting =
    Setting { dim_per_lane: 16, max_lanes: 16, max_rows: 4, keys: 4, workgroup: 64 };

/// Straight-line vec4 accesses of a kernel at most: drivers that compile with LLVM need time that
/// grows with the square of them.
const MAX_ACCESSES: u32 = 145;

/// Up to this many queries a variant with few rows runs.
const FEW_QUERIES: usize = 8;

impl Variant {
    /// The variant for a problem on a device. Never depends on batch, heads, or lengths other than
    /// the number of queries.
    ///
    /// Dimensions must be 1 to [`MAX_DIM`]; others are treated as the nearest.
    pub fn choose(
        dim_qk: usize,
        dim_v: usize,
        queries: usize,
        capabilities: &Capabilities,
    ) -> Variant {
        let (dim_qk, dim_v) = (bucket(dim_qk), bucket(dim_v));
        let cpu = capabilities.kind == DeviceKind::Cpu;
        let (setting, most_lanes) = match (capabilities.subgroups, cpu) {
            (Some(subgroups), true) => (CPU, subgroups.min),
            (Some(subgroups), false) => (GPU, subgroups.min),
            (None, true) => (CPU_BASE, u32::MAX),
            (None, false) => (GPU_BASE, u32::MAX),
        };
        let dim = dim_qk.max(dim_v);
        let most_lanes = setting.max_lanes.min(most_lanes).min(capabilities.max_workgroup_threads);
        let lanes = floor_power_of_two((dim / setting.dim_per_lane).clamp(1, most_lanes.max(1)));
        let chunks = (dim_qk / 4).div_ceil(lanes) + (dim_v / 4).div_ceil(lanes);
        let mut rows = (MAX_ACCESSES / chunks).saturating_sub(1).clamp(1, setting.max_rows);
        if queries <= FEW_QUERIES {
            rows = rows.min(4);
        }
        let workgroup = setting.workgroup.min(capabilities.max_workgroup_threads).max(lanes);
        let workgroup = workgroup / lanes * lanes;
        let subgroups = capabilities.subgroups.is_some();
        Variant { dim_qk, dim_v, lanes, rows, keys: setting.keys, workgroup, subgroups }
    }

    /// Query rows of one workgroup.
    pub fn tile(&self) -> usize {
        (self.workgroup / self.lanes * self.rows) as usize
    }

    /// Bytes of workgroup memory.
    pub fn workgroup_bytes(&self) -> u32 {
        if self.subgroups || self.lanes == 1 {
            16
        } else {
            4 * self.workgroup * self.rows * self.keys
        }
    }

    pub(super) fn constants(&self) -> Constants {
        Constants::new()
            .int("CHUNKS_QK", (self.dim_qk / 4).div_ceil(self.lanes))
            .int("CHUNKS_V", (self.dim_v / 4).div_ceil(self.lanes))
            .int("LANES", self.lanes)
            .int("LANE_BITS", self.lanes.ilog2())
            .int("ROWS", self.rows)
            .int("KEYS", self.keys)
            .int("WORKGROUP", self.workgroup)
            .flag("SUBGROUP", self.subgroups)
    }
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Variant { dim_qk, dim_v, lanes, rows, keys, workgroup, subgroups } = self;
        let exchange = if *subgroups { "subgroups" } else { "workgroup memory" };
        write!(
            f,
            "dims {dim_qk}/{dim_v}, {lanes} lanes, {rows} rows, {keys} keys, workgroup {workgroup}, {exchange}"
        )
    }
}

fn bucket(dim: usize) -> u32 {
    let larger = BUCKETS.into_iter().find(|&bucket| bucket as usize >= dim);
    larger.unwrap_or(MAX_DIM as u32)
}

fn floor_power_of_two(x: u32) -> u32 {
    1 << x.max(1).ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::Subgroups;

    fn devices() -> Vec<Capabilities> {
        let base = Capabilities::webgpu();
        let mut all = vec![base.clone()];
        for kind in
            [DeviceKind::Cpu, DeviceKind::Discrete, DeviceKind::Integrated, DeviceKind::Other]
        {
            for (min, max) in [
                (1, 1),
                (4, 4),
                (8, 8),
                (8, 32),
                (16, 16),
                (32, 32),
                (64, 64),
                (4, 128),
                (128, 128),
            ] {
                for max_workgroup_threads in [64, 128, 256, 1024] {
                    let subgroups = Some(Subgroups { min, max });
                    all.push(Capabilities {
                        kind,
                        subgroups,
                        max_workgroup_threads,
                        ..base.clone()
                    });
                }
            }
            all.push(Capabilities { kind, ..base.clone() });
        }
        all
    }

    // ggml-org/llama.cpp#23020, #23040, #22492; tracel-ai/burn#4530: a path chosen for a head size,
    // a subgroup size or a memory size that it could not do.
    #[test]
    fn every_head_size_gets_a_variant_that_its_device_can_run() {
        for capabilities in devices() {
            for dim in 1..=MAX_DIM {
                for (dim_qk, dim_v) in [(dim, dim), (dim, 1), (3, dim)] {
                    for queries in [1, 8, 9, 4096] {
                        let variant = Variant::choose(dim_qk, dim_v, queries, &capabilities);
                        let case =
                            format!("{dim_qk} {dim_v} {queries} {variant:?} {capabilities:?}");
                        assert!(
                            variant.dim_qk as usize >= dim_qk && variant.dim_v as usize >= dim_v,
                            "{case}"
                        );
                        assert!(variant.lanes.is_power_of_two(), "{case}");
                        assert_eq!(variant.workgroup % variant.lanes, 0, "{case}");
                        assert!(variant.workgroup <= capabilities.max_workgroup_threads, "{case}");
                        assert!(variant.workgroup_bytes() <= 16 << 10, "{case}");
                        assert_eq!(variant.subgroups, capabilities.subgroups.is_some(), "{case}");
                        if let Some(subgroups) = capabilities.subgroups {
                            assert!(variant.lanes <= subgroups.min, "{case}");
                        }
                        let chunks = (variant.dim_qk / 4).div_ceil(variant.lanes)
                            + (variant.dim_v / 4).div_ceil(variant.lanes);
                        let accesses = (variant.rows + 1) * chunks;
                        assert!(variant.rows == 1 || accesses <= MAX_ACCESSES, "{case}");
                    }
                }
            }
        }
    }

    // tracel-ai/cubecl#887: a reported subgroup size of 0 means that it is not known.
    #[test]
    fn unknown_subgroup_sizes_take_the_base_variant() {
        let variant = Variant::choose(64, 64, 100, &Capabilities::webgpu());
        assert!(!variant.subgroups);
    }
}
