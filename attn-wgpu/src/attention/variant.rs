//! Which variant of the attention kernel runs: a pure function, tested by tables.

use crate::capabilities::{Capabilities, DeviceKind};
use crate::kernel::Constants;
use crate::settings::KernelKind;

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

/// Straight-line vec4 accesses of a kernel at most: drivers that compile with LLVM need time that
/// grows with the square of them.
const MAX_ACCESSES: u32 = 145;
const MAX_ACCESSES_BACKWARD: u32 = 160;

/// Numbers of rows that decode kernels are compiled for; others run in the next larger one.
const DECODE_ROWS: [u32; 6] = [1, 2, 3, 4, 6, 8];

/// The same for the backward kernels of sparse plans; others run with all rows.
const PLAN_BACKWARD_ROWS: [u32; 2] = [1, 4];

/// Keys are split over workgroups up to this many queries.
pub(crate) const FEW_QUERIES: usize = 8;

impl Variant {
    /// The variant of the forward kernel. Never depends on batch, heads, or lengths.
    ///
    /// Dimensions must be 1 to [`MAX_DIM`]; others are treated as the nearest.
    pub fn forward(dim_qk: usize, dim_v: usize, capabilities: &Capabilities) -> Variant {
        Variant::new(KernelKind::Forward, dim_qk, dim_v, capabilities)
    }

    /// The variant of the backward kernels, by the same rule.
    pub fn backward(dim_qk: usize, dim_v: usize, capabilities: &Capabilities) -> Variant {
        Variant::new(KernelKind::Backward, dim_qk, dim_v, capabilities)
    }

    /// The variant of the decode kernel for `rows` rows (queries times heads) at once, or as many
    /// as it can take.
    pub fn decode(
        dim_qk: usize,
        dim_v: usize,
        rows: usize,
        capabilities: &Capabilities,
    ) -> Variant {
        let mut variant = Variant::new(KernelKind::Decode, dim_qk, dim_v, capabilities);
        // The workgroup's results are merged through workgroup memory.
        while 4
            * variant.workgroup
            * (2 * variant.rows + variant.dim_v.next_multiple_of(4 * variant.lanes))
            / variant.lanes
            + variant.exchange_bytes()
            > capabilities.max_workgroup_bytes.min(16 << 10)
            && variant.workgroup > variant.lanes
        {
            variant.workgroup /= 2;
        }
        let wanted = u32::try_from(rows).unwrap_or(u32::MAX).min(variant.rows);
        let compiled = DECODE_ROWS.into_iter().find(|&rows| rows >= wanted);
        variant.rows = compiled.unwrap_or(variant.rows).min(variant.rows);
        variant
    }

    /// The variant of the kernel of sparse plans for groups of at most `rows` rows (queries times heads
    /// that share them), and whether groups of lanes share rows and split the keys of a step instead.
    pub fn plan(
        dim_qk: usize,
        dim_v: usize,
        rows: usize,
        capabilities: &Capabilities,
    ) -> (Variant, bool) {
        let few = Variant::decode(dim_qk, dim_v, rows, capabilities);
        if rows <= few.rows as usize {
            return (few, true);
        }
        let variant = Variant::forward(dim_qk, dim_v, capabilities);
        (variant.at_most(rows, &DECODE_ROWS), false)
    }

    /// The variant of the backward kernels of sparse plans for at most `rows` rows at once.
    pub fn plan_backward(
        dim_qk: usize,
        dim_v: usize,
        rows: usize,
        capabilities: &Capabilities,
    ) -> Variant {
        Variant::backward(dim_qk, dim_v, capabilities).at_most(rows, &PLAN_BACKWARD_ROWS)
    }

    /// The same with fewer rows, where no workgroup gets as many: one of `compiled`, or all.
    fn at_most(mut self, rows: usize, compiled: &[u32]) -> Variant {
        let groups = (self.workgroup / self.lanes) as usize;
        let wanted = rows.div_ceil(groups).min(self.rows as usize) as u32;
        let compiled = compiled.iter().find(|&&rows| rows >= wanted);
        self.rows = compiled.map_or(self.rows, |&rows| rows.min(self.rows));
        self
    }

