//! GGUF files: metadata keys and the table of tensors.
//!
//! Every count, length and offset is held against the size of the file before anything is allocated
//! for it.

mod blocks;
mod cursor;
mod table;

use std::collections::BTreeMap;

pub use blocks::{GgufType, dequantize};
pub use table::GgufTensor;

use crate::blob::Blob;
use crate::{Error, Result};
use cursor::Cursor;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum GgufValue {
    /// An unsigned integer of any width.
    Unsigned(u64),
    /// A signed integer of any width.
    Signed(i64),
    /// A float; f32 is widened.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
    /// A list of numbers or truth values.
    Numbers(GgufNumbers),
}

/// A list of numbers, as the file holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufNumbers {
    kind: u32,
    bytes: Vec<u8>,
}

impl GgufNumbers {
    /// The numbers in order, each as a scalar value.
    pub fn iter(&self) -> impl Iterator<Item = GgufValue> + '_ {
        let width = cursor::width(self.kind).unwrap_or(1);
        self.bytes.chunks_exact(width).filter_map(|bytes| cursor::scalar(self.kind, bytes))
    }
}

/// The header of a GGUF file, and access to its tensors' bytes.
#[derive(Debug, Clone)]
pub struct Gguf {
    blob: Blob,
    keys: BTreeMap<String, GgufValue>,
    tensors: Vec<GgufTensor>,
    by_name: BTreeMap<String, usize>,
}

impl Gguf {
    /// Reads the header. The tensors' data stay where they are.
    ///
    /// # Errors
    /// [`Error::Format`] where a count, length, type, offset or name cannot be right;
    /// [`Error::Unsupported`] for other versions than 2 and 3, and for arrays of arrays.
    pub fn read(blob: Blob) -> Result<Self> {
        let mut cursor = Cursor::new(&blob);
        let magic = cursor.array::<4>("magic")?;
        if &magic != b"GGUF" {
            let got = format!("{:?}", String::from_utf8_lossy(&magic));
            return Err(Error::format(blob.name(), "byte 0", "the magic \"GGUF\"", got));
        }
        let version = cursor.u32("version")?;
        if ![2, 3].contains(&version) {
            return Err(Error::unsupported(blob.name(), "GGUF version", version, "2 and 3"));
        }
        // A tensor takes at least its name's length, dims, one dim, type and offset.
        let tensor_count = cursor.count("number of tensors", 8 + 4 + 8 + 4 + 8)?;
        let key_count = cursor.count("number of keys", 8 + 4 + 1)?;
        let mut keys = BTreeMap::new();
        for _ in 0..key_count {
            let key = cursor.text("a key")?;
            if key.is_empty() {
                return Err(cursor.wrong("a key", "a name", "none"));
            }
            let value = cursor.value(&key)?;
            if keys.contains_key(&key) {
                return Err(Error::format(blob.name(), key, "a key once", "it twice"));
            }
            keys.insert(key, value);
        }
        let infos = table::read(&mut cursor, tensor_count)?;
        let end = cursor.position();
        let tensors = table::place(&blob, infos, end, alignment(&blob, &keys)?)?;
        let names = tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.clone(), i));
        let by_name = names.collect();
        Ok(Self { blob, keys, tensors, by_name })
    }

    /// Where the file is, for messages.
    pub fn name(&self) -> &str {
        self.blob.name()
    }

    /// The file's bytes.
    pub(crate) fn blob(&self) -> &Blob {
        &self.blob
    }

    /// Names of the keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// A value, if there is one.
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.keys.get(key)
    }

    /// The tensors in the order of the file's table.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// A tensor by its name in the file.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.by_name.get(name).map(|i| &self.tensors[*i])
    }

    /// Text under a key, if there is one.
    ///
    /// # Errors
    /// [`Error::Format`] where the value is no text.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "text", |value| match value {
            GgufValue::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// Texts under a key, if there is one.
    ///
    /// # Errors
    /// [`Error::Format`] where the value is no list of texts.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "a list of texts", |value| match value {
            GgufValue::Texts(texts) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// A truth value under a key, if there is one.
    ///
    /// # Errors
    /// [`Error::Format`] where it is anything else.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |value| match value {
            GgufValue::Bool(value) => Some(*value),
            _ => None,
        })
    }

    /// An integer that is not negative, under a key, if there is one.
    ///
    /// # Errors
    /// [`Error::Format`] where it is anything else.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "an integer that is not negative", unsigned)
    }

    /// A number under a key, if there is one.
    ///
    /// # Errors
    /// [`Error::Format`] where it is anything else.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |value| match value {
            GgufValue::Float(value) => Some(*value),
            GgufValue::Unsigned(value) => Some(*value as f64),
            GgufValue::Signed(value) => Some(*value as f64),
            _ => None,
        })
    }

    /// A list of integers that are not negative, under a key, if there is one.
    ///
    /// # Errors
    /// [`Error::Format`] where it is anything else.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<u64>>> {
        self.typed(key, "a list of integers that are not negative", |value| match value {
            GgufValue::Numbers(numbers) => numbers.iter().map(|n| unsigned(&n)).collect(),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a GgufValue) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let wrong = || Error::format(self.name(), key, expected, describe(value));
        read(value).map(Some).ok_or_else(wrong)
    }
}

fn unsigned(value: &GgufValue) -> Option<u64> {
    match value {
        GgufValue::Unsigned(value) => Some(*value),
        GgufValue::Signed(value) => u64::try_from(*value).ok(),
        _ => None,
    }
}

fn alignment(blob: &Blob, keys: &BTreeMap<String, GgufValue>) -> Result<u64> {
    const KEY: &str = "general.alignment";
    let Some(value) = keys.get(KEY) else {
        return Ok(32);
    };
    let fits = |n: &u64| n.is_power_of_two() && *n <= 1 << 20;
    let wrong = || Error::format(blob.name(), KEY, "a power of two up to 2^20", describe(value));
    unsigned(value).filter(fits).ok_or_else(wrong)
}

/// A value for messages, without the contents of lists.
fn describe(value: &GgufValue) -> String {
    match value {
        GgufValue::Unsigned(value) => value.to_string(),
        GgufValue::Signed(value) => value.to_string(),
        GgufValue::Float(value) => value.to_string(),
        GgufValue::Bool(value) => value.to_string(),
        GgufValue::Text(text) => format!("{:?}", text.chars().take(80).collect::<String>()),
        GgufValue::Texts(texts) => format!("a list of {} texts", texts.len()),
        GgufValue::Numbers(numbers) => format!("a list of {} numbers", numbers.iter().count()),
    }
}
