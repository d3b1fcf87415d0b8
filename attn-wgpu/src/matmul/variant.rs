//! Which matmul kernel runs, and with which numbers: a pure function, tested by tables.

use std::fmt;

use crate::capabilities::{Capabilities, DeviceKind};
use crate::kernel::Constants;

/// Up to so many rows a batch entry, reading the weights is what counts on a GPU.
pub const FEW_ROWS: usize = 4;

/// What the choice depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// Rows of `a` in a batch entry.
    pub rows: usize,
    /// The same after batch entries with a common `b` were taken together.
    pub all_rows: usize,
    /// Whether `b` is contiguous along its columns, instead of along the depth.
    pub b_rows: bool,
}

/// One compiled form of a matmul kernel. Elements do not depend on how many rows a form takes at
/// once, so `rows` may follow from a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Variant {
    /// Memory straight into registers.
    Direct {
        /// Rows of a workgroup.
        rows: u32,
        /// Chunks of four columns of a lane.
        chunks: u32,
        /// Chunks of the depth of one step.
        step: u32,
        /// Lanes of a subgroup that share the loads of `a`; 1 without subgroups.
        exchange: u32,
        /// Invocations of a workgroup.
        workgroup: u32,
    },
    /// Through tiles in workgroup memory.
    Tile {
        /// Rows of a workgroup.
        rows: u32,
        /// Columns of a workgroup.
        columns: u32,
        /// Depth of a step.
        depth: u32,
        /// Chunks of four rows of an invocation.
        row_chunks: u32,
        /// Chunks of four columns of an invocation.
        column_chunks: u32,
    },
    /// Few rows, and weights that are contiguous along the depth.
    Rows {
        /// Rows at once.
        rows: u32,
        /// Chunks of four columns of a group of lanes.
        chunks: u32,
        /// Lanes of a group, which share the depth.
        lanes: u32,
        /// Chunks of the depth of a lane in one step.
        unroll: u32,
        /// Invocations of a workgroup.
        workgroup: u32,
        /// Whether lanes exchange values by shuffles; else through workgroup memory.
        subgroups: bool,
    },
}

/// Numbers of rows that kernels are compiled for.
const ROWS: [u32; 6] = [1, 2, 4, 8, 16, 32];

/// What the loads of `b` cost in a tile, in rows of multiply-adds: measured on Mesa 22.3.6, where tiles
/// of 32 rows run at 41 GFLOP/s, of 16 at 34, and of 8 at 24.
const LOADS: usize = 8;

/// The number of rows, up to `most`, that wastes least.
pub(crate) fn compiled_rows(rows: usize, most: u32) -> u32 {
    let cost = |tile: u32| rows.div_ceil(tile as usize) * (tile as usize + LOADS);
    let fitting = ROWS.into_iter().filter(|&tile| tile <= most);
    fitting.min_by_key(|&tile| cost(tile)).unwrap_or(1)
}

impl Variant {
    /// The variant for a problem on a device. The kernel and the order of its sums never depend on
    /// the batch.
    pub fn of(problem: &Problem, capabilities: &Capabilities) -> Variant {
        if capabilities.kind == DeviceKind::Cpu {
            return Variant::software(problem, capabilities);
        }
        match (problem.rows <= FEW_ROWS, problem.b_rows) {
            (true, false) => Variant::few_rows(problem, capabilities),
            (true, true) => Variant::few_rows_across(problem, capabilities),
            (false, _) => {
                Variant::Tile { rows: 64, columns: 64, depth: 16, row_chunks: 2, column_chunks: 1 }
            }
        }
    }

    /// Software drivers: every access of memory costs as much as many multiply-adds, so rows are
    /// many, and lanes share the loads of `a`. This serves single rows too: what a row of weights
    /// costs there is its loads, whichever lanes do them.
    fn software(problem: &Problem, capabilities: &Capabilities) -> Variant {
        let exchange = match capabilities.subgroups.map_or(1, |subgroups| subgroups.min) {
            8.. => 8,
            4.. => 4,
            _ => 1,
        };
        let rows = compiled_rows(problem.all_rows, if exchange > 1 { 32 } else { 8 });
        let two = (rows == 1 && problem.b_rows) || (rows > 2 && exchange == 1);
        Variant::Direct {
            rows,
            chunks: if two { 2 } else { 1 },
            step: if rows <= 2 { 2 } else { 1 },
            exchange,
            workgroup: 8,
        }
    }

