//! Plans from what selectors and users have.

use super::entries::blocks;
use super::{Combine, Entries, Near, Part, PlanShape, Rows, Share, SparsePlan};
use crate::{Error, Result};

/// A group of [`SparsePlan::from_lists`]: its queries and its keys, in any order.
pub type Lists = (Vec<u32>, Vec<u32>);

impl SparsePlan {
    /// All keys, or all up to the query's own, in groups of `bq` queries: dense attention.
    ///
    /// # Errors
    /// As [`SparsePlan::check`].
    pub fn full(shape: PlanShape, causal: bool, bq: u32) -> Result<SparsePlan> {
        let plan = SparsePlan::new(shape, Share::AllHeads, causal, Vec::new());
        plan.with_tiles(bq, |end| Ok(Some([0, to_word("keys", end)?])))
    }

    /// Sinks and a causal window, and no other key, in groups of `bq` queries.
    ///
    /// # Errors
    /// As [`SparsePlan::check`].
    pub fn near_only(shape: PlanShape, near: Near, bq: u32) -> Result<SparsePlan> {
        let plan = SparsePlan::new(shape, Share::AllHeads, true, Vec::new()).with_near(near);
        plan.with_tiles(bq, |_| Ok(None))
    }

    /// Blocks of `bk` keys for each block of `bq` queries: `col[row_ptr[r] .. row_ptr[r + 1]]` for row
    /// `r` of `[planes, ceil(queries / bq)]`.
    ///
    /// # Errors
    /// As [`SparsePlan::check`], and [`Error::Data`] for a block beyond the end.
    pub fn from_block_csr(
        shape: PlanShape,
        share: Share,
        causal: bool,
        [bq, bk]: [u32; 2],
        row_ptr: Vec<u32>,
        col: Vec<u32>,
    ) -> Result<SparsePlan> {
        let count = blocks(shape.built_keys, bk, 0);
        if let Some(block) = col.iter().find(|&&block| block as usize >= count) {
            return Err(Error::data("col", format!("blocks below {count}"), block));
        }
        let entries = Entries::Blocks { bk, origin: 0, row_ptr, col };
        let part = Part::new(Rows::Tiled { bq }, entries);
        SparsePlan::new(shape, share, causal, vec![part]).canonicalise()
    }

    /// The same from bits `[planes, ceil(queries / bq), ceil(blocks / 32)]` ([`Entries::Bits`]) of
    /// blocks that start at key `origin`.
    ///
    /// # Errors
    /// As [`SparsePlan::check`].
    pub fn from_bits(
        shape: PlanShape,
        share: Share,
        causal: bool,
        [bq, bk, origin]: [u32; 3],
        words: Vec<u32>,
    ) -> Result<SparsePlan> {
        let part = Part::new(Rows::Tiled { bq }, Entries::Bits { bk, origin, words });
        SparsePlan::new(shape, share, causal, vec![part]).canonicalise()
    }

    /// The smallest plan of whole blocks that holds every pair for which `allows(plane, query, key)` is
    /// true; it may hold more, unless `bq` and `bk` are 1. Asks for pairs until one decides a block.
    ///
    /// # Errors
    /// As [`SparsePlan::check`].
    pub fn covering(
        shape: PlanShape,
        share: Share,
        causal: bool,
        [bq, bk]: [u32; 2],
        mut allows: impl FnMut(usize, usize, usize) -> bool,
    ) -> Result<SparsePlan> {
        let plan = SparsePlan::new(shape, share, causal, Vec::new());
        plan.check()?;
        if bk == 0 {
            return Err(Error::config("bk", "at least 1", 0));
        }
        let rows = Rows::Tiled { bq };
        plan.check_rows(&rows)?;
        let (mut row_ptr, mut col) = (vec![0], Vec::new());
        for plane in 0..plan.planes() {
            for group in rows.plane_groups(plane, shape.queries) {
                let members = rows.members(group, shape.queries);
                for block in 0..blocks(shape.built_keys, bk, 0) {
                    let start = block * bk as usize;
                    let keys = start..start.saturating_add(bk as usize).min(shape.built_keys);
                    if members.iter().any(|query| keys.clone().any(|key| allows(plane, query, key)))
                    {
                        col.push(to_word("col", block)?);
                    }
                }
                row_ptr.push(to_word("row_ptr", col.len())?);
            }
        }
        SparsePlan::from_block_csr(shape, share, causal, [bq, bk], row_ptr, col)
    }

