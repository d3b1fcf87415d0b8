//! Tensors of a model by their Hugging Face names, whatever the files are.

mod files;
mod names;
mod safetensors;
mod values;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use attn_wgpu::DType;
use attn_wgpu::packed::BlockType;

pub use values::{TensorData, Values};

use crate::blob::Blob;
use crate::gguf::{Gguf, GgufType, dequantize};
use crate::{Error, ModelConfig, Result};

/// Bytes that are read and converted at a time.
const CHUNK: usize = 1 << 20;

/// The tensors of a model. They stay in their files until they are asked for.
#[derive(Debug, Clone)]
pub struct Weights {
    name: Arc<str>,
    tensors: Arc<BTreeMap<String, Stored>>,
}

/// What is stored in one type.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredType {
    /// Name of the type.
    pub name: String,
    /// Number of tensors.
    pub tensors: usize,
    /// Elements of all of them.
    pub elements: u64,
    /// Bytes of all of them; 0 for a type that is not read.
    pub bytes: u64,
}

/// Where and how a tensor is stored.
#[derive(Debug, Clone)]
struct Stored {
    blob: Blob,
    start: u64,
    shape: Vec<usize>,
    kind: Kind,
    change: Change,
}

/// Element or block type.
#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Readable(GgufType),
    /// By its name in the file.
    Other(String),
}

/// How the stored tensor differs from the one in a Hugging Face file.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Change {
    None,
    /// Rows of each of so many heads are stored in the order of interleaved rotation.
    Interleaved {
        heads: usize,
    },
    /// 1 was added.
    PlusOne,
}

