//! The table of tensors, and where their data lie.

use std::collections::BTreeSet;

use super::GgufType;
use super::cursor::Cursor;
use crate::blob::Blob;
use crate::{Error, Result};

/// More dims than any tensor of a language model has.
const DIMS: u32 = 4;

/// A tensor as the file's table has it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct GgufTensor {
    /// Name in the file.
    pub name: String,
    /// Row-major extents: the reverse of the file's order.
    pub shape: Vec<usize>,
    /// Element or block type.
    pub kind: GgufType,
    /// First byte in the file.
    pub(crate) start: u64,
}

impl GgufTensor {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The entries, with offsets that are relative to the data section.
pub fn read(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<GgufTensor>> {
    let mut names = BTreeSet::new();
    let mut tensors = Vec::new();
    for _ in 0..count {
        let name = cursor.text("a tensor's name")?;
        if !names.insert(name.clone()) {
            return Err(Error::format(cursor.file(), name, "a tensor once", "it twice"));
        }
        let dims = cursor.u32(&name)?;
        if !(1..=DIMS).contains(&dims) {
            return Err(cursor.wrong(&name, format!("1 to {DIMS} dims"), dims));
        }
        let extents: Result<Vec<u64>> = (0..dims).map(|_| cursor.u64(&name)).collect();
        let extents = extents?;
        let shape = shape(&extents).ok_or_else(|| {
            let got = format!("{extents:?}");
            cursor.wrong(&name, "extents above 0 whose product fits the address space", got)
        })?;
        let kind = GgufType::from_id(cursor.u32(&name)?);
        tensors.push(GgufTensor { start: cursor.u64(&name)?, name, shape, kind });
    }
    Ok(tensors)
}

fn shape(extents: &[u64]) -> Option<Vec<usize>> {
    let shape: Option<Vec<usize>> =
        extents.iter().rev().map(|&n| usize::try_from(n).ok().filter(|&n| n > 0)).collect();
    let shape = shape?;
    // With room for eight bytes an element, sizes in bytes fit as well.
    shape.iter().try_fold(8usize, |product, &n| product.checked_mul(n))?;
    Some(shape)
}

/// Checks that every tensor lies in the data section, aligned and apart from the others, and makes the
/// offsets relative to the file.
pub fn place(
    blob: &Blob,
    mut tensors: Vec<GgufTensor>,
    header_end: u64,
    alignment: u64,
) -> Result<Vec<GgufTensor>> {
    let file = blob.name();
    // Without tensors the padding may be missing as well.
    let data = header_end.next_multiple_of(alignment).min(blob.len());
    let room = blob.len() - data;
    let mut ranges = Vec::new();
    for (i, tensor) in tensors.iter_mut().enumerate() {
        if !tensor.start.is_multiple_of(alignment) {
            let expected = format!("an offset that is a multiple of {alignment}");
            return Err(Error::format(file, &tensor.name, expected, tensor.start));
        }
        let bytes = tensor.kind.bytes(tensor.elements(), tensor.shape.last().copied());
        let bytes = bytes.map_err(|expected| {
            Error::format(file, &tensor.name, expected, format!("shape {:?}", tensor.shape))
        })?;
        let end = tensor.start.checked_add(bytes).filter(|end| *end <= room);
        if end.is_none() {
            let expected = format!("data within the {room} bytes behind the header");
            let got = format!("{bytes} bytes from {}", tensor.start);
            return Err(Error::format(file, &tensor.name, expected, got));
        }
        tensor.start += data;
        ranges.push((tensor.start, bytes, i));
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        let [(start, bytes, first), (next, _, second)] = [pair[0], pair[1]];
        if next < start + bytes {
            let got = format!("data that overlap those of `{}`", tensors[first].name);
            return Err(Error::format(file, &tensors[second].name, "data of its own", got));
        }
    }
    Ok(tensors)
}