    /// Blocks of any sizes: in plane `p` the queries are cut at `rows[p]` and the keys at `cols[p]`,
    /// offsets that start at 0, never fall, and end at the number of queries and of keys; the pair of
    /// row block `r` and column block `c` is in where `on(p, r, c)`.
    ///
    /// # Errors
    /// As [`SparsePlan::check`], and [`Error::Data`] for offsets that are none.
    pub fn from_variable_blocks(
        shape: PlanShape,
        share: Share,
        causal: bool,
        rows: &[Vec<u32>],
        cols: &[Vec<u32>],
        mut on: impl FnMut(usize, usize, usize) -> bool,
    ) -> Result<SparsePlan> {
        let plan = SparsePlan::new(shape, share, causal, Vec::new());
        let (mut plane_ptr, mut row_ptr) = (vec![0], vec![0]);
        let (mut q_start, mut q_len, mut ranges) = (Vec::new(), Vec::new(), Vec::new());
        for (arg, lists) in [("rows", rows), ("cols", cols)] {
            if lists.len() != plan.planes() {
                return Err(Error::data(arg, format!("{} planes", plan.planes()), lists.len()));
            }
        }
        for (plane, (rows, cols)) in rows.iter().zip(cols).enumerate() {
            let (rows, cols) =
                (cuts("rows", rows, shape.queries)?, cuts("cols", cols, shape.keys)?);
            for (r, &[start, len]) in rows.iter().enumerate() {
                q_start.push(start);
                q_len.push(len);
                ranges.extend((0..cols.len()).filter(|&c| on(plane, r, c)).map(|c| cols[c]));
                row_ptr.push(to_word("row_ptr", ranges.len())?);
            }
            plane_ptr.push(to_word("plane_ptr", q_start.len())?);
        }
        let rows = Rows::Ranges { plane_ptr, q_start, q_len };
        let part = Part::new(rows, Entries::Ranges { row_ptr, ranges });
        SparsePlan { parts: vec![part], ..plan }.canonicalise()
    }

    /// Any groups of queries and keys, for each plane a list of groups.
    ///
    /// # Errors
    /// As [`SparsePlan::check`], and [`Error::Data`] for a key beyond the end.
    pub fn from_lists(
        shape: PlanShape,
        share: Share,
        causal: bool,
        planes: &[Vec<Lists>],
        combine: Combine,
    ) -> Result<SparsePlan> {
        let (mut plane_ptr, mut q_ptr, mut row_ptr) = (vec![0], vec![0], vec![0]);
        let (mut q_idx, mut k_idx) = (Vec::new(), Vec::new());
        for groups in planes {
            for (queries, keys) in groups {
                if let Some(key) = keys.iter().find(|&&key| key as usize >= shape.built_keys) {
                    let expected = format!("keys below {}", shape.built_keys);
                    return Err(Error::data("k_idx", expected, key));
                }
                q_idx.extend_from_slice(queries);
                k_idx.extend_from_slice(keys);
                q_ptr.push(to_word("q_ptr", q_idx.len())?);
                row_ptr.push(to_word("row_ptr", k_idx.len())?);
            }
            plane_ptr.push(to_word("plane_ptr", q_ptr.len() - 1)?);
        }
        let rows = Rows::Lists { plane_ptr, q_ptr, q_idx };
        let part = Part::new(rows, Entries::Tokens { row_ptr, k_idx });
        SparsePlan::new(shape, share, causal, vec![part]).with_combine(combine).canonicalise()
    }

    /// The plan after keys came, for a selector that runs every few steps: the same entries for as many
    /// queries at the end of `keys` keys, with a wider window if [`Near::grow`]. New keys outside of the
    /// window are in no set, and neither are keys that were out of sight in a plan made canonical
    /// before.
    ///
    /// # Errors
    /// [`Error::Config`] where there are fewer keys than before, and as [`SparsePlan::check`].
    pub fn reuse(&self, keys: usize) -> Result<SparsePlan> {
        let Some(came) = keys.checked_sub(self.shape.keys) else {
            return Err(Error::config("keys", format!("at least {}", self.shape.keys), keys));
        };
        let mut plan = self.clone();
        plan.shape.keys = keys;
        plan.shape.q_off = plan.shape.q_off.saturating_add_unsigned(came as u64);
        plan.canonicalise()
    }

    /// One part of tiles of `bq` queries, each with the range that `range` makes of the end of what its
    /// queries can see.
    fn with_tiles(
        mut self,
        bq: u32,
        range: impl Fn(usize) -> Result<Option<[u32; 2]>>,
    ) -> Result<SparsePlan> {
        self.check()?;
        let rows = Rows::Tiled { bq };
        let groups = self.check_rows(&rows)?;
        let (mut row_ptr, mut all) = (vec![0], Vec::new());
        for group in 0..groups {
            let hull = self.hull(&rows.members(group, self.shape.queries));
            all.extend(range(hull.end)?);
            row_ptr.push(to_word("row_ptr", all.len())?);
        }
        self.parts.push(Part::new(rows, Entries::Ranges { row_ptr, ranges: all }));
        self.canonicalise()
    }
}

fn to_word(arg: &'static str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::data(arg, "numbers of 32 bits", value))
}

/// Start and length of the blocks between offsets.
fn cuts(arg: &'static str, offsets: &[u32], end: usize) -> Result<Vec<[u32; 2]>> {
    let expected = || format!("offsets that start at 0, never fall, and end at {end}");
    if offsets.first() != Some(&0) || offsets.last().is_none_or(|&last| last as usize != end) {
        return Err(Error::data(arg, expected(), format!("{offsets:?}")));
    }
    let block = |two: &[u32]| Some([two[0], two[1].checked_sub(two[0])?]);
    let blocks: Option<_> = offsets.windows(2).map(block).collect();
    blocks.ok_or_else(|| Error::data(arg, expected(), format!("{offsets:?}")))
}
