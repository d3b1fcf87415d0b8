//! Reading values from front to back.

use super::{GgufNumbers, GgufValue};
use crate::blob::Blob;
use crate::{Error, Result};

const U8: u32 = 0;
const I8: u32 = 1;
const U16: u32 = 2;
const I16: u32 = 3;
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;
const I64: u32 = 11;
const F64: u32 = 12;

/// Bytes that are fetched at a time: headers are made of many small values.
const CHUNK: u64 = 1 << 16;

/// Bytes of a scalar of a type; none for texts, arrays and unknown types.
pub fn width(kind: u32) -> Option<usize> {
    match kind {
        U8 | I8 | BOOL => Some(1),
        U16 | I16 => Some(2),
        U32 | I32 | F32 => Some(4),
        U64 | I64 | F64 => Some(8),
        _ => None,
    }
}

/// A scalar from exactly its bytes.
pub fn scalar(kind: u32, bytes: &[u8]) -> Option<GgufValue> {
    if width(kind)? != bytes.len() {
        return None;
    }
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    let bits = u64::from_le_bytes(word);
    // Shifting up and down again extends the sign.
    let shift = 64 - 8 * bytes.len() as u32;
    Some(match kind {
        I8 | I16 | I32 | I64 => GgufValue::Signed((bits << shift) as i64 >> shift),
        F32 => GgufValue::Float(f32::from_bits(bits as u32).into()),
        F64 => GgufValue::Float(f64::from_bits(bits)),
        BOOL => GgufValue::Bool(bits != 0),
        _ => GgufValue::Unsigned(bits),
    })
}

/// A position in a file, with the bytes behind it at hand.
pub struct Cursor<'a> {
    blob: &'a Blob,
    position: u64,
    chunk: Vec<u8>,
    chunk_start: u64,
}

impl<'a> Cursor<'a> {
    pub fn new(blob: &'a Blob) -> Self {
        Self { blob, position: 0, chunk: Vec::new(), chunk_start: 0 }
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn file(&self) -> &str {
        self.blob.name()
    }

    /// An error about `what`, at the current byte.
    pub fn wrong(&self, what: &str, expected: impl Into<String>, got: impl ToString) -> Error {
        let at = format!("{what} at byte {}", self.position);
        Error::format(self.blob.name(), at, expected, got)
    }

    fn remaining(&self) -> u64 {
        self.blob.len() - self.position
    }

    fn need(&self, what: &str, len: u64) -> Result<()> {
        if len <= self.remaining() {
            return Ok(());
        }
        let got = format!("the end of the file after {}", self.remaining());
        Err(self.wrong(what, format!("{len} bytes"), got))
    }

    pub fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        self.need(what, N as u64)?;
        let end = self.position + N as u64;
        if self.position < self.chunk_start || end > self.chunk_start + self.chunk.len() as u64 {
            let len = CHUNK.min(self.remaining());
            self.chunk = self.blob.bytes(self.position, len)?;
            self.chunk_start = self.position;
        }
        let start = (self.position - self.chunk_start) as usize;
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.chunk[start..start + N]);
        self.position = end;
        Ok(bytes)
    }

    pub fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A number of items of which each takes at least `least` bytes of the rest of the file.
    pub fn count(&mut self, what: &str, least: u64) -> Result<u64> {
        let count = self.u64(what)?;
        if count.checked_mul(least).is_none_or(|bytes| bytes > self.remaining()) {
            let expected =
                format!("at most {}, which the file has room for", self.remaining() / least);
            return Err(self.wrong(what, expected, count));
        }
        Ok(count)
    }

    fn bytes(&mut self, what: &str, len: u64) -> Result<Vec<u8>> {
        self.need(what, len)?;
        let start = self.position.checked_sub(self.chunk_start);
        let start = start.and_then(|start| usize::try_from(start).ok());
        let range = start.zip(usize::try_from(len).ok());
        let range = range.and_then(|(start, len)| Some(start..start.checked_add(len)?));
        let bytes = match range.and_then(|range| self.chunk.get(range)) {
            Some(bytes) => bytes.to_vec(),
            None => self.blob.bytes(self.position, len)?,
        };
        self.position += len;
        Ok(bytes)
    }

    pub fn text(&mut self, what: &str) -> Result<String> {
        let len = self.count(what, 1)?;
        let bytes = self.bytes(what, len)?;
        String::from_utf8(bytes).map_err(|error| self.wrong(what, "UTF-8", error.utf8_error()))
    }

    pub fn value(&mut self, key: &str) -> Result<GgufValue> {
        let kind = self.u32(key)?;
        match kind {
            TEXT => Ok(GgufValue::Text(self.text(key)?)),
            ARRAY => self.list(key),
            _ => {
                let Some(width) = width(kind) else {
                    return Err(self.wrong(key, "a value type of 0 to 12", kind));
                };
                let bytes = self.bytes(key, width as u64)?;
                let unknown = || self.wrong(key, "a value type of 0 to 12", kind);
                scalar(kind, &bytes).ok_or_else(unknown)
            }
        }
    }

    fn list(&mut self, key: &str) -> Result<GgufValue> {
        let kind = self.u32(key)?;
        if kind == ARRAY {
            let supported = "arrays of texts, numbers and truth values";
            return Err(Error::unsupported(self.file(), key, "array of arrays", supported));
        }
        if kind == TEXT {
            let count = self.count(key, 8)?;
            let texts: Result<_> = (0..count).map(|_| self.text(key)).collect();
            return Ok(GgufValue::Texts(texts?));
        }
        let Some(width) = width(kind) else {
            return Err(self.wrong(key, "an element type of 0 to 12", kind));
        };
        let count = self.count(key, width as u64)?;
        let bytes = self.bytes(key, count * width as u64)?;
        Ok(GgufValue::Numbers(GgufNumbers { kind, bytes }))
    }
}
