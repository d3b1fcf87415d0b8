//! Sorting by small numbers, and what is made of it: lists by class, transposed rows.

use super::{Words, each, lanes, scan, select_kernel};
use crate::capabilities::Capabilities;
use crate::error::Result;
use crate::kernel::{Call, Constants, KernelSource};
use crate::rows;
use crate::tensor::{DType, Tensor};

pub(crate) const SORT: KernelSource = select_kernel!("select_sort");
pub(crate) const BOUNDS: KernelSource = select_kernel!("select_bounds");
pub(crate) const KEYS: KernelSource = select_kernel!("select_keys");
pub(crate) const TAKE: KernelSource = select_kernel!("select_take");

/// Bits of a pass, as in the kernel.
const DIGIT_BITS: u32 = 4;
/// Neighbours that one lane sorts.
const ITEMS: u32 = 32;

/// Elements by class.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Sorted {
    /// Where each class begins in `order`, u32 `[classes + 1]`.
    pub offsets: Tensor,
    /// Elements, class by class, those of a class in rising order; u32 `[n]`. Elements without a class
    /// come last.
    pub order: Tensor,
}

/// Lists of positions, as `Rows::Lists` of a plan has them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Lists {
    /// Where each list begins, u32 `[planes * classes + 1]`.
    pub offsets: Tensor,
    /// Positions in their plane, rising in each list; u32 `[planes * n]`. Behind the last list those
    /// without a class.
    pub positions: Tensor,
}

/// Rows of entries, read by column.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Transposed {
    /// Where each column begins, u32 `[planes * columns + 1]`.
    pub offsets: Tensor,
    /// Rows, rising in each column; u32 `[capacity]`. `u32::MAX` behind the last column.
    pub rows: Tensor,
    /// Which entries of the source these are, u32 `[capacity]`.
    pub entries: Tensor,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct SortParams {
    count: u32,
    tiles: u32,
    shift: u32,
    most: u32,
    keys_start: u32,
}

/// What the kernel that sorts does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pass {
    pub(crate) first: bool,
    pub(crate) count: bool,
}

impl Pass {
    pub(crate) fn constants(self, lanes: u32) -> Constants {
        Constants::new()
            .int("WORKGROUP", lanes)
            .int("ITEMS", ITEMS)
            .flag("FIRST", self.first)
            .flag("COUNT", self.count)
    }
}

/// Sixteen counters a lane must fit the workgroup memory of any device.
pub(crate) fn sort_lanes(capabilities: &Capabilities) -> u32 {
    lanes(capabilities).min(64)
}

/// Sorts the elements `0 .. n` by `keys` u32 `[n]`, stable. Keys of at least `classes` are of no class.
///
/// # Errors
/// [`attn_core::Error`] for other shapes or types, or 2^32 - 1 classes or more.
pub fn counting_sort(keys: &Tensor, classes: usize) -> Result<Sorted> {
    let gpu = keys.gpu();
    let count = super::check_numbers("keys", keys, gpu)?;
    let most = check_classes(classes)?;
    if count == 0 {
        let offsets = Tensor::zeros(gpu, &[classes + 1], DType::U32)?;
        return Ok(Sorted { offsets, order: Tensor::uninit(gpu, &[0], DType::U32)? });
    }
    let mut keys = keys.contiguous()?;
    let mut order = None;
    let passes = (u32::BITS - most.leading_zeros()).div_ceil(DIGIT_BITS).max(1);
    for pass in 0..passes {
        let (sorted_keys, sorted) = sort(&keys, order.as_ref(), pass * DIGIT_BITS, most)?;
        (keys, order) = (sorted_keys, Some(sorted));
    }
    let offsets = Tensor::uninit(gpu, &[classes + 1], DType::U32)?;
    let params = [most + 1, count as u32];
    each(gpu, &BOUNDS, &[], &[&keys, &offsets], bytemuck::cast_slice(&params), classes + 1)?;
    Ok(Sorted { offsets, order: order.unwrap_or(keys) })
}

