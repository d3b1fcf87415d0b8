//! Which kernels run, and with which numbers: a pure function, tested by tables.

use std::fmt;

use crate::capabilities::{Capabilities, DeviceKind};
use crate::kernel::Constants;

/// How the kernels of blocks split their work on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Variant {
    /// Memory straight into registers; lanes share what they load.
    Direct {
        /// Rows of a workgroup.
        rows: u32,
        /// Chunks of four columns of a lane.
        chunks: u32,
        /// Invocations, which are lanes of one subgroup.
        workgroup: u32,
    },
    /// Through tiles in workgroup memory, and all blocks at once.
    Tile,
}

impl Variant {
    /// The variant of a device.
    ///
    /// Software drivers: every access of memory costs as much as many multiply-adds, so rows are many
    /// and stay in registers, which needs lanes that exchange values.
    pub(crate) fn of(capabilities: &Capabilities) -> Variant {
        let smallest = capabilities.subgroups.map_or(0, |subgroups| subgroups.min);
        match (capabilities.kind, smallest) {
            (DeviceKind::Cpu, 4..) => {
                let workgroup = if smallest >= 8 { 8 } else { 4 };
                Variant::Direct { rows: 16, chunks: 2, workgroup }
            }
            _ => Variant::Tile,
        }
    }

    /// Rows and columns of a workgroup, in elements.
    pub(crate) fn extents(&self) -> [usize; 2] {
        match *self {
            Variant::Direct { rows, chunks, workgroup } => {
                [rows as usize, 4 * (chunks * workgroup) as usize]
            }
            Variant::Tile => [TILE_ROWS as usize, TILE_COLUMNS as usize],
        }
    }

    pub(crate) fn constants(&self) -> Constants {
        match *self {
            Variant::Direct { rows, chunks, workgroup } => Constants::new()
                .int("ROWS", rows)
                .int("CHUNKS", chunks)
                .int("WORKGROUP", workgroup)
                .int("HELD", rows / workgroup)
                .int("DECAYS", rows + 3),
            Variant::Tile => Constants::new()
                .int("TILE_ROWS", TILE_ROWS)
                .int("TILE_COLUMNS", TILE_COLUMNS)
                .int("TILE_DEPTH", TILE_DEPTH),
        }
    }
}

/// Rows of a tile: of a block, or of a state.
const TILE_ROWS: u32 = 32;
/// Columns of a tile.
const TILE_COLUMNS: u32 = 64;
/// Depth that is in workgroup memory at once.
const TILE_DEPTH: u32 = 16;

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Variant::Direct { rows, chunks, workgroup } => {
                write!(f, "direct, {rows} rows, {chunks} chunks, workgroup {workgroup}")
            }
            Variant::Tile => write!(f, "tile {TILE_ROWS}x{TILE_COLUMNS}x{TILE_DEPTH}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::Subgroups;

    #[test]
    fn every_device_gets_a_variant_that_it_can_run() {
        for kind in [DeviceKind::Cpu, DeviceKind::Discrete, DeviceKind::Integrated] {
            for size in [None, Some(1), Some(4), Some(8), Some(16), Some(32)] {
                let subgroups = size.map(|size| Subgroups { min: size, max: 2 * size });
                let device = Capabilities { kind, subgroups, ..Capabilities::webgpu() };
                {
                    match Variant::of(&device) {
                        Variant::Direct { rows, workgroup, .. } => {
                            assert_eq!(kind, DeviceKind::Cpu);
                            assert!(workgroup <= size.unwrap_or(0));
                            assert!(rows.is_multiple_of(workgroup) && rows.is_multiple_of(4));
                        }
                        Variant::Tile => {
                            assert!(kind != DeviceKind::Cpu || size.unwrap_or(0) < 4);
                            let staged = TILE_DEPTH * (TILE_ROWS + TILE_COLUMNS);
                            assert!(4 * (staged + TILE_ROWS * TILE_COLUMNS) <= 16 << 10);
                        }
                    }
                }
            }
        }
    }
}