    /// GPUs, with weights along the depth: neighbouring lanes read neighbouring memory.
    fn few_rows(problem: &Problem, capabilities: &Capabilities) -> Variant {
        let smallest = capabilities.subgroups.map_or(0, |subgroups| subgroups.min);
        let workgroup = 64.min(capabilities.max_workgroup_threads);
        Variant::Rows {
            rows: compiled_rows(problem.all_rows, FEW_ROWS as u32),
            chunks: 1,
            lanes: if smallest >= 4 { 1 << smallest.min(16).ilog2() } else { 16.min(workgroup) },
            unroll: 2,
            workgroup,
            subgroups: smallest >= 4,
        }
    }

    /// GPUs, with weights along the columns: lanes own columns.
    fn few_rows_across(problem: &Problem, capabilities: &Capabilities) -> Variant {
        let workgroup = 64.min(capabilities.max_workgroup_threads);
        let rows = compiled_rows(problem.all_rows, FEW_ROWS as u32);
        Variant::Direct { rows, chunks: 1, step: 2, exchange: 1, workgroup }
    }

    /// Rows and columns of a workgroup.
    pub fn tile_extents(&self) -> [usize; 2] {
        let [rows, columns] = match *self {
            Variant::Direct { rows, chunks, workgroup, .. } => [rows, 4 * chunks * workgroup],
            Variant::Tile { rows, columns, .. } => [rows, columns],
            Variant::Rows { rows, chunks, lanes, workgroup, .. } => {
                [rows, 4 * chunks * (workgroup / lanes)]
            }
        };
        [rows as usize, columns as usize]
    }

    /// Depth that one invocation may go through in loops of `steps` iterations altogether.
    pub fn max_depth(&self, steps: usize) -> usize {
        let (depth, iterations) = match *self {
            Variant::Direct { step, .. } => (4 * step, 1),
            // The step itself, its blocks, and a quarter of its depth.
            Variant::Tile { rows, columns, depth, .. } => {
                (depth, 1 + self.blocks(rows + columns, depth) + depth / 4)
            }
            Variant::Rows { lanes, unroll, .. } => (4 * lanes * unroll, 1),
        };
        (steps / iterations as usize).saturating_mul(depth as usize)
    }

    /// Blocks of four by four that an invocation loads in a step of the tile kernel.
    fn blocks(&self, across: u32, depth: u32) -> u32 {
        (across / 4 * (depth / 4)).div_ceil(self.workgroup())
    }

    /// Invocations of a workgroup.
    pub fn workgroup(&self) -> u32 {
        match *self {
            Variant::Direct { workgroup, .. } | Variant::Rows { workgroup, .. } => workgroup,
            Variant::Tile { rows, columns, row_chunks, column_chunks, .. } => {
                rows / (4 * row_chunks) * (columns / (4 * column_chunks))
            }
        }
    }

