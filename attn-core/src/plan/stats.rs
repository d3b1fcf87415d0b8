//! What a plan costs.

use std::ops::Range;

use super::entries::Interval;
use super::keys::{filled, is_masked};
use super::rows::Members;
use super::{Combine, Entries, Part, SparsePlan};
use crate::{Error, Result};

/// The tile an executor works in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Queries of one head.
    pub rows: usize,
    /// Keys.
    pub keys: usize,
}

impl Default for Tile {
    /// 32 queries and 16 keys.
    fn default() -> Self {
        Tile { rows: 32, keys: 16 }
    }
}

/// Counts over all batch entries and heads. Counts too large for 64 bits stay at the largest number.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct PlanStats {
    /// Pairs of a query and a key in `S`, with multiplicity.
    pub pairs: u64,
    /// Pairs of dense attention: all, or all with `t <= pos` where the plan is causal.
    pub dense_pairs: u64,
    /// Pairs that an executor computes in whole tiles. A group of more queries than a tile is cut into
    /// row tiles. Each of these reads whole blocks of which some query between its first and its last can
    /// see a key, in as many tiles as they need, small ones together; of ranges and single keys it reads
    /// what such a query can see, packed. The near part is read apart.
    pub executed_pairs: u64,
    /// Key tiles of a row tile: fewest, mean, most.
    pub tiles: (u64, f64, u64),
    /// Rows (batch entry, head, query) without any key.
    pub empty_rows: u64,
}

impl PlanStats {
    /// Share of the dense pairs that is in the plan; above 1 where keys count several times.
    pub fn density(&self) -> f64 {
        self.pairs as f64 / (self.dense_pairs as f64).max(1.0)
    }

    /// The same of the pairs that are computed.
    pub fn executed_density(&self) -> f64 {
        self.executed_pairs as f64 / (self.dense_pairs as f64).max(1.0)
    }
}

impl SparsePlan {
    /// What executing the plan in tiles of this size costs. `O(n log n)` for `n` entries and rows.
    ///
    /// # Errors
    /// As [`SparsePlan::check`], and [`Error::Config`] for a tile without rows or keys.
    pub fn stats(&self, tile: Tile) -> Result<PlanStats> {
        if tile.rows == 0 || tile.keys == 0 {
            return Err(Error::config("tile", "at least 1 row and 1 key", format!("{tile:?}")));
        }
        let plan = self.canonicalise()?;
        let mut counter =
            Counter { plan: &plan, tile, stats: PlanStats::default(), tiles: 0, row_tiles: 0 };
        counter.stats.tiles.0 = u64::MAX;
        let offsets = plan.gate_offsets();
        for plane in 0..plan.planes() {
            counter.plane(plane, &offsets)?;
        }
        Ok(counter.finish())
    }
}

struct Counter<'a> {
    plan: &'a SparsePlan,
    tile: Tile,
    stats: PlanStats,
    tiles: u64,
    row_tiles: u64,
}

