//! What has a meaning, and what is canonical.

use std::ops::Range;

use super::entries::{Interval, blocks};
use super::keys::is_masked;
use super::{Combine, Entries, Part, Rows, SparsePlan};
use crate::{Error, Result};

/// Positions stay in 34 bits, so that sums of a few of them fit everywhere.
const REACH: u64 = 1 << 32;

impl SparsePlan {
    /// Whether the plan has a meaning: extents that fit together, vectors of the right lengths, offsets
    /// that never fall, queries in range, numbers that can be added.
    ///
    /// # Errors
    /// [`Error::Config`] for settings that are out of range or contradict each other, [`Error::Data`]
    /// for vectors. Both name the field.
    pub fn check(&self) -> Result<()> {
        self.check_settings()?;
        for part in &self.parts {
            let groups = self.check_rows(&part.rows)?;
            self.check_entries(part, groups)?;
        }
        self.check_combine()
    }

    /// [`SparsePlan::check`], and whether the plan is canonical: in every group queries and entries
    /// rise strictly, entries do not overlap, touching ranges of equal bias are merged, nothing reaches
    /// beyond the end except a last block, and no entry is wholly out of sight: in the future, in the
    /// near part, beyond the largest distance, or masked by its bias. For [`Rows::Lists`] sight is that
    /// of all queries from the first to the last of the group. In a multiset entries only do not fall.
    ///
    /// # Errors
    /// As [`SparsePlan::check`], and [`Error::Data`] for what [`SparsePlan::canonicalise`] would change.
    pub fn validate(&self) -> Result<()> {
        self.check()?;
        for part in &self.parts {
            self.canonical_rows(&part.rows)?;
            let groups = if part.entries.nnz() == 0 { 0 } else { self.groups(part) };
            for group in 0..groups {
                let hull = self.hull(&part.rows.members(group, self.shape.queries));
                self.canonical_group(part, group, hull)?;
            }
        }
        Ok(())
    }

    /// Number of groups of a part.
    pub(crate) fn groups(&self, part: &Part) -> usize {
        part.rows.groups(self.planes(), self.shape.queries).unwrap_or(0)
    }

