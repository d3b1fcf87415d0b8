//! Sparse plans of every kind, random and by name.

use proptest::collection::vec;
use proptest::option::of as option;
use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof};
use proptest::sample::select;

use super::{HostInputs, Values, bits, normal, strategies, uniform};
use crate::plan::{Combine, Entries, Near, Part, PlanShape, Rows, Share, SparsePlan};
use crate::{AttentionShape, Mask, Result, dense};

/// An attention call under a plan.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PlanCase {
    /// Extents.
    pub shape: AttentionShape,
    /// The plan, sound and as a rule not canonical.
    pub plan: SparsePlan,
    /// Mask that agrees with the plan, scale, soft-cap and modifier.
    pub config: dense::Config,
    /// Distribution of the inputs.
    pub values: Values,
    /// Seed of the inputs.
    pub seed: u64,
}

impl PlanCase {
    /// The inputs.
    pub fn inputs(&self) -> HostInputs {
        HostInputs::random(self.shape, self.seed, self.values)
    }
}

/// Calls of at most `work` multiplications ([`strategies::shape`]) under every kind of plan, with every
/// configuration.
pub fn plan_case(work: usize) -> impl Strategy<Value = PlanCase> {
    let with_plan = strategies::shape(work).prop_flat_map(|shape| (Just(shape), plan(shape)));
    let with_config = with_plan.prop_flat_map(|(shape, plan)| {
        let config = strategies::config(shape.lengths());
        let plain = any::<bool>();
        (Just((shape, plan)), config, plain, strategies::values(), any::<u64>())
    });
    with_config.prop_map(|((shape, plan), mut config, plain, values, seed)| {
        let own = if plan.causal { Mask::Causal } else { Mask::Full };
        let agrees = config.mask.states_causal().is_none_or(|causal| causal == plan.causal);
        let moved = plan.shape.q_off != PlanShape::from(&shape).q_off;
        if !agrees || plain || (moved && !matches!(config.mask, Mask::Bits(_))) {
            config.mask = own;
        }
        PlanCase { shape, plan, config, values, seed }
    })
}

/// Sound plans of every kind for these extents: all rows and entries in any order, overlapping and
/// beyond the end, near parts, largest distances, biases, multisets, several parts, empty rows.
pub fn plan(shape: AttentionShape) -> BoxedStrategy<SparsePlan> {
    let reach = move || prop_oneof![3 => 0..=9_u32, 1 => 0..=shape.keys as u32 + 1];
    let near = (reach(), reach(), any::<bool>());
    let near = prop_oneof![
        1 => Just(Near::default()),
        2 => near.prop_map(|(sink, window, grow)| Near { sink, window, grow }),
    ];
    let share = select(&[Share::PerHead, Share::PerKvHead, Share::AllHeads][..]);
    let max_dist = prop_oneof![2 => Just(None), 1 => option(reach())];
    let came = prop_oneof![4 => Just(0), 1 => 0..=5_usize];
    let moved = prop_oneof![6 => Just(0), 1 => -7..=7_i64];
    let settings = (any::<bool>(), near, share, max_dist, came, moved);
    let kinds = prop_oneof![3 => Just(Kind::Single), 1 => Just(Kind::Lse), 1 => Just(Kind::Mean), 1 => Just(Kind::Gate)];
    let parts = vec((rows(), entries(), any::<[bool; 2]>()), 1..=3);
    (settings, kinds, parts, any::<u64>())
        .prop_map(move |((causal, near, share, max_dist, came, moved), kind, mut parts, seed)| {
            let mut extents = PlanShape::from(&shape);
            extents.built_keys = extents.built_keys.saturating_sub(came);
            extents.q_off += moved;
            let mut plan = SparsePlan::new(extents, share, causal, Vec::new());
            plan.max_dist = max_dist;
            if causal {
                plan.near = near;
            }
            if kind == Kind::Single {
                parts.truncate(1);
            }
            let mut draw = Draw { seed, next: 0, groups: 0 };
            for (rows, entries, [bias, multiset]) in parts {
                let rows = draw.rows(&plan, rows, kind == Kind::Single);
                let groups = rows.groups(plan.planes(), shape.queries).unwrap_or(0);
                let entries = draw.entries(plan.entry_keys(), groups, entries);
                let mut part = Part::new(rows, entries);
                if bias && !matches!(part.entries, Entries::Bits { .. }) {
                    part.bias = Some((0..part.entries.nnz()).map(|_| draw.bias()).collect());
                }
                part.multiset = multiset && draw.below(3) == 0;
                plan.parts.push(part);
            }
            plan.combine = match kind {
                Kind::Single => Combine::Single,
                Kind::Lse => Combine::Lse,
                Kind::Mean => Combine::Mean,
                Kind::Gate => draw.gates(&plan),
            };
            plan
        })
        .boxed()
}

/// The canonical ones of [`plan`].
pub fn canonical_plan(shape: AttentionShape) -> impl Strategy<Value = SparsePlan> {
    plan(shape).prop_filter_map("sound", |plan| plan.canonicalise().ok())
}