impl Counter<'_> {
    fn plane(&mut self, plane: usize, gate_offsets: &[Vec<usize>]) -> Result<()> {
        let queries = self.plan.shape.queries;
        let mut pairs = filled(queries, 0_u64)?;
        let mut listed = filled(queries, false)?;
        let single = self.plan.combine == Combine::Single;
        for (index, part) in self.plan.parts.iter().enumerate() {
            let gates = match &self.plan.combine {
                Combine::Gate(gates) => gates.get(index).and_then(|gates| gates.as_ref()),
                _ => None,
            };
            for group in part.rows.plane_groups(plane, queries) {
                let entries = GroupEntries::new(self.plan, part, group, self.tile.keys);
                let members = part.rows.members(group, queries);
                let first_gate = gate_offsets.get(index).and_then(|offsets| offsets.get(group));
                for (row, query) in members.iter().enumerate() {
                    let gate = first_gate.and_then(|first| gates?.get(first + row));
                    if !gate.is_some_and(|&gate| is_masked(gate)) {
                        let seen = self.plan.explicit_range(self.plan.shape.position(query));
                        pairs[query] = pairs[query].saturating_add(entries.count(&seen));
                    }
                }
                // Queries of a group without entries may be in another one.
                if single && entries.is_empty() && self.plan.parts.len() > 1 {
                    continue;
                }
                members.iter().for_each(|query| listed[query] = true);
                self.row_tiles(&members, |counter, hull, [first, last]| {
                    let near = if single { counter.near_tiles(first, last) } else { 0 };
                    entries.tiles(&hull).saturating_add(near)
                });
            }
        }
        let has_near = self.plan.near.sink > 0 || self.plan.window() > 0;
        let alone: Vec<u32> = (0..queries)
            .filter(|&query| has_near && !(single && listed[query]))
            .map(|query| query as u32)
            .collect();
        self.row_tiles(&Members::List(&alone), |counter, _, [first, last]| {
            counter.near_tiles(first, last)
        });

        let heads = self.heads_of_a_plane();
        for (query, pairs) in pairs.into_iter().enumerate() {
            let near = self.plan.near_ranges(self.plan.shape.position(query));
            let near = near.iter().map(|range| range.len() as u64).sum();
            let pairs = pairs.saturating_add(near).saturating_mul(heads);
            self.stats.pairs = self.stats.pairs.saturating_add(pairs);
            self.stats.empty_rows += if pairs == 0 { heads } else { 0 };
        }
        Ok(())
    }

    /// Counts the row tiles of a group; `tiles` says how many key tiles one has that sees explicit keys
    /// in an interval and stands from the first to the last position.
    fn row_tiles(
        &mut self,
        members: &Members<'_>,
        tiles: impl Fn(&Self, Range<usize>, [i64; 2]) -> u64,
    ) {
        for start in (0..members.len()).step_by(self.tile.rows) {
            let end = start.saturating_add(self.tile.rows).min(members.len());
            let (Some(first), Some(last)) = (members.get(start), members.get(end - 1)) else {
                continue;
            };
            let positions = [first, last].map(|query| self.plan.shape.position(query));
            let hull = self.plan.explicit_hull(positions[0], positions[1]);
            let tiles = tiles(self, hull, positions);
            self.tiles = self.tiles.saturating_add(tiles);
            self.row_tiles += 1;
            self.stats.tiles.0 = self.stats.tiles.0.min(tiles);
            self.stats.tiles.2 = self.stats.tiles.2.max(tiles);
            let per_tile = (self.tile.rows as u64).saturating_mul(self.tile.keys as u64);
            let executed = tiles.saturating_mul(per_tile).saturating_mul(self.heads_of_a_plane());
            self.stats.executed_pairs = self.stats.executed_pairs.saturating_add(executed);
        }
    }

    /// Tiles of sinks and window of rows from one position to another.
    fn near_tiles(&self, first: i64, last: i64) -> u64 {
        let [low_sinks, low] = self.plan.near_ranges(first);
        let [high_sinks, high] = self.plan.near_ranges(last);
        // An empty interval may stand anywhere: sinks end at the sinks, and windows only rise.
        let end = high_sinks.end.min(self.plan.near.sink as usize);
        let sinks = low_sinks.start.min(high_sinks.start)..end;
        let window = match self.plan.window() {
            0 => 0..0,
            _ => low.start.min(high.start)..high.end,
        };
        let tiles = |range: Range<usize>| range.len().div_ceil(self.tile.keys) as u64;
        tiles(sinks) + tiles(window)
    }

    fn heads_of_a_plane(&self) -> u64 {
        let heads = self.plan.shape.heads.checked_div(self.plan.plan_heads());
        heads.unwrap_or(0) as u64
    }

    fn finish(mut self) -> PlanStats {
        let shape = &self.plan.shape;
        let visible = |query: usize| match self.plan.causal {
            true => shape.position(query).saturating_add(1).clamp(0, shape.keys as i64) as u64,
            false => shape.keys as u64,
        };
        let rows = (shape.batch as u64).saturating_mul(shape.heads as u64);
        let queries = if rows == 0 { 0 } else { shape.queries };
        let of_one_head = (0..queries).map(visible).fold(0, u64::saturating_add);
        self.stats.dense_pairs = rows.saturating_mul(of_one_head);
        if self.row_tiles == 0 {
            self.stats.tiles.0 = 0;
        } else {
            self.stats.tiles.1 = self.tiles as f64 / self.row_tiles as f64;
        }
        self.stats
    }
}

