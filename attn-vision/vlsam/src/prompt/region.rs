//! Strong patches and how they hang together.

use attn_core::{Error, Result};

use crate::AttentionMap;

/// Which patches reach `threshold`, in raster order.
pub fn strong(map: &AttentionMap, threshold: f64) -> Vec<bool> {
    map.values().iter().map(|&value| f64::from(value) >= threshold).collect()
}

/// Connected regions of patches: neighbours are the four that share an edge.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Components {
    /// The number of each patch's region, in raster order: 0 outside of all, else from 1 in the order
    /// of the regions' first patches.
    pub labels: Vec<u32>,
    /// Patches of region 1, 2, ..
    pub sizes: Vec<usize>,
}

impl Components {
    /// The regions of the patches that are `set`, on a grid of `(rows, columns)`.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of patches than the grid has.
    pub fn new(grid: (usize, usize), set: &[bool]) -> Result<Components> {
        let (rows, columns) = grid;
        if rows.checked_mul(columns) != Some(set.len()) {
            return Err(Error::shape("set", format!("{rows} x {columns} patches"), &[set.len()]));
        }
        let mut labels = vec![0; set.len()];
        let mut sizes: Vec<usize> = Vec::new();
        let mut open = Vec::new();
        for (first, &inside) in set.iter().enumerate() {
            if !inside || labels[first] != 0 {
                continue;
            }
            let label = sizes.len() as u32 + 1;
            let mut size = 0;
            labels[first] = label;
            open.push(first);
            while let Some(patch) = open.pop() {
                size += 1;
                let (y, x) = (patch / columns, patch % columns);
                let neighbours = [
                    (y > 0, patch.wrapping_sub(columns)),
                    (y + 1 < rows, patch + columns),
                    (x > 0, patch.wrapping_sub(1)),
                    (x + 1 < columns, patch + 1),
                ];
                for (inside, neighbour) in neighbours {
                    if inside && set[neighbour] && labels[neighbour] == 0 {
                        labels[neighbour] = label;
                        open.push(neighbour);
                    }
                }
            }
            sizes.push(size);
        }
        Ok(Components { labels, sizes })
    }

    /// The number of the region with the most patches, the first of several; none without a region.
    pub fn largest(&self) -> Option<u32> {
        let mut best: Option<(usize, u32)> = None;
        for (label, &size) in (1..).zip(&self.sizes) {
            if best.is_none_or(|(most, _)| size > most) {
                best = Some((size, label));
            }
        }
        best.map(|(_, label)| label)
    }
}