    fn check_settings(&self) -> Result<()> {
        let shape = &self.shape;
        let words = |arg, value: usize| match u32::try_from(value) {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::config(arg, "a number of 32 bits", value)),
        };
        words("queries", shape.queries)?;
        words("keys", shape.keys)?;
        words("planes", self.planes())?;
        if !shape.heads.is_multiple_of(shape.heads_kv) {
            let expected = format!("a divisor of the {} heads", shape.heads);
            return Err(Error::config("heads_kv", expected, shape.heads_kv));
        }
        if shape.built_keys > shape.keys {
            let expected = format!("at most the {} keys", shape.keys);
            return Err(Error::config("built_keys", expected, shape.built_keys));
        }
        if shape.q_off.unsigned_abs() > REACH {
            return Err(Error::config("q_off", "between -2^32 and 2^32", shape.q_off));
        }
        if !self.causal && (self.near.sink > 0 || self.window() > 0) {
            let got = format!("{:?} in a plan that is not", self.near);
            return Err(Error::config("near", "a causal plan", got));
        }
        Ok(())
    }

    /// Number of groups.
    pub(crate) fn check_rows(&self, rows: &Rows) -> Result<usize> {
        let planes = self.planes();
        let (plane_ptr, groups) = match rows {
            Rows::Tiled { bq: 0 } => return Err(Error::config("bq", "at least 1", 0)),
            Rows::Tiled { .. } => {
                let groups = rows.groups(planes, self.shape.queries);
                let groups = groups.filter(|&groups| u32::try_from(groups).is_ok());
                return groups.ok_or_else(|| Error::config("bq", "fewer than 2^32 groups", "more"));
            }
            Rows::Lists { plane_ptr, q_ptr, q_idx } => {
                let groups = q_ptr.len().saturating_sub(1);
                check_ptr("q_ptr", q_ptr, groups, q_idx.len())?;
                if let Some(q) = q_idx.iter().find(|&&q| q as usize >= self.shape.queries) {
                    let expected = format!("queries below {}", self.shape.queries);
                    return Err(Error::data("q_idx", expected, q));
                }
                (plane_ptr, groups)
            }
            Rows::Ranges { plane_ptr, q_start, q_len } => {
                expect_len("q_len", q_len.len(), q_start.len())?;
                (plane_ptr, q_start.len())
            }
        };
        check_ptr("plane_ptr", plane_ptr, planes, groups)?;
        Ok(groups)
    }

    fn check_entries(&self, part: &Part, groups: usize) -> Result<()> {
        let entries = &part.entries;
        match entries {
            Entries::Blocks { bk: 0, .. } | Entries::Bits { bk: 0, .. } => {
                return Err(Error::config("bk", "at least 1", 0));
            }
            Entries::Bits { bk, origin, words } => {
                let per_group = blocks(self.entry_keys(), *bk, *origin).div_ceil(32);
                if groups.checked_mul(per_group) != Some(words.len()) {
                    let expected = format!("{groups} groups of {per_group} words");
                    return Err(Error::data("words", expected, format!("{} words", words.len())));
                }
                if part.bias.is_some() {
                    return Err(Error::config("bias", "none for bits", "some"));
                }
            }
            _ => {}
        }
        if let Some(row_ptr) = entries.row_ptr() {
            check_ptr("row_ptr", row_ptr, groups, entries.nnz())?;
        }
        if let Some(bias) = &part.bias {
            expect_len("bias", bias.len(), entries.nnz())?;
            check_terms("bias", bias)?;
        }
        match &part.q_slot {
            Some(_) => Err(Error::config("q_slot", "none: not supported yet", "some")),
            None => Ok(()),
        }
    }

    fn check_combine(&self) -> Result<()> {
        match &self.combine {
            Combine::Single => self.check_single(),
            Combine::Lse | Combine::Mean => Ok(()),
            Combine::Gate(gates) => {
                if gates.len() != self.parts.len() {
                    let expected = format!("one for each of {} parts", self.parts.len());
                    return Err(Error::data("gate", expected, gates.len()));
                }
                for (part, gates) in self.parts.iter().zip(gates) {
                    let Some(gates) = gates else { continue };
                    let rows = part.rows.total(self.planes(), self.shape.queries);
                    expect_len("gate", gates.len(), rows.unwrap_or(usize::MAX))?;
                    check_terms("gate", gates)?;
                }
                Ok(())
            }
        }
    }

    /// No query is in two groups that have entries.
    fn check_single(&self) -> Result<()> {
        if let [Part { rows: Rows::Tiled { .. }, .. }] = &self.parts[..] {
            return Ok(());
        }
        let queries = self.shape.queries;
        let mut taken: Vec<Range<usize>> = Vec::new();
        for plane in 0..self.planes() {
            taken.clear();
            for part in &self.parts {
                for group in part.rows.plane_groups(plane, queries) {
                    if part.entries.slots(group, self.entry_keys()).next().is_some() {
                        part.rows.members(group, queries).push_ranges(&mut taken);
                    }
                }
            }
            taken.sort_unstable_by_key(|range| range.start);
            if let Some(two) = taken.windows(2).find(|two| two[0].end > two[1].start) {
                let expected =
                    "each query in at most one group with entries, or combine other than Single";
                let got = format!("query {} of plane {plane} in two", two[1].start);
                return Err(Error::data("rows", expected, got));
            }
        }
        Ok(())
    }

    fn canonical_rows(&self, rows: &Rows) -> Result<()> {
        match rows {
            Rows::Tiled { .. } => Ok(()),
            Rows::Lists { q_ptr, q_idx, .. } => {
                for list in q_ptr.windows(2).filter_map(|p| q_idx.get(p[0] as usize..p[1] as usize))
                {
                    if let Some(two) = list.windows(2).find(|two| two[0] >= two[1]) {
                        let got = format!("{} after {}", two[1], two[0]);
                        return Err(Error::data("q_idx", "rising queries in each group", got));
                    }
                }
                Ok(())
            }
            Rows::Ranges { q_start, q_len, .. } => {
                let queries = self.shape.queries as u64;
                let mut ranges = q_start.iter().zip(q_len);
                match ranges.find(|&(&start, &len)| u64::from(start) + u64::from(len) > queries) {
                    Some((start, len)) => {
                        let got = format!("{len} queries from {start} on");
                        Err(Error::data("q_len", format!("ranges that end by {queries}"), got))
                    }
                    None => Ok(()),
                }
            }
        }
    }

    fn canonical_group(&self, part: &Part, group: usize, hull: Range<usize>) -> Result<()> {
        let keys = self.entry_keys();
        let arg = match &part.entries {
            Entries::Blocks { .. } => "col",
            Entries::Bits { .. } => "words",
            Entries::Ranges { .. } => "ranges",
            Entries::Tokens { .. } => "k_idx",
        };
        let mut last: Option<Interval> = None;
        for slot in part.entries.slots(group, keys) {
            let Some(Range { start, end }) = part.entries.whole(slot) else { continue };
            let bias = part.bias.as_ref().and_then(|bias| bias.get(slot)).map_or(0.0, |bias| *bias);
            let entry = Interval { start, end, bias };
            let fault = |expected: &str| {
                let got = format!("keys {start}..{end} in group {group}");
                Err(Error::data(arg, expected, got))
            };
            if start >= keys || (matches!(part.entries, Entries::Ranges { .. }) && end > keys) {
                return fault(&format!("entries below key {keys}"));
            }
            if start.max(hull.start) >= end.min(hull.end) {
                return fault("entries of which some query of the group can see a key");
            }
            if is_masked(bias) {
                return Err(Error::data("bias", "biases above -1e30", bias));
            }
            if last.is_some_and(|last| !follows(part, &last, &entry)) {
                return fault("rising entries without overlap, merged where they touch");
            }
            last = Some(entry);
        }
        Ok(())
    }
}

