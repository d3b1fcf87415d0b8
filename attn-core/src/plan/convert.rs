//! The same sets of keys in another kind of entries.

use std::ops::Range;

use super::canonical::{Builder, skyline, touches};
use super::entries::{Interval, block_start, blocks};
use super::{Entries, Part, SparsePlan};
use crate::{Error, Result};

impl SparsePlan {
    /// The canonical plan with [`Entries::Ranges`] in all parts.
    ///
    /// # Errors
    /// As [`SparsePlan::check`].
    pub fn to_ranges(&self) -> Result<SparsePlan> {
        let like = Entries::Ranges { row_ptr: Vec::new(), ranges: Vec::new() };
        self.convert(&like, |entries, _| Ok(entries.to_vec()))
    }

    /// The canonical plan with [`Entries::Tokens`] in all parts: the keys that some query between the
    /// first and the last of the group can see.
    ///
    /// # Errors
    /// As [`SparsePlan::check`], and [`Error::Data`] where 32 bits do not count the keys, or memory
    /// does not hold them.
    pub fn to_tokens(&self) -> Result<SparsePlan> {
        let like = Entries::Tokens { row_ptr: Vec::new(), k_idx: Vec::new() };
        let mut total = 0_u64;
        self.convert(&like, |entries, hull| {
            let mut tokens = Vec::new();
            let seen = |e: &Interval| e.start.max(hull.start)..e.end.min(hull.end);
            let count: usize = entries.iter().map(|e| seen(e).len()).sum();
            total = total.saturating_add(count as u64);
            if total > u32::MAX.into() || tokens.try_reserve_exact(count).is_err() {
                return Err(Error::data(
                    "entries",
                    "fewer than 2^32 keys",
                    format!("{total} keys"),
                ));
            }
            for entry in entries {
                let token = |start| Interval { start, end: start + 1, bias: entry.bias };
                tokens.extend(seen(entry).map(token));
            }
            // Entries of a multiset may overlap.
            tokens.sort_unstable_by(Interval::order);
            Ok(tokens)
        })
    }

    /// The canonical plan with [`Entries::Blocks`] of `bk` keys from `origin` on in all parts.
    ///
    /// # Errors
    /// As [`SparsePlan::check`], and [`Error::Data`] where the keys of a group, as far as they can be
    /// seen, are not those of whole blocks.
    pub fn to_blocks(&self, bk: u32, origin: u32) -> Result<SparsePlan> {
        if bk == 0 {
            return Err(Error::config("bk", "at least 1", 0));
        }
        let like = Entries::Blocks { bk, origin, row_ptr: Vec::new(), col: Vec::new() };
        let keys = self.entry_keys();
        self.convert(&like, |entries, hull| {
            let mut result = Vec::new();
            for entry in entries {
                let (first, last) = (entry.start.max(hull.start), entry.end.min(hull.end));
                let partial = || {
                    let expected = format!("whole blocks of {bk} keys from key {origin} on");
                    Err(Error::data("entries", expected, format!("keys {first}..{last}")))
                };
                let Some(before) = first.checked_sub(origin as usize) else { return partial() };
                let mut block = before / bk as usize;
                while let Some(start) = block_start(origin, bk, block).filter(|&start| start < last)
                {
                    let end = start.saturating_add(bk as usize).min(keys);
                    if start.max(hull.start) < first || end.min(hull.end) > last {
                        return partial();
                    }
                    result.push(Interval { start, end, bias: entry.bias });
                    block += 1;
                }
            }
            result.sort_unstable_by(Interval::order);
            Ok(result)
        })
    }

    /// The canonical plan with [`Entries::Bits`] of `bk` keys from `origin` on in all parts.
    ///
    /// # Errors
    /// As [`SparsePlan::to_blocks`], and [`Error::Config`] for parts with biases or multisets, which
    /// bits cannot hold.
    pub fn to_bits(&self, bk: u32, origin: u32) -> Result<SparsePlan> {
        for part in &self.parts {
            if part.bias.is_some() || part.multiset {
                let got = if part.multiset { "a multiset" } else { "a bias for each entry" };
                return Err(Error::config("entries", "sets without bias", got));
            }
        }
        let mut plan = self.to_blocks(bk, origin)?;
        let per_group = blocks(self.entry_keys(), bk, origin).div_ceil(32);
        for part in &mut plan.parts {
            let Entries::Blocks { row_ptr, col, .. } = &part.entries else { continue };
            let groups = row_ptr.len().saturating_sub(1);
            let mut words = Vec::new();
            let len = groups.checked_mul(per_group);
            if len.is_none_or(|len| words.try_reserve_exact(len).is_err()) {
                let got = format!("{groups} groups of {per_group} words");
                return Err(Error::data("words", "as many as fit in memory", got));
            }
            words.resize(groups * per_group, 0);
            for group in 0..groups {
                for &block in &col[row_ptr[group] as usize..row_ptr[group + 1] as usize] {
                    words[group * per_group + block as usize / 32] |= 1 << (block % 32);
                }
            }
            part.entries = Entries::Bits { bk, origin, words };
        }
        Ok(plan)
    }

    /// Rewrites every group from its intervals (merged where they touch, unless in a multiset).
    fn convert(
        &self,
        like: &Entries,
        mut rewrite: impl FnMut(&[Interval], &Range<usize>) -> Result<Vec<Interval>>,
    ) -> Result<SparsePlan> {
        let canonical = self.canonicalise()?;
        let mut plan = canonical.clone_settings();
        for part in &canonical.parts {
            let mut builder = Builder::new(like, part.bias.is_some());
            for group in 0..canonical.groups(part) {
                let members = part.rows.members(group, canonical.shape.queries);
                let hull = canonical.hull(&members);
                let mut entries: Vec<_> = part.intervals(group, canonical.entry_keys()).collect();
                if !part.multiset {
                    entries = skyline(&entries, true);
                }
                let mut entries = rewrite(&entries, &hull)?;
                entries.retain(|entry| touches(&(entry.start..entry.end), &hull));
                builder.push_group(&entries);
            }
            let (entries, bias) = builder.finish();
            let rows = part.rows.clone();
            plan.parts.push(Part { rows, entries, bias, ..part.clone_settings() });
        }
        Ok(plan)
    }
}
