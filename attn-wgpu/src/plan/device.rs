//! Plans on a device.

use std::sync::Arc;

use attn_core::plan::{Combine, Near, PlanShape, Share, SparsePlan};

use super::listing::{check_part, device_listing};
use super::transfer::listing;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::tensor::{DType, Tensor};

/// A sparse plan on a device. Cheap to clone; never depends on properties of the device.
#[derive(Debug, Clone)]
pub struct DevicePlan {
    pub(crate) shape: PlanShape,
    pub(crate) causal: bool,
    pub(crate) share: Share,
    pub(crate) near: Near,
    pub(crate) max_dist: Option<u32>,
    pub(crate) combine: Combine,
    pub(crate) parts: Vec<DevicePart>,
    /// Where each query is listed, unless the only part is tiled: see [`listing`].
    pub(crate) listing: Option<Tensor>,
}

/// The queries of each group, as [`attn_core::plan::Rows`]; the numbers that select them are on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceRows {
    /// Every plane has `ceil(queries / bq)` groups of `bq` queries.
    Tiled {
        /// Queries of a group, at least 1.
        bq: u32,
    },
    /// Any queries, rising inside a group.
    Lists {
        /// Groups of plane `p` are `plane_ptr[p] .. plane_ptr[p + 1]`.
        plane_ptr: Arc<[u32]>,
        /// Queries of all groups, or a bound of that.
        queries: usize,
    },
    /// Intervals of queries.
    Ranges {
        /// Groups of plane `p` are `plane_ptr[p] .. plane_ptr[p + 1]`.
        plane_ptr: Arc<[u32]>,
    },
}

/// The keys of each group, as [`attn_core::plan::Entries`]; the numbers that select them are on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceEntries {
    /// Blocks of a grid.
    Blocks {
        /// Keys of a block, at least 1.
        bk: u32,
        /// Where the grid starts.
        origin: u32,
    },
    /// The same with one bit for each block of the grid.
    Bits {
        /// Keys of a block, at least 1.
        bk: u32,
        /// Where the grid starts.
        origin: u32,
    },
    /// Intervals of keys.
    Ranges,
    /// Single keys.
    Tokens,
}

/// A region of a part's words: what rows and entries of the host have under the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Region {
    /// Offsets of planes, of listed and ranged rows `[planes + 1]`.
    PlanePtr,
    /// Offsets of groups into `q_idx`, of listed rows `[groups + 1]`.
    QPtr,
    /// Queries, of listed rows `[capacity]`.
    QIdx,
    /// First queries, of ranged rows `[groups]`.
    QStart,
    /// Numbers of queries, of ranged rows `[groups]`.
    QLen,
    /// Offsets of groups into the entries, unless these are bits `[groups + 1]`.
    RowPtr,
    /// Entries: blocks or tokens `[capacity]`, ranges `[capacity, 2]`, bits `[groups, words]`.
    Data,
    /// Bits of the f32 biases of entries `[capacity]`.
    Bias,
}

/// Numbers of [`Region`]s.
const REGIONS: usize = 8;

/// Regions begin at multiples of this many words, so that kernels may bind them apart.
const ALIGN: usize = 64;

/// Groups of queries with the keys of each, in one tensor of words.
///
/// The words have room for `capacity` entries. How many there are, the offsets say; no entry behind
/// them is read. Kernels that write a part keep it canonical as [`SparsePlan::validate`] says, except
/// that entries may be out of sight: bits behind a group's last position are skipped, others only
/// masked.
#[derive(Debug, Clone)]
pub struct DevicePart {
    pub(crate) rows: DeviceRows,
    pub(crate) entries: DeviceEntries,
    pub(crate) groups: usize,
    pub(crate) capacity: usize,
    pub(crate) biased: bool,
    pub(crate) words: Tensor,
    /// First word and length of each region.
    regions: [(usize, usize); REGIONS],
    /// Whether a key in several entries of one group counts as often.
    pub(crate) multiset: bool,
    /// Numbers of listed keys and of queries of each group, where the host knows them; else bounds
    /// are used.
    pub(crate) keys: Option<Arc<[u32]>>,
    pub(crate) members: Option<Arc<[u32]>>,
}

