//! The header of a safetensors file: eight bytes of length, JSON, then data.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{Change, Kind, Stored};
use crate::blob::Blob;
use crate::gguf::GgufType;
use crate::{Error, Result};

/// The format's own bound on its header.
const HEADER: u64 = 100_000_000;

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The entries in order. A name that comes twice is refused: which one holds is anybody's guess.
struct Header(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Header, M::Error> {
                let mut entries = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let entry = map.next_value()?;
                    if entries.insert(name, entry).is_some() {
                        return Err(serde::de::Error::custom("a tensor comes twice"));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// The tensors of a file by their names in it.
pub fn read(blob: &Blob) -> Result<BTreeMap<String, Stored>> {
    let file = blob.name();
    let mut length = [0; 8];
    blob.read(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    let room = blob.len() - 8;
    if length > room.min(HEADER) {
        let expected = format!("a header of at most {} bytes", room.min(HEADER));
        return Err(Error::format(file, "byte 0", expected, length));
    }
    let json = blob.bytes(8, length)?;
    let header: Header = serde_json::from_slice(&json)
        .map_err(|error| Error::format(file, "header", "JSON of tensors", error))?;
    let data = 8 + length;
    let mut ranges = Vec::new();
    let mut tensors = BTreeMap::new();
    for (name, entry) in header.0 {
        let stored = place(blob, data, &name, &entry)?;
        ranges.push((entry.data_offsets, name.clone()));
        tensors.insert(name, stored);
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        let ((_, end), first) = &pair[0];
        let ((start, _), second) = &pair[1];
        if start < end {
            let got = format!("data that overlap those of `{first}`");
            return Err(Error::format(file, second, "data of its own", got));
        }
    }
    Ok(tensors)
}

fn place(blob: &Blob, data: u64, name: &str, entry: &Entry) -> Result<Stored> {
    let bad = |expected: &str, got: String| Err(Error::format(blob.name(), name, expected, got));
    let (start, end) = entry.data_offsets;
    if start > end || end > blob.len() - data {
        let expected = format!("data within {} bytes", blob.len() - data);
        return bad(&expected, format!("bytes {start} to {end}"));
    }
    let shape: Option<Vec<usize>> =
        entry.shape.iter().map(|extent| usize::try_from(*extent).ok()).collect();
    // Extents of 0 hide no overflow of the others.
    let fits = |shape: &&Vec<usize>| {
        shape.iter().try_fold(8usize, |product, n| product.checked_mul((*n).max(1))).is_some()
    };
    let elements = shape.as_ref().filter(fits).map(|shape| shape.iter().product::<usize>() as u64);
    let (Some(shape), Some(elements)) = (shape, elements) else {
        return bad("extents whose product fits", format!("{:?}", entry.shape));
    };
    let kind = match entry.dtype.as_str() {
        "F32" => Kind::Readable(GgufType::F32),
        "F16" => Kind::Readable(GgufType::F16),
        "BF16" => Kind::Readable(GgufType::BF16),
        other => Kind::Other(other.chars().take(40).collect()),
    };
    if let Kind::Readable(kind) = kind {
        let size = kind.block().map_or(0, |(_, bytes)| bytes as u64);
        if elements.checked_mul(size) != Some(end - start) {
            let expected = format!("{elements} elements of {size} bytes");
            return bad(&expected, format!("{} bytes", end - start));
        }
    }
    Ok(Stored { blob: blob.clone(), start: data + start, shape, kind, change: Change::None })
}
