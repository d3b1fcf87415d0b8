//! Which kernel runs and with which constants: a pure function of the problem and the device.

use std::fmt;

use super::blocks::BlockType;
use crate::capabilities::{Capabilities, DeviceKind};
use crate::kernel::Constants;
use crate::matmul::FEW_ROWS;
use crate::matmul::variant::compiled_rows;

/// One compiled form of a kernel of packed products, but for the types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Variant {
    /// Few rows, lanes along the columns.
    Few { rows: u32, chunks: u32, exchange: u32, workgroup: u32 },
    /// Many rows, memory straight into registers.
    Direct { rows: u32, chunks: u32, exchange: u32, workgroup: u32 },
    /// Few rows, lanes along the depth.
    Lanes { rows: u32, lanes: u32, workgroup: u32, subgroups: bool },
    /// Many rows, through workgroup memory.
    Tile { rows: u32, columns: u32, depth: u32, row_chunks: u32, column_chunks: u32 },
}

impl Variant {
    /// For `rows` rows a batch entry, `all_rows` with those of entries that are taken together. The
    /// kernel and the order of its sums never depend on the batch.
    pub(super) fn of(rows: usize, all_rows: usize, capabilities: &Capabilities) -> Variant {
        let few = rows <= FEW_ROWS;
        let few_rows = || compiled_rows(all_rows, FEW_ROWS as u32);
        if capabilities.kind == DeviceKind::Cpu {
            let exchange = match capabilities.subgroups.map_or(1, |subgroups| subgroups.min) {
                8.. => 8,
                4.. => 4,
                _ => 1,
            };
            if few {
                let rows = few_rows();
                return Variant::Few { rows, chunks: 1, exchange, workgroup: 8 };
            }
            let rows = compiled_rows(all_rows, if exchange > 1 { 32 } else { 8 });
            return Variant::Direct { rows, chunks: 1, exchange, workgroup: 8 };
        }
        if !few {
            return Variant::Tile {
                rows: 64,
                columns: 64,
                depth: 16,
                row_chunks: 2,
                column_chunks: 1,
            };
        }
        let smallest = capabilities.subgroups.map_or(0, |subgroups| subgroups.min);
        let workgroup = 64.min(capabilities.max_workgroup_threads);
        Variant::Lanes {
            rows: few_rows(),
            lanes: if smallest >= 4 { 1 << smallest.min(16).ilog2() } else { 16.min(workgroup) },
            workgroup,
            subgroups: smallest >= 4,
        }
    }

    /// Rows, and chunks of four columns, of a workgroup.
    pub(super) fn tile_extents(&self) -> [usize; 2] {
        let [rows, chunks] = match *self {
            Variant::Few { rows, chunks, workgroup, .. }
            | Variant::Direct { rows, chunks, workgroup, .. } => [rows, chunks * workgroup],
            Variant::Lanes { rows, lanes, workgroup, .. } => [rows, workgroup / lanes],
            Variant::Tile { rows, columns, .. } => [rows, columns / 4],
        };
        [rows as usize, chunks as usize]
    }

    /// Iterations of loops of an invocation, for `steps` times 32 values of the depth.
    pub(super) fn loop_steps(&self, steps: usize) -> usize {
        match *self {
            Variant::Few { .. } => steps,
            // Up to two spans, and eight chunks.
            Variant::Direct { .. } => steps.saturating_mul(10),
            Variant::Lanes { lanes, .. } => steps.saturating_mul(4).div_ceil(lanes as usize),
            // The step itself, its blocks, and a quarter of its depth.
            Variant::Tile { rows, columns, depth, .. } => {
                let blocks = ((rows + columns) / 4 * (depth / 4)).div_ceil(self.workgroup());
                let each = 1 + blocks + depth / 4;
                steps.saturating_mul((32 / depth * each) as usize)
            }
        }
    }

    fn workgroup(&self) -> u32 {
        match *self {
            Variant::Few { workgroup, .. }
            | Variant::Direct { workgroup, .. }
            | Variant::Lanes { workgroup, .. } => workgroup,
            Variant::Tile { rows, columns, row_chunks, column_chunks, .. } => {
                rows / (4 * row_chunks) * (columns / (4 * column_chunks))
            }
        }
    }

    pub(super) fn kernel(&self) -> &'static str {
        match self {
            Variant::Few { .. } => "packed_few",
            Variant::Direct { .. } => "packed_direct",
            Variant::Lanes { .. } => "packed_lanes",
            Variant::Tile { .. } => "packed_tile",
        }
    }

    pub(super) fn constants(&self) -> Constants {
        let constants = Constants::new();
        match *self {
            Variant::Few { rows, chunks, exchange, workgroup } => constants
                .int("ROWS", rows)
                .int("CHUNKS", chunks)
                .int("EXCHANGE", exchange)
                .int("HELD", 8 * rows / exchange)
                .int("WORKGROUP", workgroup)
                .flag("SUBGROUP", exchange > 1),
            Variant::Direct { rows, chunks, exchange, workgroup } => constants
                .int("ROWS", rows)
                .int("CHUNKS", chunks)
                .int("EXCHANGE", exchange)
                .int("HELD", rows.div_ceil(exchange))
                .int("WORKGROUP", workgroup)
                .flag("SUBGROUP", exchange > 1),
            Variant::Lanes { rows, lanes, workgroup, subgroups } => constants
                .int("ROWS", rows)
                .int("LANES", lanes)
                .int("LANE_BITS", lanes.ilog2())
                .int("WORKGROUP", workgroup)
                .flag("SUBGROUP", subgroups),
            Variant::Tile { rows, columns, depth, row_chunks, column_chunks } => constants
                .int("TILE_ROWS", rows)
                .int("TILE_COLUMNS", columns)
                .int("TILE_DEPTH", depth)
                .int("ROW_CHUNKS", row_chunks)
                .int("COLUMN_CHUNKS", column_chunks),
        }
    }
}