/// A plan by name with the call it is for.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PlanProblem {
    /// Name, as `tiny-blocks`.
    pub name: &'static str,
    /// Extents.
    pub shape: AttentionShape,
    /// The canonical plan.
    pub plan: SparsePlan,
    /// Mask and scale.
    pub config: dense::Config,
    /// Seed of the inputs.
    pub seed: u64,
}

impl PlanProblem {
    /// Normal random inputs; always the same.
    pub fn inputs(&self) -> HostInputs {
        HostInputs::random(self.shape, self.seed, Values::Normal)
    }
}

/// All named plans: one for each kind of rows and entries, odd in every extent.
///
/// # Errors
/// None; every plan here is sound.
pub fn plan_problems() -> Result<Vec<PlanProblem>> {
    let tall = extents([2, 6, 2, 67, 131, 40, 24]);
    let square = extents([1, 4, 1, 97, 97, 64, 64]);
    let wide = extents([1, 3, 3, 70, 33, 16, 80]);
    let decode = extents([3, 8, 2, 1, 203, 64, 64]);
    let near = Near { sink: 3, window: 17, grow: false };
    let tiles = |bq| RowsKind::Tiled(bq);
    let grid = |bk, origin| EntriesKind::Grid { bk, origin, bits: false };
    let bits = |bk| EntriesKind::Grid { bk, origin: 0, bits: true };
    use EntriesKind::{Ranges, Tokens};
    use RowsKind::{Lists, Ranges as Segments};
    let (none, single) = (Near::default(), Kind::Single);
    let list = [
        ("tiny-blocks", square, Share::PerHead, true, none, tiles(16), grid(16, 0), single),
        ("tiny-bits", tall, Share::PerHead, true, none, tiles(64), bits(8), single),
        ("tiny-leaves", square, Share::PerHead, true, near, tiles(32), grid(2, 3), single),
        ("tiny-chunks", tall, Share::AllHeads, true, near, tiles(128), Ranges, single),
        ("tiny-tokens", tall, Share::PerKvHead, true, none, tiles(1), Tokens, single),
        ("tiny-full-bits", wide, Share::PerKvHead, false, none, tiles(7), bits(5), single),
        ("tiny-segments", square, Share::AllHeads, false, none, Segments, Ranges, single),
        ("tiny-clusters", square, Share::PerHead, true, none, Lists, Tokens, Kind::Mean),
        ("tiny-buckets", wide, Share::PerHead, false, none, Lists, Tokens, Kind::Lse),
        ("tiny-gates", tall, Share::PerHead, true, near, Lists, Ranges, Kind::Gate),
        ("tiny-decode-blocks", decode, Share::PerKvHead, true, near, tiles(1), grid(16, 0), single),
        ("tiny-decode-tokens", decode, Share::PerKvHead, true, near, tiles(1), Tokens, single),
    ];
    let problem = |(index, (name, shape, share, causal, near, rows, entries, kind))| {
        let seed = index as u64;
        let mut draw = Draw { seed, next: 0, groups: 5 };
        let mut plan = SparsePlan::new(PlanShape::from(&shape), share, causal, Vec::new());
        plan.near = near;
        let rows = draw.rows(&plan, rows, kind == Kind::Single);
        let groups = rows.groups(plan.planes(), shape.queries).unwrap_or(0);
        let entries = draw.entries(shape.keys, groups, entries);
        plan.parts.push(Part::new(rows, entries));
        plan.combine = match kind {
            Kind::Single => Combine::Single,
            Kind::Lse => Combine::Lse,
            Kind::Mean => Combine::Mean,
            Kind::Gate => draw.gates(&plan),
        };
        let mask = if causal { Mask::Causal } else { Mask::Full };
        let config = dense::Config::new().with_mask(mask);
        Ok(PlanProblem { name, shape, plan: plan.canonicalise()?, config, seed })
    };
    list.into_iter().enumerate().map(problem).collect()
}

fn extents([batch, heads, heads_kv, queries, keys, dim_qk, dim_v]: [usize; 7]) -> AttentionShape {
    AttentionShape { batch, heads, heads_kv, queries, keys, dim_qk, dim_v }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Single,
    Lse,
    Mean,
    Gate,
}

#[derive(Debug, Clone, Copy)]
enum RowsKind {
    Tiled(u32),
    Lists,
    Ranges,
}

#[derive(Debug, Clone, Copy)]
enum EntriesKind {
    Grid { bk: u32, origin: u32, bits: bool },
    Ranges,
    Tokens,
}

fn rows() -> impl Strategy<Value = RowsKind> {
    prop_oneof![
        2 => select(&[1, 2, 3, 8, 16, 31, 64][..]).prop_map(RowsKind::Tiled),
        1 => Just(RowsKind::Lists),
        1 => Just(RowsKind::Ranges),
    ]
}