    /// Name of the kernel.
    pub fn kernel(&self) -> &'static str {
        match self {
            Variant::Direct { .. } => "matmul_direct",
            Variant::Tile { .. } => "matmul_tile",
            Variant::Rows { .. } => "matmul_rows",
        }
    }

    pub(super) fn constants(&self) -> Constants {
        let constants = Constants::new();
        match *self {
            Variant::Direct { rows, chunks, step, exchange, workgroup } => constants
                .int("ROWS", rows)
                .int("CHUNKS", chunks)
                .int("STEP", step)
                .int("EXCHANGE", exchange)
                .int("HELD", (rows * step).div_ceil(exchange))
                .int("WORKGROUP", workgroup)
                .flag("SUBGROUP", exchange > 1),
            Variant::Tile { rows, columns, depth, row_chunks, column_chunks } => constants
                .int("TILE_ROWS", rows)
                .int("TILE_COLUMNS", columns)
                .int("TILE_DEPTH", depth)
                .int("ROW_CHUNKS", row_chunks)
                .int("COLUMN_CHUNKS", column_chunks),
            Variant::Rows { rows, chunks, lanes, unroll, workgroup, subgroups } => constants
                .int("ROWS", rows)
                .int("CHUNKS", chunks)
                .int("LANES", lanes)
                .int("LANE_BITS", lanes.ilog2())
                .int("UNROLL", unroll)
                .int("WORKGROUP", workgroup)
                .flag("SUBGROUP", subgroups),
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Variant::Direct { rows, chunks, step, exchange, workgroup } => write!(
                f,
                "direct, {rows} rows, {chunks} chunks, step {step}, {exchange} lanes exchange, workgroup {workgroup}"
            ),
            Variant::Tile { rows, columns, depth, row_chunks, column_chunks } => write!(
                f,
                "tile {rows}x{columns}x{depth}, {row_chunks}x{column_chunks} blocks, workgroup {}",
                self.workgroup()
            ),
            Variant::Rows { rows, chunks, lanes, unroll, workgroup, subgroups } => {
                let exchange = if *subgroups { "subgroups" } else { "workgroup memory" };
                write!(
                    f,
                    "few rows, {rows} rows, {chunks} chunks, {lanes} lanes, unroll {unroll}, workgroup {workgroup}, {exchange}"
                )
            }
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

    fn of(rows: usize, all_rows: usize, b_rows: bool, device: &Capabilities) -> Variant {
        Variant::of(&Problem { rows, all_rows, b_rows }, device)
    }

    #[test]
    fn kernels_by_device_and_rows() {
        use DeviceKind::{Cpu, Discrete, Integrated, Other};
        for subgroups in [None, Some(4), Some(8), Some(32)] {
            for rows in [1, FEW_ROWS, FEW_ROWS + 1, 1000] {
                for b_rows in [false, true] {
                    let cpu = of(rows, rows, b_rows, &device(Cpu, subgroups));
                    assert_eq!(cpu.kernel(), "matmul_direct");
                    let want = match (rows <= FEW_ROWS, b_rows) {
                        (true, false) => "matmul_rows",
                        (true, true) => "matmul_direct",
                        (false, _) => "matmul_tile",
                    };
                    for kind in [Discrete, Integrated, Other] {
                        let gpu = of(rows, rows, b_rows, &device(kind, subgroups));
                        assert_eq!(gpu.kernel(), want, "{kind:?} {rows} {b_rows}");
                    }
                }
            }
        }
    }

    /// What sums depend on must not change with the rows that a batch adds.
    #[test]
    fn a_batch_changes_nothing_but_rows() {
        for kind in [DeviceKind::Cpu, DeviceKind::Discrete] {
            for subgroups in [None, Some(8), Some(64)] {
                let device = device(kind, subgroups);
                for (rows, b_rows) in [(1, false), (1, true), (3, false), (40, true)] {
                    let order = |all_rows| match of(rows, all_rows, b_rows, &device) {
                        Variant::Rows { lanes, unroll, subgroups, .. } => {
                            (lanes, unroll, subgroups)
                        }
                        // In the order of the depth, whatever the numbers.
                        Variant::Direct { .. } => (1, 0, false),
                        Variant::Tile { .. } => (1, 1, false),
                    };
                    for all_rows in [rows, 8 * rows, 1000 * rows] {
                        assert_eq!(order(all_rows), order(rows), "{kind:?} {rows} {all_rows}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_variant_fits_the_least_device_and_llvm() {
        for kind in [DeviceKind::Cpu, DeviceKind::Discrete, DeviceKind::Integrated] {
            for subgroups in [None, Some(1), Some(4), Some(8), Some(16), Some(32), Some(128)] {
                let device = device(kind, subgroups);
                for rows in 1..70 {
                    for b_rows in [false, true] {
                        let variant = of(rows, rows, b_rows, &device);
                        assert!(variant.workgroup() <= 256, "{variant}");
                        if let Variant::Tile { rows, columns, depth, .. } = variant {
                            assert!(4 * depth * (rows + columns) <= 16 << 10, "{variant}");
                        }
                        let lanes = match variant {
                            Variant::Direct { exchange, workgroup, .. } => {
                                assert!(workgroup >= exchange);
                                exchange
                            }
                            Variant::Rows { lanes, subgroups: true, workgroup, .. } => {
                                assert!(workgroup.is_multiple_of(lanes));
                                lanes
                            }
                            _ => 1,
                        };
                        assert!(lanes.is_power_of_two() && lanes <= subgroups.unwrap_or(1));
                        if let Variant::Direct { rows, chunks, step, exchange, .. } = variant {
                            // Loads of a, loads of b, stores.
                            let accesses = (rows * step).div_ceil(exchange)
                                + 4 * step * chunks
                                + rows * chunks;
                            assert!(accesses <= 145, "{variant}: {accesses}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn rows_that_waste_least() {
        let picked = |rows| compiled_rows(rows, 32);
        let want =
            [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (16, 16), (17, 32), (33, 16), (49, 32)];
        for (rows, tile) in want {
            assert_eq!(picked(rows), tile, "{rows}");
        }
        assert_eq!(compiled_rows(100, 4), 4);
    }

    #[test]
    fn depth_that_loops_admit() {
        let direct = Variant::Direct { rows: 32, chunks: 1, step: 1, exchange: 8, workgroup: 8 };
        assert_eq!(direct.max_depth(60_000), 240_000);
        let tile =
            Variant::Tile { rows: 64, columns: 64, depth: 16, row_chunks: 2, column_chunks: 1 };
        assert_eq!(tile.workgroup(), 128);
        // A step, one block to load, and four times four steps of the depth.
        assert_eq!(tile.max_depth(60_000), 160_000);
        assert!(tile.max_depth(usize::MAX) > 1 << 60);
    }
}
