//! Parameters of the kernels that read plans.

use attn_core::plan::Share;

use super::bounds::near_keys;
use super::device::{DeviceEntries, DevicePart, DevicePlan, DeviceRows, Region};
use crate::kernel::Constants;

/// Positions, windows and distances stay below this, so that sums of a few fit into 32 bits.
pub(super) const FAR: u64 = 1 << 29;

/// Keys of one chunk at least, and chunks of the keys of a sequence at most.
const MIN_CHUNK: usize = 256;
const MAX_CHUNKS: usize = 16;

/// Keys of one chunk: a function of the number of keys only, so that a row's result does not depend
/// on what else is computed.
pub(super) fn chunk(keys: usize) -> usize {
    keys.div_ceil(MAX_CHUNKS).next_multiple_of(64).max(MIN_CHUNK)
}

/// Blocks of a grid over `keys` keys.
pub(super) fn blocks(keys: usize, bk: u32, origin: u32) -> usize {
    keys.saturating_sub(origin as usize).div_ceil((bk as usize).max(1))
}

/// How kernels find the groups of a part: plan_fields.wgsl.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Geometry {
    pub(super) at_planes: u32,
    pub(super) at_rows: u32,
    pub(super) at_members: u32,
    pub(super) at_row_ptr: u32,
    pub(super) at_data: u32,
    pub(super) at_bias: u32,
    pub(super) bq: u32,
    pub(super) plane_groups: u32,
    pub(super) planes: u32,
    pub(super) bk: u32,
    pub(super) origin: u32,
    pub(super) group_words: u32,
    pub(super) entry_keys: u32,
    pub(super) causal: u32,
    pub(super) sink: i32,
    pub(super) window: i32,
    pub(super) max_dist: i32,
    pub(super) q_off: i32,
    pub(super) plan_heads: u32,
    pub(super) pack: u32,
    pub(super) head_group: u32,
    pub(super) kv_count: u32,
    pub(super) kv_base: u32,
    pub(super) chunk: u32,
    pub(super) tile: u32,
    pub(super) first_group: u32,
    pub(super) group_count: u32,
    pub(super) base: u32,
    pub(super) listed: u32,
}

/// What one dispatch does of a plan: a part, and the near part with it; or the near part alone, as
/// if it were a tiled part without entries.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) part: Option<&'a DevicePart>,
    pub(super) near: bool,
}

/// Queries of a group of the near part where it stands alone.
const NEAR_QUERIES: u32 = 64;

