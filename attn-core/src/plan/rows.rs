use std::ops::Range;

/// The queries of each group. Groups of a plane lie one after another, plane by plane.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Rows {
    /// Every plane has `ceil(queries / bq)` groups; group `r` is the queries
    /// `r * bq .. min((r + 1) * bq, queries)`.
    Tiled {
        /// Queries of a group, at least 1.
        bq: u32,
    },
    /// Any queries: group `g` is `q_idx[q_ptr[g] .. q_ptr[g + 1]]`.
    Lists {
        /// Groups of plane `p` are `plane_ptr[p] .. plane_ptr[p + 1]`: `[planes + 1]`.
        plane_ptr: Vec<u32>,
        /// Offsets into `q_idx`: `[groups + 1]`.
        q_ptr: Vec<u32>,
        /// Queries, rising inside a group.
        q_idx: Vec<u32>,
    },
    /// Intervals of any length: group `g` is `q_len[g]` queries from `q_start[g]` on, cut at the end.
    Ranges {
        /// Groups of plane `p` are `plane_ptr[p] .. plane_ptr[p + 1]`: `[planes + 1]`.
        plane_ptr: Vec<u32>,
        /// First query: `[groups]`.
        q_start: Vec<u32>,
        /// Number of queries: `[groups]`.
        q_len: Vec<u32>,
    },
}

impl Rows {
    /// Number of groups; `None` where it overflows.
    pub(crate) fn groups(&self, planes: usize, queries: usize) -> Option<usize> {
        match self {
            Rows::Tiled { bq } => tiles(queries, *bq).checked_mul(planes),
            Rows::Lists { q_ptr, .. } => Some(q_ptr.len().saturating_sub(1)),
            Rows::Ranges { q_start, .. } => Some(q_start.len()),
        }
    }

    /// The groups of a plane.
    pub(crate) fn plane_groups(&self, plane: usize, queries: usize) -> Range<usize> {
        match self {
            Rows::Tiled { bq } => {
                let tiles = tiles(queries, *bq);
                let start = plane.saturating_mul(tiles);
                start..start.saturating_add(tiles)
            }
            Rows::Lists { plane_ptr, q_ptr: groups, .. }
            | Rows::Ranges { plane_ptr, q_start: groups, .. } => {
                slice_of(plane_ptr, plane, groups.len())
            }
        }
    }

    /// The queries of `group`.
    pub(crate) fn members(&self, group: usize, queries: usize) -> Members<'_> {
        match self {
            Rows::Tiled { bq } => {
                let (tiles, bq) = (tiles(queries, *bq), *bq as usize);
                let start = group.checked_rem(tiles).unwrap_or(0).saturating_mul(bq);
                Members::Range(start.min(queries)..start.saturating_add(bq).min(queries))
            }
            Rows::Lists { q_ptr, q_idx, .. } => {
                Members::List(q_idx.get(slice_of(q_ptr, group, q_idx.len())).unwrap_or_default())
            }
            Rows::Ranges { q_start, q_len, .. } => {
                let at = |words: &[u32]| words.get(group).map_or(0, |&word| word as usize);
                let start = at(q_start).min(queries);
                Members::Range(start..start.saturating_add(at(q_len)).min(queries))
            }
        }
    }

    /// Number of rows of all groups; `None` where it overflows.
    pub(crate) fn total(&self, planes: usize, queries: usize) -> Option<usize> {
        match self {
            Rows::Tiled { .. } => planes.checked_mul(queries),
            Rows::Lists { q_idx, .. } => Some(q_idx.len()),
            Rows::Ranges { q_start, .. } => {
                let lens = (0..q_start.len()).map(|group| self.members(group, queries).len());
                lens.into_iter().try_fold(0_usize, |all, len| all.checked_add(len))
            }
        }
    }

    /// Where the rows of every group begin in `[groups, queries of the group]`, and their number.
    pub(crate) fn row_offsets(&self, planes: usize, queries: usize) -> Vec<usize> {
        let groups = self.groups(planes, queries).unwrap_or(0);
        let mut end = 0_usize;
        let mut offsets = vec![0];
        for group in 0..groups {
            end = end.saturating_add(self.members(group, queries).len());
            offsets.push(end);
        }
        offsets
    }
}

/// The queries of one group.
#[derive(Debug, Clone)]
pub(crate) enum Members<'a> {
    Range(Range<usize>),
    List(&'a [u32]),
}

impl Members<'_> {
    pub fn len(&self) -> usize {
        match self {
            Members::Range(range) => range.len(),
            Members::List(list) => list.len(),
        }
    }

    /// The query at `index`.
    pub fn get(&self, index: usize) -> Option<usize> {
        match self {
            Members::Range(range) => {
                range.start.checked_add(index).filter(|query| range.contains(query))
            }
            Members::List(list) => list.get(index).map(|&query| query as usize),
        }
    }

    /// Index of `query`: the first one in a list that is not yet sorted.
    pub fn find(&self, query: usize) -> Option<usize> {
        match self {
            Members::Range(range) => range.contains(&query).then(|| query - range.start),
            Members::List(list) => list.iter().position(|&member| member as usize == query),
        }
    }

    /// The lowest and the highest query.
    pub fn bounds(&self) -> Option<(usize, usize)> {
        match self {
            Members::Range(range) => (!range.is_empty()).then(|| (range.start, range.end - 1)),
            Members::List(list) => {
                Some((*list.iter().min()? as usize, *list.iter().max()? as usize))
            }
        }
    }

    /// Adds the queries, each once, as intervals.
    pub fn push_ranges(&self, into: &mut Vec<Range<usize>>) {
        match self {
            Members::Range(range) => into.extend(Some(range.clone()).filter(|r| !r.is_empty())),
            Members::List(list) => {
                let mut list = list.to_vec();
                list.sort_unstable();
                list.dedup();
                into.extend(list.iter().map(|&q| q as usize..q as usize + 1));
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = usize> {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

fn tiles(queries: usize, bq: u32) -> usize {
    queries.div_ceil((bq as usize).max(1))
}

/// `offsets[at] .. offsets[at + 1]`, empty where they are not there, and cut at `len` elements: offsets
/// that were not checked lead nowhere.
pub(crate) fn slice_of(offsets: &[u32], at: usize, len: usize) -> Range<usize> {
    let next = at.checked_add(1).and_then(|next| offsets.get(next));
    match (offsets.get(at), next) {
        (Some(&start), Some(&end)) => start as usize..(end as usize).min(len),
        _ => 0..0,
    }
}