impl DevicePart {
    /// A part of `groups` groups with room for `capacity` entries (words of bits, for
    /// [`DeviceEntries::Bits`]), and for a bias of each if it is `biased`. Everything but
    /// [`Region::PlanePtr`] is for kernels to write.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] for blocks or groups of 0; allocation errors.
    pub fn new(
        gpu: &Gpu,
        rows: DeviceRows,
        entries: DeviceEntries,
        groups: usize,
        capacity: usize,
        biased: bool,
    ) -> Result<DevicePart> {
        let positive = |arg, value: u32| match value {
            0 => Err(attn_core::Error::config(arg, "at least 1", 0)),
            _ => Ok(()),
        };
        if let DeviceRows::Tiled { bq } = rows {
            positive("bq", bq)?;
        }
        if let DeviceEntries::Blocks { bk, .. } | DeviceEntries::Bits { bk, .. } = entries {
            positive("bk", bk)?;
        }
        let is_bits = matches!(entries, DeviceEntries::Bits { .. });
        if is_bits && biased {
            return Err(attn_core::Error::config("bias", "none for bits", "some").into());
        }
        let (planes, lists, ranges, queries) = match &rows {
            DeviceRows::Tiled { .. } => (0, false, false, 0),
            DeviceRows::Lists { plane_ptr, queries } => (plane_ptr.len(), true, false, *queries),
            DeviceRows::Ranges { plane_ptr } => (plane_ptr.len(), false, true, 0),
        };
        let per_entry = if entries == DeviceEntries::Ranges { 2 } else { 1 };
        let lengths = [
            planes,
            if lists { groups + 1 } else { 0 },
            queries,
            if ranges { groups } else { 0 },
            if ranges { groups } else { 0 },
            if is_bits { 0 } else { groups + 1 },
            capacity * per_entry,
            if biased { capacity } else { 0 },
        ];
        let mut end = 0;
        let regions = lengths.map(|length| {
            let start = end;
            end = (start + length).next_multiple_of(ALIGN);
            (start, length)
        });
        // Kernels bind something even where a plan has no group.
        let words = Tensor::uninit(gpu, &[end.max(ALIGN)], DType::U32)?;
        let part = DevicePart {
            rows,
            entries,
            groups,
            capacity,
            biased,
            words,
            regions,
            multiset: false,
            keys: None,
            members: None,
        };
        if let DeviceRows::Lists { plane_ptr, .. } | DeviceRows::Ranges { plane_ptr } = &part.rows {
            part.write(Region::PlanePtr, plane_ptr)?;
        }
        Ok(part)
    }

    /// The same, where the host knows that no group has more than so many queries, and lists no more
    /// than so many keys (whole blocks). Executors then need less memory for partial results.
    pub fn with_most(self, queries: usize, keys: usize) -> DevicePart {
        let all =
            |most: usize| Some(vec![u32::try_from(most).unwrap_or(u32::MAX); self.groups].into());
        DevicePart { members: all(queries), keys: all(keys), ..self }
    }

    /// The queries of each group.
    pub fn rows(&self) -> &DeviceRows {
        &self.rows
    }

    /// The keys of each group.
    pub fn entries(&self) -> DeviceEntries {
        self.entries
    }

    /// Number of groups.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Entries that there is room for; words, for bits.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// A region's words, a view `[length]` of u32 that kernels may write; empty where the kinds of
    /// rows and entries have no such region.
    ///
    /// # Errors
    /// None for a part that was made by this crate.
    pub fn region(&self, region: Region) -> Result<Tensor> {
        let (start, length) = self.regions[region as usize];
        self.words.narrow(0, start, length)
    }

    /// First word of a region.
    pub(crate) fn start(&self, region: Region) -> u32 {
        self.regions[region as usize].0 as u32
    }
}