impl Pass<'_> {
    /// All passes of a plan. Only a plan whose one part is tiled has every query in one group, so that
    /// the near part can go with it.
    pub(super) fn of(plan: &DevicePlan) -> Vec<Pass<'_>> {
        let near = plan.near.sink > 0 || plan.settings().window() > 0;
        if plan.listing.is_none() {
            return plan.parts.iter().map(|part| Pass { part: Some(part), near }).collect();
        }
        let parts = plan.parts.iter().map(|part| Pass { part: Some(part), near: false });
        parts.chain(near.then_some(Pass { part: None, near: true })).collect()
    }

    /// Queries of a group, where all have as many.
    pub(super) fn bq(&self, plan: &DevicePlan) -> Option<usize> {
        let bq = match self.part.map(|part| &part.rows) {
            Some(DeviceRows::Tiled { bq }) => *bq,
            Some(_) => return None,
            None => NEAR_QUERIES,
        };
        Some((bq as usize).min(plan.shape.queries.max(1)))
    }

    /// The most queries that a group has.
    pub(super) fn most_queries(&self, plan: &DevicePlan) -> usize {
        let members = self.part.and_then(|part| part.members.as_ref());
        let listed = || members.and_then(|members| members.iter().max().map(|&most| most as usize));
        self.bq(plan).or_else(listed).unwrap_or(plan.shape.queries).min(plan.shape.queries)
    }

    /// The most groups that a plane has.
    pub(super) fn plane_groups(&self, plan: &DevicePlan) -> usize {
        match (self.part.map(|part| &part.rows), self.bq(plan)) {
            (Some(DeviceRows::Lists { plane_ptr, .. } | DeviceRows::Ranges { plane_ptr }), _) => {
                let groups = plane_ptr.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
                groups.max().unwrap_or(0) as usize
            }
            (_, bq) => plan.shape.queries.div_ceil(bq.unwrap_or(1)),
        }
    }

    /// The most keys that a group visits.
    pub(super) fn most_keys(&self, plan: &DevicePlan) -> usize {
        let near = if self.near { near_keys(plan, self.most_queries(plan)) } else { 0 };
        let listed = match self.part.map(|part| &part.keys) {
            Some(Some(known)) => known.iter().max().map_or(0, |&most| most as usize),
            Some(None) => plan.shape.keys,
            None => 0,
        };
        listed.saturating_add(near)
    }

    /// Flags of the kernels that read the groups.
    pub(super) fn constants(&self, constants: Constants) -> Constants {
        let rows = self.part.map(|part| &part.rows);
        let entries = self.part.map(|part| part.entries);
        let blocks = matches!(entries, Some(DeviceEntries::Blocks { .. }));
        let bits = matches!(entries, Some(DeviceEntries::Bits { .. }));
        constants
            .flag("TILED", matches!(rows, None | Some(DeviceRows::Tiled { .. })))
            .flag("LISTS", matches!(rows, Some(DeviceRows::Lists { .. })))
            .flag("ENTRIES", entries.is_some())
            .flag("BLOCKS", blocks)
            .flag("BLOCK_BITS", bits)
            .flag("SPANS", entries == Some(DeviceEntries::Ranges))
            .flag("TOKENS", entries == Some(DeviceEntries::Tokens))
            .flag("NEAR", self.near)
    }

    /// The fields that follow from the plan alone.
    pub(super) fn geometry(&self, plan: &DevicePlan) -> Geometry {
        let host = plan.settings();
        let shape = &plan.shape;
        let start = |region| self.part.map_or(0, |part| part.start(region));
        let lists = matches!(self.part.map(|p| &p.rows), Some(DeviceRows::Lists { .. }));
        let (at_rows, at_members) = match lists {
            true => (start(Region::QPtr), start(Region::QIdx)),
            false => (start(Region::QStart), start(Region::QLen)),
        };
        let bq = self.bq(plan).unwrap_or(1);
        let (bk, origin) = match self.part.map(|part| part.entries) {
            Some(DeviceEntries::Blocks { bk, origin } | DeviceEntries::Bits { bk, origin }) => {
                (bk, origin)
            }
            _ => (1, 0),
        };
        let bounded = |x: u64| x.min(FAR) as i32;
        Geometry {
            at_planes: start(Region::PlanePtr),
            at_rows,
            at_members,
            at_row_ptr: start(Region::RowPtr),
            at_data: start(Region::Data),
            at_bias: start(Region::Bias),
            bq: bq as u32,
            plane_groups: shape.queries.div_ceil(bq) as u32,
            planes: host.planes() as u32,
            bk,
            origin,
            group_words: blocks(shape.built_keys, bk, origin).div_ceil(32) as u32,
            entry_keys: shape.built_keys as u32,
            causal: u32::from(plan.causal),
            sink: bounded(plan.near.sink.into()),
            window: bounded(host.window()),
            max_dist: bounded(plan.max_dist.map_or(FAR, u64::from)),
            q_off: shape.q_off as i32,
            plan_heads: host.plan_heads() as u32,
            pack: pack(plan) as u32,
            head_group: shape.group() as u32,
            ..Geometry::default()
        }
    }
}

/// Query heads that share the rows of a group.
pub(super) fn pack(plan: &DevicePlan) -> usize {
    match plan.share {
        Share::PerHead => 1,
        _ => plan.shape.group(),
    }
}