impl Weights {
    /// The tensors of a GGUF file.
    ///
    /// Names become those of Hugging Face. Rows of query and key maps, which architecture `llama`
    /// stores for interleaved rotation, come back in the order for half-split rotation. Norm weights of
    /// Gemma, which are stored with 1 added, come back without it, to be used as `1 + w` like those of a
    /// Hugging Face folder.
    ///
    /// # Errors
    /// [`Error::Format`] where two tensors have the same meaning.
    pub fn from_gguf(gguf: &Gguf, config: &ModelConfig) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for tensor in gguf.tensors() {
            let Some(name) = names::from_gguf(&tensor.name, config.family) else {
                continue;
            };
            let kind = match tensor.kind.block() {
                Some(_) => Kind::Readable(tensor.kind),
                None => Kind::Other(tensor.kind.name()),
            };
            let stored = Stored {
                blob: gguf.blob().clone(),
                start: tensor.start,
                shape: tensor.shape.clone(),
                kind,
                change: names::gguf_change(&name, config),
            };
            if tensors.insert(name.clone(), stored).is_some() {
                return Err(Error::format(gguf.name(), name, "one tensor of this meaning", "two"));
            }
        }
        Ok(Self { name: gguf.name().into(), tensors: Arc::new(tensors) })
    }

    /// Where the tensors come from, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Shape of a tensor.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.stored(name)?.shape)
    }

    /// Types that tensors are stored in, by name, and how much is stored in each.
    pub fn types(&self) -> Vec<StoredType> {
        let mut types: BTreeMap<String, StoredType> = BTreeMap::new();
        for stored in self.tensors.values() {
            let (name, bytes_of): (String, &dyn Fn(usize) -> u64) = match &stored.kind {
                Kind::Readable(kind) => (kind.name(), &|elements| row_bytes(*kind, elements)),
                Kind::Other(name) => (name.clone(), &|_| 0),
            };
            let elements: usize = stored.shape.iter().product();
            let empty = StoredType { name: name.clone(), tensors: 0, elements: 0, bytes: 0 };
            let entry = types.entry(name).or_insert(empty);
            entry.tensors += 1;
            entry.elements += elements as u64;
            entry.bytes += bytes_of(elements);
        }
        types.into_values().collect()
    }

    /// Checks that every tensor of a configuration is there, in its shape and in a type that is read.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::Unsupported`].
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        for (name, shape) in config.tensors() {
            self.checked(&name, &shape)?;
        }
        Ok(())
    }

    /// A whole tensor of a known shape, converted to `dtype`: f32, f16 or bf16, rounded to nearest.
    ///
    /// # Errors
    /// As [`Weights::rows`].
    pub fn tensor(&self, name: &str, shape: &[usize], dtype: DType) -> Result<TensorData> {
        self.rows(name, shape, 0..shape.first().copied().unwrap_or(1), dtype)
    }

    /// Rows `rows` of a tensor of a known shape: `shape` with its first extent replaced. A large matrix
    /// can be uploaded in pieces this way, without ever being in memory as a whole.
    ///
    /// # Errors
    /// [`Error::MissingTensor`]; [`Error::TensorShape`]; [`Error::Unsupported`] for a stored type that
    /// is not read, or another `dtype`; [`attn_core::Error::Data`] where rows are out of range;
    /// [`Error::Format`] where a number is finite in the file but not in f16; [`Error::Io`].
    pub fn rows(
        &self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
        dtype: DType,
    ) -> Result<TensorData> {
        let (stored, kind) = self.checked(name, shape)?;
        self.check_rows(name, shape, &rows)?;
        let mut data = Values::with_capacity(dtype, 0).ok_or_else(|| {
            Error::unsupported(&self.name, "storage type", dtype.name(), "f32, f16 and bf16")
        })?;
        let complete = match shape.len() {
            0 | 1 => stored.vector(kind, rows.clone(), &mut data)?,
            _ => stored.matrix(kind, rows.clone(), &mut data)?,
        };
        if !complete {
            let expected = format!("numbers that fit {}", dtype.name());
            return Err(Error::format(&self.name, name, expected, "a larger one"));
        }
        let mut shape = shape.to_vec();
        if let Some(first) = shape.first_mut() {
            *first = rows.len();
        }
        Ok(TensorData { shape, values: data })
    }

    /// Type of the blocks of a matrix where they are of a type that kernels read, so that it can stay
    /// packed on a device; none for other types, for vectors, and where there is no such tensor.
    pub fn block_type(&self, name: &str) -> Option<BlockType> {
        let stored = self.tensors.get(name).filter(|stored| stored.shape.len() == 2)?;
        match stored.kind {
            Kind::Readable(GgufType::Q4_0) => Some(BlockType::Q4_0),
            Kind::Readable(GgufType::Q4_1) => Some(BlockType::Q4_1),
            Kind::Readable(GgufType::Q8_0) => Some(BlockType::Q8_0),
            Kind::Readable(GgufType::Q4K) => Some(BlockType::Q4K),
            Kind::Readable(GgufType::Q6K) => Some(BlockType::Q6K),
            _ => None,
        }
    }

    /// Rows `rows` of a matrix of a known shape as the file has them, in blocks of its
    /// [`Weights::block_type`]. Rows are in the order of Hugging Face, as everywhere: a row is a number of
    /// whole blocks, and moves as a whole.
    ///
    /// # Errors
    /// As [`Weights::rows`]; [`Error::Unsupported`] for a matrix without such blocks.
    pub fn packed_rows(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Vec<u8>> {
        let (stored, kind) = self.checked(name, shape)?;
        if self.block_type(name).is_none() {
            let what = format!("packed rows of `{name}` in");
            let supported = "Q4_0, Q4_1, Q8_0, Q4_K and Q6_K";
            return Err(Error::unsupported(&self.name, what, kind.name(), supported));
        }
        self.check_rows(name, shape, &rows)?;
        let whole = rows.len() * row_bytes(kind, stored.width()) as usize;
        let mut bytes = Vec::with_capacity(whole);
        stored.pieces(kind, rows, &mut |piece| bytes.extend_from_slice(piece))?;
        Ok(bytes)
    }

    fn check_rows(&self, name: &str, shape: &[usize], rows: &Range<usize>) -> Result<()> {
        let count = shape.first().copied().unwrap_or(1);
        if rows.start > rows.end || rows.end > count {
            let expected = format!("a range within {count} rows of `{name}`");
            return Err(attn_core::Error::data("rows", expected, format!("{rows:?}")).into());
        }
        Ok(())
    }

    fn stored(&self, name: &str) -> Result<&Stored> {
        let missing =
            || Error::MissingTensor { file: self.name.to_string(), name: name.to_owned() };
        self.tensors.get(name).ok_or_else(missing)
    }

    fn checked(&self, name: &str, shape: &[usize]) -> Result<(&Stored, GgufType)> {
        let stored = self.stored(name)?;
        if stored.shape != shape {
            return Err(Error::TensorShape {
                file: self.name.to_string(),
                name: name.to_owned(),
                expected: shape.to_vec(),
                got: stored.shape.clone(),
            });
        }
        match &stored.kind {
            Kind::Readable(kind) => Ok((stored, *kind)),
            Kind::Other(kind) => {
                let supported = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K";
                let what = format!("tensor `{name}` of type");
                Err(Error::unsupported(&self.name, what, kind, supported))
            }
        }
    }
}