impl DevicePlan {
    /// A plan of one part that kernels write, each query in one group, without near part or largest
    /// distance. For listed and ranged rows as [`DevicePlan::from_parts`].
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] where the part has not the groups that the shape asks for;
    /// allocation errors.
    pub fn new(
        shape: PlanShape,
        share: Share,
        causal: bool,
        part: DevicePart,
    ) -> Result<DevicePlan> {
        DevicePlan::from_parts(shape, share, causal, vec![part], Combine::Single)
    }

    /// A plan of parts that kernels write, without near part or largest distance. Nothing is read back.
    ///
    /// Tiled rows may be written afterwards. Listed and ranged rows must have been written before, all
    /// regions of the rows: a map from queries to groups is made of them here. What they say is not
    /// checked: they must be canonical, and with [`Combine::Single`] no query may be in two groups.
    /// [`DevicePart::with_most`] saves memory.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] where a part has not the groups that the shape asks for, for
    /// [`Combine::Gate`], and where there is no part; allocation errors.
    pub fn from_parts(
        shape: PlanShape,
        share: Share,
        causal: bool,
        parts: Vec<DevicePart>,
        combine: Combine,
    ) -> Result<DevicePlan> {
        let host = SparsePlan::new(shape, share, causal, Vec::new());
        host.check()?;
        if matches!(combine, Combine::Gate(_)) {
            return Err(attn_core::Error::config("combine", "no gates", "gates").into());
        }
        for part in &parts {
            check_part(&host, part)?;
        }
        let Some(gpu) = parts.first().map(|part| part.words.gpu().clone()) else {
            return Err(attn_core::Error::config("parts", "at least one", 0).into());
        };
        let mut plan = DevicePlan {
            shape,
            causal,
            share,
            near: Near::default(),
            max_dist: None,
            combine,
            parts,
            listing: None,
        };
        if !plan.is_one_tiled_part() {
            plan.listing = Some(device_listing(&gpu, &plan)?);
        }
        Ok(plan)
    }

    /// Whether there is one softmax of one tiled part, so that a query's group follows from its number.
    fn is_one_tiled_part(&self) -> bool {
        let one = matches!(&self.parts[..], [DevicePart { rows: DeviceRows::Tiled { .. }, .. }]);
        one && !self.is_weighted()
    }

    /// The same with sinks and a window.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] in a plan that is not causal.
    pub fn with_near(self, near: Near) -> Result<DevicePlan> {
        let plan = DevicePlan { near, ..self };
        plan.settings().check()?;
        Ok(plan)
    }

    /// The same without keys farther than `max_dist` before the query.
    pub fn with_max_dist(self, max_dist: u32) -> DevicePlan {
        DevicePlan { max_dist: Some(max_dist), ..self }
    }

    /// Copies a plan to a device.
    ///
    /// # Errors
    /// [`attn_core::Error`] where the plan is not valid ([`SparsePlan::validate`]); allocation errors.
    pub fn upload(gpu: &Gpu, plan: &SparsePlan) -> Result<DevicePlan> {
        plan.validate()?;
        let parts: Result<Vec<_>> =
            plan.parts.iter().map(|part| DevicePart::upload(gpu, plan, part)).collect();
        let mut uploaded = DevicePlan {
            shape: plan.shape,
            causal: plan.causal,
            share: plan.share,
            near: plan.near,
            max_dist: plan.max_dist,
            combine: plan.combine.clone(),
            parts: parts?,
            listing: None,
        };
        if !uploaded.is_one_tiled_part() {
            let words = listing(plan);
            uploaded.listing = Some(Tensor::from_slice(gpu, &words, &[words.len()])?);
        }
        Ok(uploaded)
    }

    /// Copies the plan to the host. Blocks.
    ///
    /// # Errors
    /// Device errors.
    pub fn download(&self) -> Result<SparsePlan> {
        let parts: Result<Vec<_>> = self.parts.iter().map(DevicePart::download).collect();
        let mut plan = self.settings();
        plan.parts = parts?;
        Ok(plan)
    }

    /// The plan after keys came, as [`SparsePlan::reuse`]: the same entries, for as many queries at the
    /// end of `keys` keys. Copies nothing.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] where there are fewer keys than before.
    pub fn reuse(&self, keys: usize) -> Result<DevicePlan> {
        let Some(came) = keys.checked_sub(self.shape.keys) else {
            let expected = format!("at least {}", self.shape.keys);
            return Err(attn_core::Error::config("keys", expected, keys).into());
        };
        let mut plan = self.clone();
        plan.shape.keys = keys;
        plan.shape.q_off = plan.shape.q_off.saturating_add_unsigned(came as u64);
        Ok(plan)
    }

    /// The extents it was made for.
    pub fn shape(&self) -> &PlanShape {
        &self.shape
    }

    /// Whether no query sees a key behind its position.
    pub fn causal(&self) -> bool {
        self.causal
    }

    /// Which heads share a list.
    pub fn share(&self) -> Share {
        self.share
    }

    /// Explicit keys.
    pub fn parts(&self) -> &[DevicePart] {
        &self.parts
    }

    /// Whether the groups of a query are softmaxes of their own.
    pub(crate) fn is_weighted(&self) -> bool {
        !matches!(self.combine, Combine::Single | Combine::Lse)
    }

    /// The plan without its parts, on the host.
    pub(crate) fn settings(&self) -> SparsePlan {
        let mut plan = SparsePlan::new(self.shape, self.share, self.causal, Vec::new());
        (plan.near, plan.max_dist, plan.combine) = (self.near, self.max_dist, self.combine.clone());
        plan
    }
}
