//! Where to cut probabilities so that the outline is sharp.

use super::super::graph::Lattice;

/// How many levels are tried.
const LEVELS: usize = 40;
/// Sharpness of the image's own border: an outline along it is neither good nor bad.
const BORDER: f64 = 0.25;

/// The regions around the positive places at different levels.
pub(super) struct Cut<'a> {
    lattice: &'a Lattice,
    values: &'a [f64],
    positive: &'a [usize],
}

impl<'a> Cut<'a> {
    pub(super) fn new(lattice: &'a Lattice, values: &'a [f64], positive: &'a [usize]) -> Cut<'a> {
        Cut { lattice, values, positive }
    }

    /// The level whose outline is the sharpest, of levels at which areas grow by a constant factor from
    /// 20 places to nine tenths of all.
    pub(super) fn sharpest(&self) -> Option<f64> {
        let mut sorted = self.values.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let (least, most) = (20.0_f64, 0.9 * sorted.len() as f64);
        let mut best: Option<(f64, f64)> = None;
        for step in 0..LEVELS {
            let area = least * (most / least).powf(step as f64 / (LEVELS - 1) as f64);
            let Some(&level) = sorted.get(area as usize) else {
                continue;
            };
            if let Some(score) = self.score(level)
                && best.is_none_or(|(highest, _)| score > highest)
            {
                best = Some((score, level));
            }
        }
        best.map(|(_, level)| level)
    }

    /// Mean sharpness of the outline of the region at `level`: one minus the conductance across it.
    /// None where no positive place reaches the level.
    pub(super) fn score(&self, level: f64) -> Option<f64> {
        let (rows, columns) = self.lattice.size();
        let mut inside = vec![false; self.values.len()];
        let mut open = Vec::new();
        let mut enter = |place: usize, open: &mut Vec<usize>| {
            let reaches = self.values.get(place).is_some_and(|&value| value >= level);
            if reaches && !inside[place] {
                inside[place] = true;
                open.push(place);
            }
            reaches
        };
        for &place in self.positive {
            enter(place, &mut open);
        }
        let (right, down) = (self.lattice.right(), self.lattice.down());
        let (mut sharp, mut length) = (0.0, 0.0);
        let mut any = false;
        while let Some(place) = open.pop() {
            any = true;
            let (y, x) = (place / columns, place % columns);
            let neighbours = [
                (x > 0, place.wrapping_sub(1), place.wrapping_sub(1), right),
                (x + 1 < columns, place + 1, place, right),
                (y > 0, place.wrapping_sub(columns), place.wrapping_sub(columns), down),
                (y + 1 < rows, place + columns, place, down),
            ];
            for (exists, neighbour, edge, conductances) in neighbours {
                if !exists {
                    sharp += BORDER;
                    length += 1.0;
                } else if !enter(neighbour, &mut open) {
                    sharp += 1.0 - conductances[edge];
                    length += 1.0;
                }
            }
        }
        match (any, length > 0.0) {
            (false, _) => None,
            (true, false) => Some(0.0),
            (true, true) => Some(sharp / length),
        }
    }
}
