use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use ndarray::{ArrayD, IxDyn};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::{Error, Result};

/// A safetensors file in memory. Tensors may lie at any byte: files do not align them.
#[derive(Debug, Clone)]
pub struct TensorFile {
    path: PathBuf,
    config: Value,
    tensors: BTreeMap<String, Stored>,
}

#[derive(Debug, Clone)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl TensorFile {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be read, is no safetensors file, or has something else than
    /// JSON under the metadata key `config`.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|error| Error::file(path, error))?;
        TensorFile::parse(path, &bytes)
    }

    /// The same from the contents of the file; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::File`], as [`TensorFile::read`].
    pub fn parse(path: impl Into<PathBuf>, bytes: &[u8]) -> Result<Self> {
        let path = path.into();
        let bad = |reason: String| Error::file(&path, reason);
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| bad(e.to_string()))?;
        let file = SafeTensors::deserialize(bytes).map_err(|e| bad(e.to_string()))?;
        let config = config(header.metadata().as_ref()).map_err(bad)?;
        let stored = |view: safetensors::tensor::TensorView<'_>| Stored {
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            bytes: view.data().to_vec(),
        };
        let tensors = file.iter().map(|(name, view)| (name.to_owned(), stored(view))).collect();
        Ok(TensorFile { path, config, tensors })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The JSON under the metadata key `config`; null where there is none.
    pub fn config(&self) -> &Value {
        &self.config
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
    /// [`Error::File`] where there is no such tensor.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.stored(name)?.shape)
    }

    /// Whether a tensor holds floating-point numbers of 16, 32 or 64 bits.
    ///
    /// # Errors
    /// [`Error::File`] where there is no such tensor.
    pub fn is_float(&self, name: &str) -> Result<bool> {
        let dtype = self.stored(name)?.dtype;
        Ok(matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64))
    }

    /// A tensor of floating-point numbers or integers as f64, exact but for integers beyond 2^53.
    ///
    /// # Errors
    /// [`Error::File`] where there is no such tensor or it has another element type.
    pub fn f64(&self, name: &str) -> Result<ArrayD<f64>> {
        let stored = self.stored(name)?;
        let data = match stored.dtype {
            Dtype::F16 => stored.elements(|b| f16::from_le_bytes(b).to_f64()),
            Dtype::BF16 => stored.elements(|b| bf16::from_le_bytes(b).to_f64()),
            Dtype::F32 => stored.elements(|b| f64::from(f32::from_le_bytes(b))),
            Dtype::F64 => stored.elements(f64::from_le_bytes),
            _ => stored.integers().map(|data| data.into_iter().map(|x| x as f64).collect()),
        };
        self.array(name, data, "numbers")
    }

    /// The same as f32, rounded where the file holds more.
    ///
    /// # Errors
    /// As [`TensorFile::f64`].
    pub fn f32(&self, name: &str) -> Result<ArrayD<f32>> {
        Ok(self.f64(name)?.mapv(|x| x as f32))
    }

    /// A tensor of integers or booleans that all fit.
    ///
    /// # Errors
    /// [`Error::File`] where there is no such tensor, or it holds anything else.
    pub fn i32(&self, name: &str) -> Result<ArrayD<i32>> {
        self.narrow(name, "integers of 32 bits")
    }

    /// A tensor of integers or booleans that all fit.
    ///
    /// # Errors
    /// [`Error::File`] where there is no such tensor, or it holds anything else.
    pub fn u8(&self, name: &str) -> Result<ArrayD<u8>> {
        self.narrow(name, "integers of 0..256")
    }

    /// A log-sum-exp: as [`TensorFile::f64`], with values at or below -1e29, which files hold for
    /// rows without any allowed key, mapped to -inf.
    ///
    /// # Errors
    /// As [`TensorFile::f64`].
    pub fn lse(&self, name: &str) -> Result<ArrayD<f64>> {
        Ok(self.f64(name)?.mapv(|x| if x <= -1e29 { f64::NEG_INFINITY } else { x }))
    }

    fn narrow<T: TryFrom<i128>>(&self, name: &str, expected: &str) -> Result<ArrayD<T>> {
        let integers = self.stored(name)?.integers();
        let data =
            integers.and_then(|data| data.into_iter().map(|x| T::try_from(x).ok()).collect());
        self.array(name, data, expected)
    }

    fn stored(&self, name: &str) -> Result<&Stored> {
        let missing = || Error::file(&self.path, format!("no tensor `{name}`"));
        self.tensors.get(name).ok_or_else(missing)
    }

    fn array<T>(&self, name: &str, data: Option<Vec<T>>, expected: &str) -> Result<ArrayD<T>> {
        let stored = self.stored(name)?;
        let data = data.ok_or_else(|| {
            let reason = format!("tensor `{name}` holds {:?}, expected {expected}", stored.dtype);
            Error::file(&self.path, reason)
        })?;
        ArrayD::from_shape_vec(IxDyn(&stored.shape), data)
            .map_err(|error| Error::file(&self.path, format!("tensor `{name}`: {error}")))
    }
}

impl Stored {
    /// Elements of `N` bytes each, wherever they lie.
    fn elements<const N: usize, T>(&self, read: impl Fn([u8; N]) -> T) -> Option<Vec<T>> {
        let (elements, rest) = self.bytes.as_chunks::<N>();
        rest.is_empty().then(|| elements.iter().map(|&bytes| read(bytes)).collect())
    }

    fn integers(&self) -> Option<Vec<i128>> {
        match self.dtype {
            Dtype::BOOL | Dtype::U8 => self.elements(|b| u8::from_le_bytes(b).into()),
            Dtype::I8 => self.elements(|b| i8::from_le_bytes(b).into()),
            Dtype::U16 => self.elements(|b| u16::from_le_bytes(b).into()),
            Dtype::I16 => self.elements(|b| i16::from_le_bytes(b).into()),
            Dtype::U32 => self.elements(|b| u32::from_le_bytes(b).into()),
            Dtype::I32 => self.elements(|b| i32::from_le_bytes(b).into()),
            Dtype::U64 => self.elements(|b| u64::from_le_bytes(b).into()),
            Dtype::I64 => self.elements(|b| i64::from_le_bytes(b).into()),
            _ => None,
        }
    }
}

fn config(metadata: Option<&HashMap<String, String>>) -> Result<Value, String> {
    match metadata.and_then(|metadata| metadata.get("config")) {
        None => Ok(Value::Null),
        Some(text) => serde_json::from_str(text).map_err(|e| format!("metadata `config`: {e}")),
    }
}
