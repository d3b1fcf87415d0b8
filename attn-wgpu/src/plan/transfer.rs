//! Plans from the host to a device and back.

use attn_core::plan::{Combine, Entries, Part, Rows, SparsePlan};

use super::device::{DeviceEntries, DevicePart, DeviceRows, Region};
use super::params::blocks;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::tensor::Tensor;

impl DevicePart {
    pub(super) fn write(&self, region: Region, words: &[u32]) -> Result<()> {
        if words.is_empty() {
            return Ok(());
        }
        let source = Tensor::from_slice(self.words.gpu(), words, &[words.len()])?;
        crate::ops::copy(&source, &self.region(region)?.narrow(0, 0, words.len())?)
    }

    fn read(&self, region: Region) -> Result<Vec<u32>> {
        self.region(region)?.to_vec()
    }

    pub(super) fn upload(gpu: &Gpu, plan: &SparsePlan, part: &Part) -> Result<DevicePart> {
        if part.q_slot.is_some() {
            return Err(attn_core::Error::config("q_slot", "none", "some").into());
        }
        let (rows, groups) = match &part.rows {
            Rows::Tiled { bq } => {
                let groups = plan.planes() * plan.shape.queries.div_ceil((*bq).max(1) as usize);
                (DeviceRows::Tiled { bq: *bq }, groups)
            }
            Rows::Lists { plane_ptr, q_ptr, q_idx } => {
                let plane_ptr = plane_ptr.as_slice().into();
                (DeviceRows::Lists { plane_ptr, queries: q_idx.len() }, q_ptr.len() - 1)
            }
            Rows::Ranges { plane_ptr, q_start, .. } => {
                (DeviceRows::Ranges { plane_ptr: plane_ptr.as_slice().into() }, q_start.len())
            }
            _ => return Err(unknown("rows")),
        };
        let (entries, row_ptr, data): (_, &[u32], &[u32]) = match &part.entries {
            Entries::Blocks { bk, origin, row_ptr, col } => {
                (DeviceEntries::Blocks { bk: *bk, origin: *origin }, row_ptr, col)
            }
            Entries::Bits { bk, origin, words } => {
                (DeviceEntries::Bits { bk: *bk, origin: *origin }, &[], words)
            }
            Entries::Ranges { row_ptr, ranges } => {
                (DeviceEntries::Ranges, row_ptr, ranges.as_flattened())
            }
            Entries::Tokens { row_ptr, k_idx } => (DeviceEntries::Tokens, row_ptr, k_idx),
            _ => return Err(unknown("entries")),
        };
        let capacity = if row_ptr.is_empty() { data.len() } else { part.entries.nnz() };
        let biased = part.bias.is_some();
        let mut uploaded = DevicePart::new(gpu, rows, entries, groups, capacity, biased)?;
        uploaded.write(Region::RowPtr, row_ptr)?;
        uploaded.write(Region::Data, data)?;
        match &part.rows {
            Rows::Lists { q_ptr, q_idx, .. } => {
                uploaded.write(Region::QPtr, q_ptr)?;
                uploaded.write(Region::QIdx, q_idx)?;
            }
            Rows::Ranges { q_start, q_len, .. } => {
                uploaded.write(Region::QStart, q_start)?;
                uploaded.write(Region::QLen, q_len)?;
            }
            _ => {}
        }
        if let Some(bias) = &part.bias {
            let bits: Vec<u32> = bias.iter().map(|bias| bias.to_bits()).collect();
            uploaded.write(Region::Bias, &bits)?;
        }
        uploaded.multiset = part.multiset;
        uploaded.keys = Some(counts(plan, &part.entries, groups).into());
        uploaded.members = match &part.rows {
            Rows::Lists { q_ptr, .. } => Some(q_ptr.windows(2).map(|p| p[1] - p[0]).collect()),
            Rows::Ranges { q_len, .. } => Some(q_len.as_slice().into()),
            _ => None,
        };
        Ok(uploaded)
    }

    pub(super) fn download(&self) -> Result<Part> {
        let plane_ptr = || self.read(Region::PlanePtr);
        let rows = match &self.rows {
            DeviceRows::Tiled { bq } => Rows::Tiled { bq: *bq },
            DeviceRows::Lists { .. } => {
                let q_ptr = self.read(Region::QPtr)?;
                let mut q_idx = self.read(Region::QIdx)?;
                q_idx.truncate(q_ptr.last().map_or(0, |&end| end as usize));
                Rows::Lists { plane_ptr: plane_ptr()?, q_ptr, q_idx }
            }
            DeviceRows::Ranges { .. } => Rows::Ranges {
                plane_ptr: plane_ptr()?,
                q_start: self.read(Region::QStart)?,
                q_len: self.read(Region::QLen)?,
            },
        };
        let row_ptr = self.read(Region::RowPtr)?;
        let nnz = row_ptr.last().map_or(0, |&end| end as usize);
        let mut data = self.read(Region::Data)?;
        let cut = |mut data: Vec<u32>, length| {
            data.truncate(length);
            data
        };
        let entries = match self.entries {
            DeviceEntries::Blocks { bk, origin } => {
                Entries::Blocks { bk, origin, row_ptr, col: cut(data, nnz) }
            }
            DeviceEntries::Bits { bk, origin } => Entries::Bits { bk, origin, words: data },
            DeviceEntries::Ranges => {
                data.truncate(2 * nnz);
                let ranges = data.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect();
                Entries::Ranges { row_ptr, ranges }
            }
            DeviceEntries::Tokens => Entries::Tokens { row_ptr, k_idx: cut(data, nnz) },
        };
        let mut part = Part::new(rows, entries);
        part.multiset = self.multiset;
        if self.biased {
            let bias = cut(self.read(Region::Bias)?, nnz);
            part.bias = Some(bias.into_iter().map(f32::from_bits).collect());
        }
        Ok(part)
    }
}

