//! Plans of parts that kernels write: what the host can check of them, and where each query is listed,
//! which for plans from the host [`super::transfer::listing`] says.

use attn_core::plan::{Combine, SparsePlan};

use super::device::{DeviceEntries, DevicePart, DevicePlan, DeviceRows, Region};
use super::params::{Geometry, Pass, blocks};
use super::round::plan_kernel;
use super::transfer::near_weight;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernel::{Call, KernelSource};
use crate::ops;
use crate::select::{counting_sort, each_constants, scan_u32};
use crate::tensor::{DType, Tensor};

pub(crate) const LISTING: KernelSource = plan_kernel!("plan_listing");
pub(crate) const LISTED: KernelSource = plan_kernel!("plan_listed");

/// Words of one place.
const PLACE: usize = 6;

/// Indices of one invocation.
const ITEMS: u32 = 8;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    count: u32,
    part: u32,
    groups: u32,
    first: u32,
    queries: u32,
    keys: u32,
    weight: u32,
    geometry: Geometry,
}

/// The listing of a plan whose rows the host does not know.
pub(super) fn device_listing(gpu: &Gpu, plan: &DevicePlan) -> Result<Tensor> {
    let lists = plan.settings().planes() * plan.shape.queries;
    let rooms: Vec<usize> = plan.parts.iter().map(|part| room(plan, part)).collect();
    let total: usize = rooms.iter().sum();
    let listing = Tensor::uninit(gpu, &[lists + 1 + PLACE * total], DType::U32)?;
    if total == 0 {
        ops::fill(&listing, &[0; 4])?;
        return Ok(listing);
    }
    let query_at = Tensor::uninit(gpu, &[total], DType::U32)?;
    let places = Tensor::uninit(gpu, &[PLACE * total], DType::U32)?;
    let mut first = 0;
    for (number, (part, room)) in plan.parts.iter().zip(rooms).enumerate() {
        list_part(gpu, plan, (number, part), first..first + room, (&query_at, &places))?;
        first += room;
    }
    let sorted = counting_sort(&query_at, lists)?;
    ops::copy(&sorted.offsets, &listing.narrow(0, 0, lists + 1)?)?;
    let params = [(PLACE * total) as u32, lists as u32 + 1];
    let bindings = [&places, &sorted.order, &listing].map(|tensor| tensor.binding().0);
    let (constants, per_group) = each_constants(gpu.capabilities(), ITEMS);
    let call = Call {
        bindings: &bindings,
        params: bytemuck::cast_slice(&params),
        groups: u64::from(params[0]).div_ceil(per_group),
        work: f64::from(params[0]),
    };
    gpu.kernel(&LISTED, constants)?.dispatch(gpu, &call)?;
    Ok(listing)
}

/// Rows of all groups at most.
fn room(plan: &DevicePlan, part: &DevicePart) -> usize {
    let all = plan.settings().planes() * plan.shape.queries;
    if part.groups == 0 {
        return 0;
    }
    match (&part.rows, &plan.combine) {
        (DeviceRows::Tiled { .. }, _) => all,
        (DeviceRows::Lists { queries, .. }, _) => *queries,
        // A query is in at most one group.
        (DeviceRows::Ranges { .. }, Combine::Single) => all,
        (DeviceRows::Ranges { .. }, _) => part.groups * plan.shape.queries,
    }
}

fn list_part(
    gpu: &Gpu,
    plan: &DevicePlan,
    (number, part): (usize, &DevicePart),
    rows: std::ops::Range<usize>,
    (query_at, places): (&Tensor, &Tensor),
) -> Result<()> {
    let offsets = match &part.rows {
        DeviceRows::Tiled { .. } => part.words.clone(),
        DeviceRows::Lists { .. } => part.region(Region::QPtr)?,
        DeviceRows::Ranges { .. } => scan_u32(&part.region(Region::QLen)?)?,
    };
    let pass = Pass { part: Some(part), near: false };
    let params = Params {
        count: rows.len() as u32,
        part: number as u32,
        groups: part.groups as u32,
        first: rows.start as u32,
        queries: plan.shape.queries as u32,
        keys: plan.shape.keys as u32,
        weight: near_weight(&plan.combine).to_bits(),
        geometry: pass.geometry(plan),
    };
    let bindings = [&part.words, &offsets, query_at, places].map(|tensor| tensor.binding().0);
    let (constants, per_group) = each_constants(gpu.capabilities(), ITEMS);
    let constants = constants
        .flag("TILED", matches!(part.rows, DeviceRows::Tiled { .. }))
        .flag("LISTS", matches!(part.rows, DeviceRows::Lists { .. }));
    let call = Call {
        bindings: &bindings,
        params: bytemuck::bytes_of(&params),
        groups: (rows.len() as u64).div_ceil(per_group),
        work: 16.0 * rows.len() as f64,
    };
    gpu.kernel(&LISTING, constants)?.dispatch(gpu, &call)
}

/// Whether a part that kernels write has the groups and the room that a plan of these settings asks for.
pub(super) fn check_part(host: &SparsePlan, part: &DevicePart) -> Result<()> {
    let config = |arg, expected: String, got: String| -> Result<()> {
        Err(attn_core::Error::config(arg, expected, got).into())
    };
    let planes = host.planes();
    match &part.rows {
        DeviceRows::Tiled { bq } => {
            let groups = planes * host.shape.queries.div_ceil(*bq as usize);
            if part.groups != groups {
                return config("groups", format!("{groups} groups"), part.groups.to_string());
            }
        }
        DeviceRows::Lists { plane_ptr, .. } | DeviceRows::Ranges { plane_ptr } => {
            let rises = plane_ptr.first() == Some(&0)
                && plane_ptr.last().is_some_and(|&end| end as usize == part.groups)
                && plane_ptr.is_sorted();
            if plane_ptr.len() != planes + 1 || !rises {
                let expected = format!("{planes} planes of {} groups in all", part.groups);
                return config("plane_ptr", expected, format!("{plane_ptr:?}"));
            }
        }
    }
    if let DeviceEntries::Bits { bk, origin } = part.entries {
        let words = blocks(host.shape.built_keys, bk, origin).div_ceil(32) * part.groups;
        if part.capacity != words {
            return config("capacity", format!("{words} words"), part.capacity.to_string());
        }
    }
    Ok(())
}