/// Whether `next` may stand after `last` in a canonical group.
fn follows(part: &Part, last: &Interval, next: &Interval) -> bool {
    if part.multiset && !matches!(part.entries, Entries::Bits { .. }) {
        return last.order(next).is_le();
    }
    let touching = matches!(part.entries, Entries::Ranges { .. })
        && last.end == next.start
        && last.bias.total_cmp(&next.bias).is_eq();
    last.end <= next.start && !touching
}

/// Refuses what are not `count + 1` offsets from 0 to `last`.
fn check_ptr(arg: &'static str, ptr: &[u32], count: usize, last: usize) -> Result<()> {
    let expected = || format!("{count} + 1 offsets that start at 0, never fall, and end at {last}");
    if Some(ptr.len()) != count.checked_add(1) {
        return Err(Error::data(arg, expected(), format!("{} offsets", ptr.len())));
    }
    if let Some(&first) = ptr.first().filter(|&&first| first != 0) {
        return Err(Error::data(arg, expected(), format!("first offset {first}")));
    }
    if let Some(&end) = ptr.last().filter(|&&end| end as usize != last) {
        return Err(Error::data(arg, expected(), format!("last offset {end}")));
    }
    match ptr.windows(2).find(|two| two[0] > two[1]) {
        Some(two) => Err(Error::data(arg, expected(), format!("{} after {}", two[1], two[0]))),
        None => Ok(()),
    }
}

fn expect_len(arg: &'static str, got: usize, expected: usize) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::data(arg, format!("{expected} elements"), format!("{got} elements")))
}

/// Refuses terms of a logit that are NaN or +inf.
fn check_terms(arg: &'static str, terms: &[f32]) -> Result<()> {
    match terms.iter().find(|term| term.is_nan() || **term == f32::INFINITY) {
        Some(term) => Err(Error::data(arg, "numbers below infinity", term)),
        None => Ok(()),
    }
}
