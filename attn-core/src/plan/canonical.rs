//! The canonical form.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::Range;

use super::entries::{Interval, set_bits};
use super::keys::is_masked;
use super::{Combine, Entries, Part, Rows, SparsePlan};
use crate::Result;

impl SparsePlan {
    /// The canonical plan with the same sets of keys, which [`SparsePlan::validate`] accepts: queries
    /// and entries sorted, duplicates and touching ranges merged, what reaches beyond the end cut, and
    /// what no query of its group can see dropped. Takes `O(n log n)` for `n` entries and queries.
    ///
    /// # Errors
    /// As [`SparsePlan::check`].
    pub fn canonicalise(&self) -> Result<SparsePlan> {
        self.check()?;
        let offsets = self.gate_offsets();
        let mut plan =
            SparsePlan { parts: Vec::with_capacity(self.parts.len()), ..self.clone_settings() };
        for (index, part) in self.parts.iter().enumerate() {
            let (rows, kept) = self.sorted_rows(&part.rows);
            if let (Combine::Gate(gates), Some(kept), Some(offsets)) =
                (&mut plan.combine, kept, offsets.get(index))
                && let Some(Some(gates)) = gates.get_mut(index)
            {
                let places =
                    kept.iter().filter_map(|&(group, row)| offsets.get(group)?.checked_add(row));
                *gates = places.filter_map(|place| gates.get(place).copied()).collect();
            }
            plan.parts.push(self.sorted_entries(part, rows));
        }
        Ok(plan)
    }

    /// Everything but the parts.
    pub(crate) fn clone_settings(&self) -> SparsePlan {
        SparsePlan {
            parts: Vec::new(),
            combine: self.combine.clone(),
            shape: self.shape,
            causal: self.causal,
            share: self.share,
            near: self.near,
            max_dist: self.max_dist,
        }
    }

    /// Canonical rows, and for each of them its group and its place there, unless nothing moved.
    fn sorted_rows(&self, rows: &Rows) -> (Rows, Option<Vec<(usize, usize)>>) {
        let queries = self.shape.queries;
        match rows {
            Rows::Tiled { .. } => (rows.clone(), None),
            Rows::Ranges { plane_ptr, q_start, .. } => {
                let groups = 0..q_start.len();
                let ranges = groups.map(|group| rows.members(group, queries));
                let (mut start, mut len) = (Vec::new(), Vec::new());
                for (group, members) in ranges.enumerate() {
                    start.push((q_start[group] as usize).min(queries) as u32);
                    len.push(members.len() as u32);
                }
                // A cut range has lost its last gates.
                let kept = (0..len.len())
                    .flat_map(|group| (0..len[group] as usize).map(move |row| (group, row)));
                let kept = matches!(self.combine, Combine::Gate(_)).then(|| kept.collect());
                (Rows::Ranges { plane_ptr: plane_ptr.clone(), q_start: start, q_len: len }, kept)
            }
            Rows::Lists { plane_ptr, q_ptr, .. } => {
                let (mut ptr, mut idx, mut kept) = (vec![0], Vec::new(), Vec::new());
                for group in 0..q_ptr.len().saturating_sub(1) {
                    let members = rows.members(group, queries);
                    let mut sorted: Vec<_> =
                        members.iter().enumerate().map(|(row, q)| (q, row)).collect();
                    sorted.sort_unstable();
                    sorted.dedup_by_key(|&mut (query, _)| query);
                    idx.extend(sorted.iter().map(|&(query, _)| query as u32));
                    kept.extend(sorted.iter().map(|&(_, row)| (group, row)));
                    ptr.push(idx.len() as u32);
                }
                (Rows::Lists { plane_ptr: plane_ptr.clone(), q_ptr: ptr, q_idx: idx }, Some(kept))
            }
        }
    }

    /// The part with canonical entries and these rows.
    fn sorted_entries(&self, part: &Part, rows: Rows) -> Part {
        let keys = self.entry_keys();
        let groups = self.groups(part);
        if let Entries::Bits { bk, origin, words } = &part.entries {
            let mut words = words.clone();
            let per_group = words.len().checked_div(groups).unwrap_or(0);
            for group in 0..groups {
                let hull = self.hull(&rows.members(group, self.shape.queries));
                let words = &mut words[group * per_group..][..per_group];
                let bits: Vec<usize> = set_bits(words).collect();
                for block in bits {
                    let seen =
                        part.entries.whole(block).is_some_and(|block| touches(&block, &hull));
                    if !seen {
                        words[block / 32] &= !(1 << (block % 32));
                    }
                }
            }
            let entries = Entries::Bits { bk: *bk, origin: *origin, words };
            return Part { rows, entries, ..part.clone_settings() };
        }
        let mut sorted = Builder::new(&part.entries, part.bias.is_some());
        let mut entries = Vec::new();
        for group in 0..groups {
            let hull = self.hull(&rows.members(group, self.shape.queries));
            entries.clear();
            entries.extend(part.intervals(group, keys).filter(|entry| !is_masked(entry.bias)));
            entries.sort_unstable_by(Interval::order);
            if !part.multiset {
                entries = skyline(&entries, matches!(part.entries, Entries::Ranges { .. }));
            }
            entries.retain(|entry| touches(&(entry.start..entry.end), &hull));
            sorted.push_group(&entries);
        }
        let (entries, bias) = sorted.finish();
        Part { rows, entries, bias, ..part.clone_settings() }
    }
}