/// One pass: sorted keys and elements.
fn sort(keys: &Tensor, order: Option<&Tensor>, shift: u32, most: u32) -> Result<(Tensor, Tensor)> {
    let gpu = keys.gpu();
    let count = keys.len();
    let lanes = sort_lanes(gpu.capabilities());
    let tiles = count.div_ceil((lanes * ITEMS) as usize);
    let given = Words::of(keys);
    let params = SortParams {
        count: count as u32,
        tiles: tiles as u32,
        shift,
        most,
        keys_start: given.start,
    };
    let run = |count_only, bindings: &[_]| {
        let pass = Pass { first: order.is_none(), count: count_only };
        let kernel = gpu.kernel(&SORT, pass.constants(lanes))?;
        let (params, work) = (bytemuck::bytes_of(&params), 8.0 * count as f64);
        kernel.dispatch(gpu, &Call { bindings, params, groups: tiles as u64, work })
    };
    let counts = Tensor::uninit(gpu, &[tiles << DIGIT_BITS], DType::U32)?;
    run(true, &[given.binding.clone(), counts.binding().0])?;
    let bases = scan::scan_u32(&counts)?;
    let new = || Tensor::uninit(gpu, &[count], DType::U32);
    let (sorted_keys, sorted) = (new()?, new()?);
    let mut bindings =
        vec![given.binding, bases.binding().0, sorted_keys.binding().0, sorted.binding().0];
    bindings.extend(order.map(|order| order.binding().0));
    run(false, &bindings)?;
    Ok((sorted_keys, sorted))
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct KeyParams {
    count: u32,
    width: u32,
    classes: u32,
    rows: u32,
    given_start: u32,
    row_ptr_start: u32,
}

/// The members of each class: `class` u32 `[planes, n]` holds the class of every position of a plane,
/// for instance the cluster that a token was assigned to. Classes of at least `classes` are none.
///
/// # Errors
/// [`attn_core::Error`] for other shapes or types, or too many lists.
pub fn gather_lists(class: &Tensor, classes: usize) -> Result<Lists> {
    let gpu = class.gpu();
    rows::check_device("class", class, gpu)?;
    let &[planes, width] = class.shape() else {
        return Err(attn_core::Error::shape("class", "[planes, n]", class.shape()).into());
    };
    rows::check_form("class", class, &[planes, width], DType::U32)?;
    let lists = planes.saturating_mul(classes);
    check_classes(lists)?;
    let count = planes * width;
    let keys = Tensor::uninit(gpu, &[count], DType::U32)?;
    let class = class.contiguous()?;
    let params = KeyParams {
        count: count as u32,
        width: width as u32,
        classes: classes as u32,
        rows: 0,
        given_start: Words::of(&class).start,
        row_ptr_start: 0,
    };
    each(gpu, &KEYS, &[], &[&class, &keys], bytemuck::bytes_of(&params), count)?;
    let Sorted { offsets, order } = counting_sort(&keys, lists)?;
    let positions = Tensor::uninit(gpu, &[count], DType::U32)?;
    let params = [count as u32, width as u32];
    let params = bytemuck::cast_slice(&params);
    each(gpu, &TAKE, &["MODULO"], &[&order, &positions], params, count)?;
    Ok(Lists { offsets, positions })
}

/// Reads rows of entries by column, plane by plane: entries `row_ptr[r] .. row_ptr[r + 1]` of row `r`
/// have the columns `col`, u32 `[capacity]`; rows are shared out evenly over `planes`. Entries from
/// `row_ptr[rows]` on, and those of columns that there are not, are left out.
///
/// With `row_ptr` and `col` the offsets and members of lists, this is the map from each member to the
/// places where it is listed, in rising order.
///
/// # Errors
/// [`attn_core::Error`] for other shapes or types, rows that `planes` does not divide, or too many
/// columns.
pub fn transpose_csr(
    row_ptr: &Tensor,
    col: &Tensor,
    planes: usize,
    columns: usize,
) -> Result<Transposed> {
    let gpu = col.gpu();
    let capacity = super::check_numbers("col", col, gpu)?;
    let rows = super::check_row_ptr(row_ptr, gpu)?;
    if !rows.is_multiple_of(planes.max(1)) {
        let expected = format!("a divisor of the {rows} rows");
        return Err(attn_core::Error::config("planes", expected, planes).into());
    }
    let lists = planes.saturating_mul(columns);
    check_classes(lists)?;
    let new = || Tensor::uninit(gpu, &[capacity], DType::U32);
    let (keys, row_of, taken) = (new()?, new()?, new()?);
    let (row_ptr, col) = (row_ptr.contiguous()?, col.contiguous()?);
    let params = KeyParams {
        count: capacity as u32,
        width: (rows / planes.max(1)).max(1) as u32,
        classes: columns as u32,
        rows: rows as u32,
        given_start: Words::of(&col).start,
        row_ptr_start: Words::of(&row_ptr).start,
    };
    let params = bytemuck::bytes_of(&params);
    each(gpu, &KEYS, &["ENTRIES"], &[&col, &keys, &row_ptr, &row_of], params, capacity)?;
    let Sorted { offsets, order } = counting_sort(&keys, lists)?;
    let params = [capacity as u32, 0];
    let params = bytemuck::cast_slice(&params);
    each(gpu, &TAKE, &[], &[&order, &taken, &row_of], params, capacity)?;
    Ok(Transposed { offsets, rows: taken, entries: order })
}

/// The number of classes as the key of those without one.
fn check_classes(classes: usize) -> Result<u32> {
    match u32::try_from(classes) {
        Ok(classes) if classes < u32::MAX => Ok(classes),
        _ => Err(attn_core::Error::config("classes", "below 2^32 - 1 in all", classes).into()),
    }
}