fn entries() -> impl Strategy<Value = EntriesKind> {
    let grid =
        (select(&[1, 2, 3, 7, 16, 32, 65][..]), select(&[0, 0, 1, 4, 40][..]), any::<bool>());
    prop_oneof![
        2 => grid.prop_map(|(bk, origin, bits)| EntriesKind::Grid { bk, origin, bits }),
        1 => Just(EntriesKind::Ranges),
        1 => Just(EntriesKind::Tokens),
    ]
}

/// Random numbers one after another.
struct Draw {
    seed: u64,
    next: u64,
    /// Groups of a plane, at least.
    groups: usize,
}

impl Draw {
    fn index(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// From 0 to `end - 1`, or 0.
    fn below(&mut self, end: usize) -> usize {
        let index = self.index();
        (bits(self.seed, 90, index) % (end as u64).max(1)) as usize
    }

    fn bias(&mut self) -> f32 {
        let index = self.index();
        match (uniform(self.seed, 91, index) * 24.0) as u32 {
            0 => f32::NEG_INFINITY,
            1 => -1e30,
            2..=9 => 0.5,
            _ => normal(self.seed, 92, index) as f32,
        }
    }

    /// Groups; where `single`, each query is in at most one.
    fn rows(&mut self, plan: &SparsePlan, kind: RowsKind, single: bool) -> Rows {
        let queries = plan.shape.queries;
        let (mut plane_ptr, mut q_ptr) = (vec![0], vec![0]);
        let (mut q_idx, mut q_start, mut q_len) = (Vec::new(), Vec::new(), Vec::new());
        if let RowsKind::Tiled(bq) = kind {
            return Rows::Tiled { bq };
        }
        for _ in 0..plan.planes() {
            let groups = self.groups.max(self.below(6));
            // Each query belongs to one group or to none, and in plans of other kinds is a guest in more.
            let owners: Vec<usize> = (0..queries).map(|_| self.below(groups + 1)).collect();
            let mut cuts: Vec<usize> = (0..=groups).map(|_| self.below(queries + 1)).collect();
            cuts.sort_unstable();
            for group in 0..groups {
                for (query, &owner) in owners.iter().enumerate() {
                    if owner == group || (!single && self.below(4) == 0) {
                        q_idx.push(query as u32);
                    }
                }
                let start = *q_ptr.last().unwrap_or(&0) as usize;
                if self.below(2) == 0 {
                    q_idx[start..].reverse();
                }
                q_ptr.push(q_idx.len() as u32);
                let more = if single && group + 1 < groups { 0 } else { self.below(9) };
                q_start.push(cuts[group] as u32);
                q_len.push((cuts[group + 1] - cuts[group] + more) as u32);
            }
            plane_ptr.push(q_start.len() as u32);
        }
        match kind {
            RowsKind::Lists => Rows::Lists { plane_ptr, q_ptr, q_idx },
            _ => Rows::Ranges { plane_ptr, q_start, q_len },
        }
    }

    /// Few entries a group, all of them, or none.
    fn entries(&mut self, keys: usize, groups: usize, kind: EntriesKind) -> Entries {
        let grid =
            |bk: u32, origin: u32| keys.saturating_sub(origin as usize).div_ceil(bk as usize);
        if let EntriesKind::Grid { bk, origin, bits: true } = kind {
            let words = groups * grid(bk, origin).div_ceil(32);
            let word = |draw: &mut Draw| match draw.below(5) {
                0 => 0,
                1 => u32::MAX,
                2 => draw.below(1 << 32) as u32,
                _ => (draw.below(1 << 32) & draw.below(1 << 32) & draw.below(1 << 32)) as u32,
            };
            return Entries::Bits { bk, origin, words: (0..words).map(|_| word(self)).collect() };
        }
        let (mut row_ptr, mut firsts, mut ranges) = (vec![0], Vec::new(), Vec::new());
        let places = match kind {
            EntriesKind::Grid { bk, origin, .. } => grid(bk, origin),
            _ => keys,
        };
        for _ in 0..groups {
            match self.below(8) {
                0 => {}
                1 => firsts.extend(0..places as u32),
                // One place too many: an entry beyond the end.
                _ => (0..self.below(10)).for_each(|_| firsts.push(self.below(places + 1) as u32)),
            }
            row_ptr.push(firsts.len() as u32);
        }
        match kind {
            EntriesKind::Grid { bk, origin, .. } => {
                Entries::Blocks { bk, origin, row_ptr, col: firsts }
            }
            EntriesKind::Tokens => Entries::Tokens { row_ptr, k_idx: firsts },
            EntriesKind::Ranges => {
                ranges.extend(firsts.iter().map(|&first| [first, self.below(12) as u32]));
                Entries::Ranges { row_ptr, ranges }
            }
        }
    }

    fn gates(&mut self, plan: &SparsePlan) -> Combine {
        let gates = plan.parts.iter().map(|part| {
            let rows = part.rows.total(plan.planes(), plan.shape.queries).unwrap_or(0);
            (self.below(3) > 0).then(|| (0..rows).map(|_| self.bias()).collect())
        });
        Combine::Gate(gates.collect())
    }
}