impl Stored {
    /// Elements `range` of a vector. Vectors are small, so all of it is read.
    fn vector(&self, kind: GgufType, range: Range<usize>, to: &mut Values) -> Result<bool> {
        let len = self.shape.first().copied().unwrap_or(1);
        let bytes = self.blob.bytes(self.start, row_bytes(kind, len))?;
        let mut values = Vec::with_capacity(len);
        dequantize(kind, &bytes, &mut values);
        let at = |i: usize| values.get(self.source_row(i, len)).copied().unwrap_or(f32::NAN);
        let offset = if self.change == Change::PlusOne { 1.0 } else { 0.0 };
        let picked: Vec<f32> = range.map(|i| at(i) - offset).collect();
        Ok(to.extend(&picked))
    }

    /// Rows of a matrix.
    fn matrix(&self, kind: GgufType, rows: Range<usize>, to: &mut Values) -> Result<bool> {
        to.reserve(rows.len() * self.width());
        let mut values = Vec::new();
        let mut complete = true;
        self.pieces(kind, rows, &mut |piece| {
            if !to.extend_stored(kind, piece) {
                values.clear();
                dequantize(kind, piece, &mut values);
                complete &= to.extend(&values);
            }
        })?;
        Ok(complete)
    }

    /// Elements of a row.
    fn width(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Gives the stored bytes of rows of a matrix to `take`, in as few reads as their order in the file
    /// allows.
    fn pieces(
        &self,
        kind: GgufType,
        rows: Range<usize>,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<()> {
        let bytes = row_bytes(kind, self.width()) as usize;
        if bytes == 0 {
            return Ok(());
        }
        let at_once = match self.change {
            Change::Interleaved { .. } => 1,
            _ => (CHUNK / bytes).max(1),
        };
        let mut buffer = Vec::new();
        let mut row = rows.start;
        while row < rows.end {
            let count = at_once.min(rows.end - row);
            buffer.resize(count * bytes, 0);
            let first = self.source_row(row, self.shape[0]) as u64;
            self.blob.read(self.start + first * bytes as u64, &mut buffer)?;
            take(&buffer);
            row += count;
        }
        Ok(())
    }

    /// Where a row of the Hugging Face order lies: row `i + t D/2` of a head is stored as `2i + t`.
    fn source_row(&self, row: usize, rows: usize) -> usize {
        let Change::Interleaved { heads } = self.change else {
            return row;
        };
        let dim = rows / heads.max(1);
        if dim < 2 {
            return row;
        }
        let (head, r) = (row / dim, row % dim);
        head * dim + 2 * (r % (dim / 2)) + r / (dim / 2)
    }
}

/// Bytes of a row of whole blocks.
fn row_bytes(kind: GgufType, width: usize) -> u64 {
    let (values, bytes) = kind.block().unwrap_or((1, 0));
    (width / values) as u64 * bytes as u64
}
