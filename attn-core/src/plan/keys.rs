//! The definition of a plan's sets of keys.

use std::ops::Range;

use super::rows::Members;
use super::{Combine, SparsePlan};
use crate::{BitMask, Error, Result};

/// One softmax of a query: a group that lists it, or the near part.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct QueryGroup {
    /// Keys with their biases, by rising key; in a multiset some of them several times.
    pub keys: Vec<(usize, f32)>,
    /// Weight of the group, `lambda_g`; `None` where it is the group's log-sum-exp.
    pub weight: Option<f32>,
    /// Part and index of the weight in it, where the weight is a gate of the plan.
    pub(crate) gate: Option<(usize, usize)>,
}

/// Where a query is listed: in row `row` of group `group` of part `part`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Listed {
    pub part: usize,
    pub group: usize,
    pub row: usize,
}

/// Whether a bias takes its key out of the softmax, or a gate its group.
pub(crate) fn is_masked(bias: f32) -> bool {
    bias <= -1e30
}

impl SparsePlan {
    /// The keys that query `query` of head `head` of batch entry `batch` attends to, with their biases,
    /// by rising key: **the definition of a plan**. A key that counts several times (in a multiset, or
    /// in several groups unless [`Combine::Single`]) is there several times. Out-of-range indices have
    /// no keys.
    ///
    /// The plan must have passed [`SparsePlan::check`]; otherwise the answer has no meaning, but the
    /// call still returns. The work is that of all rows of the plane: for all queries of a plan use
    /// [`SparsePlan::to_dense_mask`].
    pub fn keys_of(&self, batch: usize, head: usize, query: usize) -> Vec<(usize, f32)> {
        let groups = self.groups_of(batch, head, query);
        let mut keys: Vec<_> = groups.into_iter().flat_map(|group| group.keys).collect();
        keys.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        keys
    }

    /// The same apart for each softmax: the groups that list the query in order, then the near part
    /// if it is not empty; a single group where [`SparsePlan::combine`] is `Single`.
    pub fn groups_of(&self, batch: usize, head: usize, query: usize) -> Vec<QueryGroup> {
        let Some(plane) = self.plane_of(batch, head).filter(|_| query < self.shape.queries) else {
            return Vec::new();
        };
        let queries = self.shape.queries;
        let mut listed = Vec::new();
        for (part, rows) in self.parts.iter().map(|part| &part.rows).enumerate() {
            listed.extend(rows.plane_groups(plane, queries).filter_map(|group| {
                let row = rows.members(group, queries).find(query)?;
                Some(Listed { part, group, row })
            }));
        }
        self.softmaxes(query, &listed, &self.gate_offsets())
    }

    /// The pairs of a query and a key with `key` in `S(batch, head, query)`.
    ///
    /// # Errors
    /// As [`SparsePlan::check`], and [`Error::Data`] where `batch` or `head` is out of range.
    pub fn to_dense_mask(&self, batch: usize, head: usize) -> Result<BitMask> {
        self.check()?;
        let Some(plane) = self.plane_of(batch, head) else {
            let expected = format!(
                "a batch entry below {} and a head below {}",
                self.shape.batch, self.shape.heads
            );
            return Err(Error::data("head", expected, format!("({batch}, {head})")));
        };
        let (queries, keys) = (self.shape.queries, self.shape.keys);
        let mut words = Vec::new();
        let bits = queries.checked_mul(keys.div_ceil(32));
        if bits.is_none_or(|bits| words.try_reserve_exact(bits).is_err()) {
            return Err(Error::data(
                "plan",
                "a mask that fits in memory",
                format!("{queries} x {keys}"),
            ));
        }
        let (listing, offsets) = (self.listing(plane)?, self.gate_offsets());
        for query in 0..queries {
            let row = words.len();
            words.resize(row + keys.div_ceil(32), 0_u32);
            for group in self.softmaxes(query, listing.of(query), &offsets) {
                for (key, _) in group.keys {
                    words[row + key / 32] |= 1 << (key % 32);
                }
            }
        }
        BitMask::from_words(queries, keys, words)
    }

    /// Keys of the near part at position `pos`: sinks and window.
    pub(crate) fn near_ranges(&self, pos: i64) -> [Range<usize>; 2] {
        let far = self.farthest(pos);
        let window = pos.saturating_sub_unsigned(self.window()).saturating_add(1);
        let end = pos.saturating_add(1);
        let keys = self.shape.keys;
        [clip(far, i64::from(self.near.sink).min(window), keys), clip(window.max(far), end, keys)]
    }

    /// Where explicit keys count at position `pos`.
    pub(crate) fn explicit_range(&self, pos: i64) -> Range<usize> {
        self.explicit_hull(pos, pos)
    }

    /// The smallest interval that holds all explicit keys that count at positions `first..=last`.
    pub(crate) fn explicit_hull(&self, first: i64, last: i64) -> Range<usize> {
        let end = match self.causal {
            true => last.saturating_sub_unsigned(self.window()).saturating_add(1),
            false => i64::MAX,
        };
        clip(self.farthest(first).max(self.near.sink.into()), end, self.entry_keys())
    }

    /// [`SparsePlan::explicit_hull`] of the queries of a group.
    pub(crate) fn hull(&self, members: &Members<'_>) -> Range<usize> {
        members.bounds().map_or(0..0, |(first, last)| {
            self.explicit_hull(self.shape.position(first), self.shape.position(last))
        })
    }

    /// Keys that entries can hold.
    pub(crate) fn entry_keys(&self) -> usize {
        self.shape.built_keys.min(self.shape.keys)
    }