fn unknown(what: &'static str) -> crate::Error {
    attn_core::Error::config(what, "a kind that kernels know", "another").into()
}

/// Keys that the entries of each group hold, a short last block counted as a whole one.
fn counts(plan: &SparsePlan, entries: &Entries, groups: usize) -> Vec<u32> {
    let of = |ptr: &[u32], bk: u32| ptr.windows(2).map(|p| (p[1] - p[0]) * bk).collect();
    match entries {
        Entries::Blocks { bk, row_ptr, .. } => of(row_ptr, *bk),
        Entries::Tokens { row_ptr, .. } => of(row_ptr, 1),
        Entries::Ranges { row_ptr, ranges } => {
            let sum = |p: &[u32]| ranges[p[0] as usize..p[1] as usize].iter().map(|r| r[1]).sum();
            row_ptr.windows(2).map(sum).collect()
        }
        Entries::Bits { bk, origin, words } => {
            let width = blocks(plan.shape.built_keys, *bk, *origin).div_ceil(32);
            let of = |group: usize| words[group * width..(group + 1) * width].iter();
            (0..groups).map(|group| of(group).map(|w| w.count_ones()).sum::<u32>() * bk).collect()
        }
        _ => Vec::new(),
    }
}

/// No gate.
const NO_GATE: u32 = u32::MAX;

/// Where each query of each plane is listed: offsets `[planes * queries + 1]`, then for each place
/// part, group, row in the group, rows of the group, the bits of the logarithm of the group's weight,
/// NaN for its log-sum-exp, and the number of that weight among all gates; by rising part and group.
pub(super) fn listing(plan: &SparsePlan) -> Vec<u32> {
    let queries = plan.shape.queries;
    let mut places: Vec<Vec<[u32; 6]>> = vec![Vec::new(); plan.planes() * queries];
    let mut gate = 0;
    for (number, part) in plan.parts.iter().enumerate() {
        let gates = match &plan.combine {
            Combine::Gate(gates) => gates[number].as_deref(),
            _ => None,
        };
        let mut gates = gates.map(|gates| gates.iter());
        let own = near_weight(&plan.combine);
        for plane in 0..plan.planes() {
            for (group, members) in groups_of(&part.rows, plane, queries) {
                let count = members.len() as u32;
                for (row, query) in members.into_iter().enumerate() {
                    let (weight, gate) = match gates.as_mut().and_then(Iterator::next) {
                        Some(weight) => {
                            gate += 1;
                            (*weight, gate - 1)
                        }
                        None => (own, NO_GATE),
                    };
                    places[plane * queries + query].push([
                        number as u32,
                        group as u32,
                        row as u32,
                        count,
                        weight.to_bits(),
                        gate,
                    ]);
                }
            }
        }
    }
    let mut end = 0;
    let offsets = std::iter::once(0).chain(places.iter().map(|at| {
        end += at.len() as u32;
        end
    }));
    let mut words: Vec<u32> = offsets.collect();
    words.extend(places.iter().flatten().flatten());
    words
}

/// The logarithm of the near part's weight, NaN for its log-sum-exp.
pub(super) fn near_weight(combine: &Combine) -> f32 {
    if *combine == Combine::Mean { 0.0 } else { f32::NAN }
}

/// The groups of a plane with their queries.
fn groups_of(rows: &Rows, plane: usize, queries: usize) -> Vec<(usize, Vec<usize>)> {
    let slice = |ptr: &[u32], at: usize| ptr[at] as usize..ptr[at + 1] as usize;
    match rows {
        Rows::Tiled { bq } => {
            let (bq, tiles) = (*bq as usize, queries.div_ceil(*bq as usize));
            let of = |tile: usize| (tile * bq..((tile + 1) * bq).min(queries)).collect();
            (0..tiles).map(|tile| (plane * tiles + tile, of(tile))).collect()
        }
        Rows::Lists { plane_ptr, q_ptr, q_idx } => {
            let of = |group| q_idx[slice(q_ptr, group)].iter().map(|&q| q as usize).collect();
            slice(plane_ptr, plane).map(|group| (group, of(group))).collect()
        }
        Rows::Ranges { plane_ptr, q_start, q_len } => {
            let of = |group: usize| {
                let start = q_start[group] as usize;
                (start..(start + q_len[group] as usize).min(queries)).collect()
            };
            slice(plane_ptr, plane).map(|group| (group, of(group))).collect()
        }
        _ => Vec::new(),
    }
}