/// Entries of one group, to be counted in intervals by binary search.
struct GroupEntries {
    starts: Sorted,
    ends: Sorted,
    tile: u64,
    /// Weight of blocks that fills a tile; `None` for entries that are packed key by key.
    full: Option<u64>,
}

/// Keys in rising order, with sums over all before.
#[derive(Default)]
struct Sorted {
    keys: Vec<usize>,
    /// Sums of the keys and of the weights of entries `0..n`: `[entries + 1]`.
    sums: Vec<[u64; 2]>,
}

impl Sorted {
    fn new(mut of: Vec<(usize, u64)>) -> Self {
        of.sort_unstable_by_key(|&(key, _)| key);
        let mut sorted = Sorted { sums: vec![[0, 0]], ..Sorted::default() };
        let mut sum = [0, 0];
        for (key, weight) in of {
            sum = [sum[0] + key as u64, sum[1] + weight];
            sorted.keys.push(key);
            sorted.sums.push(sum);
        }
        sorted
    }

    /// Sum of `bound - key` over keys below `bound`.
    fn distances(&self, bound: usize) -> u64 {
        let below = self.keys.partition_point(|&key| key < bound);
        below as u64 * bound as u64 - self.sums[below][0]
    }
}

impl GroupEntries {
    fn new(plan: &SparsePlan, part: &Part, group: usize, tile: usize) -> Self {
        let entries: Vec<Interval> = part.intervals(group, plan.entry_keys()).collect();
        // Blocks that fill tiles alone, or how many of them fill one.
        let full = match &part.entries {
            Entries::Blocks { bk, .. } | Entries::Bits { bk, .. } => match *bk as usize {
                bk if bk < tile => Some(tile / bk.max(1)),
                _ => Some(1),
            },
            Entries::Ranges { .. } | Entries::Tokens { .. } => None,
        };
        let weight = |e: &Interval| match full {
            Some(1) => (e.end - e.start).div_ceil(tile) as u64,
            _ => 1,
        };
        let starts = Sorted::new(entries.iter().map(|e| (e.start, weight(e))).collect());
        let ends = Sorted::new(entries.iter().map(|e| (e.end, weight(e))).collect());
        GroupEntries { starts, ends, tile: tile as u64, full: full.map(|full| full as u64) }
    }

    fn is_empty(&self) -> bool {
        self.starts.keys.is_empty()
    }

    /// Keys in an interval, with multiplicity.
    fn count(&self, keys: &Range<usize>) -> u64 {
        let before = |bound| self.starts.distances(bound) - self.ends.distances(bound);
        before(keys.end) - before(keys.start)
    }

    /// Tiles of the entries that touch an interval.
    fn tiles(&self, keys: &Range<usize>) -> u64 {
        if keys.is_empty() {
            return 0;
        }
        let Some(full) = self.full else { return self.count(keys).div_ceil(self.tile) };
        let begun = self.starts.keys.partition_point(|&start| start < keys.end);
        let ended = self.ends.keys.partition_point(|&end| end <= keys.start);
        (self.starts.sums[begun][1] - self.ends.sums[ended][1]).div_ceil(full)
    }
}