    /// For each part with gates, where the gates of every group begin.
    pub(crate) fn gate_offsets(&self) -> Vec<Vec<usize>> {
        let gates: &[_] = if let Combine::Gate(gates) = &self.combine { gates } else { &[] };
        let offsets = |(part, gates): (&super::Part, &Option<Vec<f32>>)| match gates {
            Some(_) => part.rows.row_offsets(self.planes(), self.shape.queries),
            None => Vec::new(),
        };
        self.parts.iter().zip(gates).map(offsets).collect()
    }

    /// The softmaxes of a query that is listed in these places.
    pub(crate) fn softmaxes(
        &self,
        query: usize,
        listed: &[Listed],
        gate_offsets: &[Vec<usize>],
    ) -> Vec<QueryGroup> {
        // A query that is twice in one list is in it once.
        let mut listed = listed.to_vec();
        listed.dedup_by_key(|at| (at.part, at.group));
        let pos = self.shape.position(query);
        let near = self.near_ranges(pos).into_iter().flatten().map(|key| (key, 0.0));
        if self.combine == Combine::Single {
            let mut keys: Vec<_> = near.collect();
            listed.iter().for_each(|at| self.explicit_keys(at, pos, &mut keys));
            let multiset = listed.iter().any(|at| self.parts[at.part].multiset);
            return vec![QueryGroup { keys: set(keys, multiset), weight: None, gate: None }];
        }
        let weight = (self.combine == Combine::Mean).then_some(0.0);
        let mut groups: Vec<_> = listed
            .iter()
            .filter_map(|at| {
                let gate = self.gate(at, gate_offsets);
                let weight = gate.map_or(weight, |(_, gate)| Some(gate));
                if weight.is_some_and(is_masked) {
                    return None;
                }
                let mut keys = Vec::new();
                self.explicit_keys(at, pos, &mut keys);
                let keys = set(keys, self.parts[at.part].multiset);
                Some(QueryGroup { keys, weight, gate: gate.map(|(index, _)| (at.part, index)) })
            })
            .collect();
        let near = QueryGroup { keys: near.collect(), weight, gate: None };
        groups.extend(Some(near).filter(|near| !near.keys.is_empty()));
        groups
    }

    /// The gate of a row, and its index in the part.
    fn gate(&self, at: &Listed, offsets: &[Vec<usize>]) -> Option<(usize, f32)> {
        let Combine::Gate(gates) = &self.combine else { return None };
        let index = offsets.get(at.part)?.get(at.group)?.checked_add(at.row)?;
        Some((index, *gates.get(at.part)?.as_ref()?.get(index)?))
    }

    fn explicit_keys(&self, at: &Listed, pos: i64, into: &mut Vec<(usize, f32)>) {
        let seen = self.explicit_range(pos);
        for entry in self.parts[at.part].intervals(at.group, self.entry_keys()) {
            let keys = entry.start.max(seen.start)..entry.end.min(seen.end);
            into.extend(keys.map(|key| (key, entry.bias)));
        }
    }

    /// The lowest key within the largest distance.
    fn farthest(&self, pos: i64) -> i64 {
        self.max_dist.map_or(0, |left| pos.saturating_sub(left.into()))
    }

    /// Where each query of a plane is listed.
    pub(crate) fn listing(&self, plane: usize) -> Result<Listing> {
        let queries = self.shape.queries;
        let each = |visit: &mut dyn FnMut(usize, Listed)| {
            for (part, rows) in self.parts.iter().map(|part| &part.rows).enumerate() {
                for group in rows.plane_groups(plane, queries) {
                    for (row, query) in rows.members(group, queries).iter().enumerate() {
                        visit(query, Listed { part, group, row });
                    }
                }
            }
        };
        let mut ends = filled(queries, 0_usize)?;
        each(&mut |query, _| ends[query] += 1);
        let mut total = 0;
        for end in &mut ends {
            (*end, total) = (total, total + *end);
        }
        let mut places = filled(total, Listed::default())?;
        each(&mut |query, listed| {
            places[ends[query]] = listed;
            ends[query] += 1;
        });
        Ok(Listing { ends, places })
    }
}

/// Where each query of a plane is listed, in order of parts and groups.
pub(crate) struct Listing {
    ends: Vec<usize>,
    places: Vec<Listed>,
}

impl Listing {
    pub fn of(&self, query: usize) -> &[Listed] {
        let start = if query == 0 { 0 } else { self.ends[query - 1] };
        &self.places[start..self.ends[query]]
    }
}

/// `len` equal elements, unless memory does not hold them.
pub(crate) fn filled<T: Clone>(len: usize, value: T) -> Result<Vec<T>> {
    let mut all = Vec::new();
    if all.try_reserve_exact(len).is_err() {
        return Err(Error::data("plan", "rows that fit in memory", format!("{len} rows")));
    }
    all.resize(len, value);
    Ok(all)
}

/// Sorted keys that take part, each once with the largest of its biases unless in a multiset.
fn set(mut keys: Vec<(usize, f32)>, multiset: bool) -> Vec<(usize, f32)> {
    keys.retain(|&(_, bias)| !is_masked(bias));
    keys.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)));
    if !multiset {
        keys.dedup_by_key(|&mut (key, _)| key);
    }
    keys
}

/// `start..end` cut to `0..keys`.
fn clip(start: i64, end: i64, keys: usize) -> Range<usize> {
    let clip = |x: i64| usize::try_from(x.max(0)).map_or(keys, |x| x.min(keys));
    let start = clip(start);
    start..clip(end).max(start)
}
