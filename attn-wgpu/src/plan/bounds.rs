//! What one round of dispatches does of a plan, and bounds of its work.

use std::ops::Range;

use attn_core::plan::Share;

use super::device::{DeviceEntries, DevicePlan, DeviceRows};
use super::params::{Pass, pack};
use crate::attention::jobs::{Grid, Job};

/// Partial results of one round, in bytes, where it can be made smaller.
pub(super) const MAX_PARTS: u64 = 64 << 20;

/// Items of work and products of a query and a key, at most.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bound {
    pub(super) items: u64,
    pub(super) pairs: f64,
}

/// What a plan's rounds are split along.
pub(super) fn grid(plan: &DevicePlan) -> Grid {
    let shape = &plan.shape;
    let tiles = match plan.parts.first().filter(|_| plan.listing.is_none()) {
        Some(part) => part.groups / plan.settings().planes().max(1),
        None => 1,
    };
    Grid {
        batch: shape.batch,
        heads: shape.heads,
        group: shape.group(),
        tiles,
        split_groups: plan.share == Share::PerHead,
    }
}

/// Queries of a round.
pub(super) fn queries(plan: &DevicePlan, job: &Job) -> Range<usize> {
    match (&plan.listing, Pass::of(plan).first().and_then(|pass| pass.bq(plan))) {
        (None, Some(bq)) => job.tokens(bq, plan.shape.queries),
        _ => 0..plan.shape.queries,
    }
}

/// Groups of a pass that a round covers.
pub(super) fn groups(plan: &DevicePlan, pass: &Pass<'_>, job: &Job) -> Range<usize> {
    let heads = plan.settings().plan_heads();
    let of = |batch: usize, head: usize| match plan.share {
        Share::AllHeads => batch,
        _ => batch * heads + head / pack(plan),
    };
    let (Some(last_batch), Some(last_head)) = (job.batch.clone().last(), job.heads.clone().last())
    else {
        return 0..0;
    };
    let planes = of(job.batch.start, job.heads.start)..of(last_batch, last_head) + 1;
    match (pass.part.map(|part| &part.rows), pass.bq(plan)) {
        (Some(DeviceRows::Lists { plane_ptr, .. } | DeviceRows::Ranges { plane_ptr }), _) => {
            plane_ptr[planes.start] as usize..plane_ptr[planes.end] as usize
        }
        (_, bq) => {
            let tiles = plan.shape.queries.div_ceil(bq.unwrap_or(1));
            if plan.listing.is_none() && planes.len() == 1 {
                let first = planes.start * tiles;
                return first + job.tiles.start..first + job.tiles.end;
            }
            planes.start * tiles..planes.end * tiles
        }
    }
}

/// The most that some groups of a pass can be, for one key head, in tiles of `tile` rows and chunks of
/// `chunk` keys.
pub(super) fn bound(
    plan: &DevicePlan,
    pass: &Pass<'_>,
    groups: Range<usize>,
    tile: usize,
    chunk: usize,
) -> Bound {
    let pack = pack(plan);
    let known = pass.part.and_then(|part| part.keys.as_ref());
    let members = pass.part.and_then(|part| part.members.as_ref());
    let bq = pass.bq(plan);
    let count = groups.len() as u64;
    let mut sum = Bound::default();
    for group in groups {
        let rows = match (bq, members) {
            (Some(bq), _) => bq,
            (None, Some(members)) => members[group] as usize,
            (None, None) => plan.shape.queries,
        };
        let listed = match (known, pass.part) {
            (_, None) => 0,
            (Some(known), _) => known[group] as usize,
            (None, Some(_)) => most_keys(plan, pass, group),
        };
        let all = listed + if pass.near { near_keys(plan, rows) } else { 0 };
        sum.items += ((rows * pack).div_ceil(tile) * all.div_ceil(chunk)) as u64;
        sum.pairs += (rows * pack) as f64 * all as f64;
    }
    // What the host only knows a bound of is also bounded by the room for entries.
    if let (None, Some(part)) = (known, pass.part) {
        let bk = match part.entries {
            DeviceEntries::Blocks { bk, .. } => u64::from(bk),
            DeviceEntries::Tokens => 1,
            _ => return sum,
        };
        let near = if pass.near { near_keys(plan, bq.unwrap_or(0)) } else { 0 } as u64;
        let listed = part.capacity as u64 * bk;
        let chunks = count * (1 + near.div_ceil(chunk as u64)) + listed / chunk as u64;
        // Rows of a group at most, and of all.
        let most = bq.unwrap_or(plan.shape.queries);
        let tiles = (most * pack).div_ceil(tile) as u64;
        let items = match &part.rows {
            // A group of r rows and k keys has less than (r / tile + 1) (k / chunk + 1) items.
            DeviceRows::Lists { queries, .. } => {
                tiles * (listed / chunk as u64)
                    + (queries * pack / tile) as u64
                    + listed / chunk as u64
                    + count
            }
            _ => tiles * chunks,
        };
        sum.items = sum.items.min(items);
        sum.pairs = sum.pairs.min((most * pack) as f64 * (listed + count * near) as f64);
    }
    sum
}

/// Keys that a group of a tiled part can list at most: those before the last of its positions, and
/// the rest of a block.
fn most_keys(plan: &DevicePlan, pass: &Pass<'_>, group: usize) -> usize {
    let shape = &plan.shape;
    let bk = match pass.part.map(|part| part.entries) {
        Some(DeviceEntries::Blocks { bk, .. } | DeviceEntries::Bits { bk, .. }) => bk as usize,
        _ => 1,
    };
    let seen = match pass.bq(plan) {
        Some(bq) if plan.causal => {
            let tile = group % shape.queries.div_ceil(bq).max(1);
            let last = ((tile + 1) * bq).min(shape.queries) as i64 - 1 + shape.q_off;
            usize::try_from(last + 1).unwrap_or(0).min(shape.keys)
        }
        _ => shape.keys,
    };
    seen.div_ceil(bk) * bk
}

/// Keys of the near part that a group of `rows` queries visits at most.
pub(super) fn near_keys(plan: &DevicePlan, rows: usize) -> usize {
    let keys = plan.shape.keys;
    let window = usize::try_from(plan.settings().window()).unwrap_or(keys).min(keys);
    let window = if window > 0 { (window + rows).min(keys) } else { 0 };
    (plan.near.sink as usize).min(keys) + window
}