/// What kernels have to know of a block type.
pub(super) fn block_constants(kind: BlockType, constants: Constants) -> Constants {
    let flag = match kind {
        BlockType::Q4_0 => "Q4_0",
        BlockType::Q4_1 => "Q4_1",
        BlockType::Q8_0 => "Q8_0",
        BlockType::Q4K => "Q4_K",
        BlockType::Q6K => "Q6_K",
    };
    let wide = scale_chunk(kind) == 4;
    let spans = if kind == BlockType::Q6K { 2 } else { 1 };
    constants
        .int("CODES", kind.code_words() as u32)
        .int("SPANS", spans)
        .int("SPAN_CHUNKS", 8 / spans)
        .alias("ScaleChunk", if wide { "vec4<u32>" } else { "vec2<u32>" })
        .flag(flag, true)
}

/// Words that kernels read of scales at once.
pub(super) fn scale_chunk(kind: BlockType) -> usize {
    match kind {
        BlockType::Q4_1 | BlockType::Q4K => 4,
        BlockType::Q4_0 | BlockType::Q8_0 | BlockType::Q6K => 2,
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Variant::Few { rows, chunks, exchange, workgroup } => write!(
                f,
                "few rows, {rows} rows, {chunks} chunks, {exchange} lanes exchange, workgroup {workgroup}"
            ),
            Variant::Direct { rows, chunks, exchange, workgroup } => write!(
                f,
                "direct, {rows} rows, {chunks} chunks, {exchange} lanes exchange, workgroup {workgroup}"
            ),
            Variant::Lanes { rows, lanes, workgroup, subgroups } => {
                let exchange = if *subgroups { "subgroups" } else { "workgroup memory" };
                write!(f, "lanes, {rows} rows, {lanes} lanes, workgroup {workgroup}, {exchange}")
            }
            Variant::Tile { rows, columns, depth, row_chunks, column_chunks } => write!(
                f,
                "tile {rows}x{columns}x{depth}, {row_chunks}x{column_chunks} blocks, workgroup {}",
                self.workgroup()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::Subgroups;

    fn device(kind: DeviceKind, subgroups: Option<u32>) -> Capabilities {
        let subgroups = subgroups.map(|size| Subgroups { min: size, max: size });
        Capabilities { kind, subgroups, ..Capabilities::webgpu() }
    }

    #[test]
    fn kernels_by_device_and_rows() {
        for subgroups in [None, Some(4), Some(8), Some(32)] {
            for (kind, rows, want) in [
                (DeviceKind::Cpu, FEW_ROWS, "packed_few"),
                (DeviceKind::Cpu, FEW_ROWS + 1, "packed_direct"),
                (DeviceKind::Discrete, FEW_ROWS, "packed_lanes"),
                (DeviceKind::Other, FEW_ROWS + 1, "packed_tile"),
            ] {
                assert_eq!(Variant::of(rows, rows, &device(kind, subgroups)).kernel(), want);
            }
        }
    }

    /// What sums depend on must not change with the rows that a batch adds.
    #[test]
    fn a_batch_changes_nothing_but_rows() {
        for kind in [DeviceKind::Cpu, DeviceKind::Discrete] {
            for subgroups in [None, Some(8), Some(64)] {
                let device = device(kind, subgroups);
                for rows in [1, 3, 40] {
                    let order = |all_rows| match Variant::of(rows, all_rows, &device) {
                        Variant::Lanes { lanes, subgroups, .. } => (0, lanes, subgroups),
                        Variant::Few { exchange, .. } => (1, exchange, false),
                        // In the order of the depth, whatever the numbers.
                        Variant::Direct { .. } => (2, 0, false),
                        Variant::Tile { .. } => (3, 0, false),
                    };
                    for all_rows in [rows, 8 * rows, 1000 * rows] {
                        assert_eq!(order(all_rows), order(rows), "{kind:?} {rows} {all_rows}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_variant_fits_the_least_device() {
        for kind in [DeviceKind::Cpu, DeviceKind::Discrete, DeviceKind::Integrated] {
            for subgroups in [None, Some(1), Some(4), Some(8), Some(16), Some(32), Some(128)] {
                let device = device(kind, subgroups);
                for rows in 1..70 {
                    let variant = Variant::of(rows, rows, &device);
                    assert!(variant.workgroup() <= 256, "{variant}");
                    if let Variant::Tile { rows, columns, depth, .. } = variant {
                        assert!(4 * depth * (rows + columns) <= 16 << 10, "{variant}");
                        assert!(32u32.is_multiple_of(depth), "{variant}");
                    }
                    if let Variant::Few { exchange, .. } | Variant::Direct { exchange, .. } =
                        variant
                    {
                        assert!(exchange <= subgroups.unwrap_or(1).max(1), "{variant}");
                    }
                }
            }
        }
    }
}