    fn new(
        kernel: KernelKind,
        dim_qk: usize,
        dim_v: usize,
        capabilities: &Capabilities,
    ) -> Variant {
        let (dim_qk, dim_v) = (bucket(dim_qk), bucket(dim_v));
        let subgroups = capabilities.subgroups.is_some();
        let cpu = capabilities.kind == DeviceKind::Cpu;
        let setting = capabilities.settings.of(kernel, cpu, subgroups, dim_qk.max(dim_v));
        let most_lanes = setting
            .max_lanes
            .min(capabilities.subgroups.map_or(u32::MAX, |subgroups| subgroups.min))
            .min(capabilities.max_workgroup_threads)
            .max(1);
        let dim = dim_qk.max(dim_v);
        let lanes = floor_power_of_two((dim / setting.dim_per_lane).clamp(1, most_lanes));
        let chunks = (dim_qk / 4).div_ceil(lanes) + (dim_v / 4).div_ceil(lanes);
        let most_rows = match kernel {
            KernelKind::Backward => MAX_ACCESSES_BACKWARD / (2 * chunks),
            KernelKind::Forward | KernelKind::Decode => (MAX_ACCESSES / chunks).saturating_sub(1),
        };
        let workgroup = setting.workgroup.min(capabilities.max_workgroup_threads).max(lanes);
        let mut variant = Variant {
            dim_qk,
            dim_v,
            lanes,
            rows: most_rows.clamp(1, setting.max_rows),
            keys: if kernel == KernelKind::Backward { 1 } else { setting.keys },
            workgroup: workgroup / lanes * lanes,
            subgroups,
        };
        while variant.exchange_bytes() > capabilities.max_workgroup_bytes.min(16 << 10)
            && variant.workgroup > variant.lanes
        {
            variant.workgroup = variant.workgroup / 2 / lanes * lanes;
        }
        variant
    }

    /// Rows of one workgroup: queries, or keys in kernels that visit queries.
    pub fn tile(&self) -> usize {
        (self.workgroup / self.lanes * self.rows) as usize
    }

    /// Bytes of workgroup memory that lanes exchange values through, in forward and decode kernels;
    /// backward kernels exchange two values a row.
    pub fn exchange_bytes(&self) -> u32 {
        if self.subgroups { 0 } else { 4 * self.workgroup * self.rows * self.keys.max(2) }
    }

    pub(crate) fn constants(&self) -> Constants {
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
                    let forward = Variant::forward(dim_qk, dim_v, &capabilities);
                    let backward = Variant::backward(dim_qk, dim_v, &capabilities);
                    let decodes = [1, 5, 16, 900]
                        .map(|rows| Variant::decode(dim_qk, dim_v, rows, &capabilities));
                    let plans = [1, 7, 9, 33, 1000]
                        .map(|rows| (rows, Variant::plan(dim_qk, dim_v, rows, &capabilities)));
                    for (rows, (variant, split)) in plans {
                        // Lanes that split keys own all rows, and others leave few without work.
                        let case = format!("{rows} {variant:?} {capabilities:?}");
                        assert!(!split || variant.rows as usize >= rows, "{case}");
                        assert!(split || variant.rows == 1 || variant.tile() < 2 * rows, "{case}");
                    }
                    let plans = plans.map(|(_, (variant, _))| variant);
                    let few = Variant::plan_backward(dim_qk, dim_v, 7, &capabilities);
                    let kinds = [forward, backward, few];
                    for variant in decodes.into_iter().chain(plans).chain(kinds) {
                        let case = format!("{dim_qk} {dim_v} {variant:?} {capabilities:?}");
                        assert!(
                            variant.dim_qk as usize >= dim_qk && variant.dim_v as usize >= dim_v,
                            "{case}"
                        );
                        assert!(variant.rows >= 1, "{case}");
                        assert!(variant.lanes.is_power_of_two(), "{case}");
                        assert_eq!(variant.workgroup % variant.lanes, 0, "{case}");
                        assert!(variant.workgroup <= capabilities.max_workgroup_threads, "{case}");
                        assert!(variant.exchange_bytes() <= 16 << 10, "{case}");
                        assert_eq!(variant.subgroups, capabilities.subgroups.is_some(), "{case}");
                        if let Some(subgroups) = capabilities.subgroups {
                            assert!(variant.lanes <= subgroups.min, "{case}");
                        }
                        let chunks = (variant.dim_qk / 4).div_ceil(variant.lanes)
                            + (variant.dim_v / 4).div_ceil(variant.lanes);
                        let accesses = (variant.rows + 1) * chunks;
                        assert!(variant.rows == 1 || accesses <= MAX_ACCESSES_BACKWARD, "{case}");
                    }
                    for variant in decodes {
                        let groups = variant.workgroup / variant.lanes;
                        let width = variant.dim_v.next_multiple_of(4 * variant.lanes);
                        let bytes =
                            4 * groups * (2 * variant.rows + width) + variant.exchange_bytes();
                        assert!(bytes <= 16 << 10, "{bytes} {variant:?} {capabilities:?}");
                    }
                }
            }
        }
    }

    // tracel-ai/cubecl#887: a reported subgroup size of 0 means that it is not known.
    #[test]
    fn unknown_subgroup_sizes_take_the_base_variant() {
        let variant = Variant::forward(64, 64, &Capabilities::webgpu());
        assert!(!variant.subgroups);
    }
}