impl Part {
    /// Everything but the data.
    pub(crate) fn clone_settings(&self) -> Part {
        let nothing = Entries::Tokens { row_ptr: Vec::new(), k_idx: Vec::new() };
        Part { multiset: self.multiset, ..Part::new(Rows::Tiled { bq: 1 }, nothing) }
    }
}

/// Writes entries of one kind, group after group.
pub(crate) struct Builder {
    entries: Entries,
    bias: Option<Vec<f32>>,
}

impl Builder {
    /// For entries of the kind and grid of `like`. Not for bits, whose groups are no lists.
    pub fn new(like: &Entries, bias: bool) -> Self {
        let row_ptr = vec![0];
        let entries = match like {
            Entries::Blocks { bk, origin, .. } | Entries::Bits { bk, origin, .. } => {
                Entries::Blocks { bk: *bk, origin: *origin, row_ptr, col: Vec::new() }
            }
            Entries::Ranges { .. } => Entries::Ranges { row_ptr, ranges: Vec::new() },
            Entries::Tokens { .. } => Entries::Tokens { row_ptr, k_idx: Vec::new() },
        };
        Builder { entries, bias: bias.then(Vec::new) }
    }

    /// Intervals that are entries of this kind.
    pub fn push_group(&mut self, group: &[Interval]) {
        let end = match &mut self.entries {
            Entries::Blocks { bk, origin, row_ptr, col } => {
                let block = |e: &Interval| (e.start as u32).saturating_sub(*origin) / (*bk).max(1);
                col.extend(group.iter().map(block));
                row_ptr.push(col.len() as u32);
                col.len()
            }
            Entries::Ranges { row_ptr, ranges } => {
                let range = |e: &Interval| [e.start as u32, (e.end - e.start) as u32];
                ranges.extend(group.iter().map(range));
                row_ptr.push(ranges.len() as u32);
                ranges.len()
            }
            Entries::Tokens { row_ptr, k_idx } => {
                k_idx.extend(group.iter().map(|entry| entry.start as u32));
                row_ptr.push(k_idx.len() as u32);
                k_idx.len()
            }
            Entries::Bits { .. } => 0,
        };
        if let Some(bias) = &mut self.bias {
            bias.extend(group.iter().map(|entry| entry.bias));
            debug_assert_eq!(bias.len(), end);
        }
    }

    pub fn finish(self) -> (Entries, Option<Vec<f32>>) {
        (self.entries, self.bias)
    }
}

pub(crate) fn touches(entry: &Range<usize>, hull: &Range<usize>) -> bool {
    entry.start.max(hull.start) < entry.end.min(hull.end)
}

/// An interval that has begun, ordered by bias.
struct Open(Interval);

impl Ord for Open {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.bias.total_cmp(&other.0.bias).then(self.0.end.cmp(&other.0.end))
    }
}

impl PartialOrd for Open {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Eq for Open {}

impl PartialEq for Open {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

/// Disjoint intervals in rising order that give every key the largest bias of the intervals it is in;
/// `sorted` is by start. Neighbours of equal bias become one if `merge` is set.
pub(crate) fn skyline(sorted: &[Interval], merge: bool) -> Vec<Interval> {
    let mut result: Vec<Interval> = Vec::with_capacity(sorted.len());
    let mut open: BinaryHeap<Open> = BinaryHeap::new();
    let mut rest = sorted.iter().peekable();
    let mut at = 0;
    loop {
        while let Some(entry) = rest.next_if(|entry| entry.start <= at) {
            open.push(Open(*entry));
        }
        while open.peek().is_some_and(|top| top.0.end <= at) {
            open.pop();
        }
        let next = rest.peek().map(|entry| entry.start);
        match (open.peek(), next) {
            (None, None) => return result,
            (None, Some(start)) => at = start,
            (Some(Open(top)), next) => {
                // Without merging an entry stays whole: blocks and tokens are equal or disjoint.
                let end = next.map_or(top.end, |next| next.min(top.end));
                match result.last_mut() {
                    Some(last)
                        if last.end == at
                            && last.bias.total_cmp(&top.bias).is_eq()
                            && (merge || at > top.start) =>
                    {
                        last.end = end;
                    }
                    _ => result.push(Interval { start: at, end, bias: top.bias }),
                }
                at = end;
            }
        }
    }
}
