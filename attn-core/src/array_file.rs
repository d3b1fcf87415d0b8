//! Arrays of f64 by name in safetensors files: what streaming states are saved as.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use ndarray::{Array, ArrayD, ArrayView, Dimension, IxDyn};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::{Error, Result};

/// Key of the metadata under which a file says what it is.
const KIND: &str = "kind";

/// Named arrays of f64, and what they are together.
#[derive(Debug, Clone, PartialEq)]
pub struct ArrayFile {
    kind: String,
    path: PathBuf,
    arrays: BTreeMap<String, ArrayD<f64>>,
}

impl ArrayFile {
    /// No array yet; `kind` says what the file will be, and [`ArrayFile::read`] asks for it.
    pub fn new(kind: &str) -> Self {
        ArrayFile { kind: kind.to_owned(), path: PathBuf::new(), arrays: BTreeMap::new() }
    }

    /// The same with one more array, in place of one that has this name.
    pub fn with<D: Dimension>(mut self, name: &str, array: ArrayView<'_, f64, D>) -> Self {
        self.arrays.insert(name.to_owned(), array.into_dyn().to_owned());
        self
    }

    /// Writes a file of element type F64.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let data: Vec<Vec<u8>> = self
            .arrays
            .values()
            .map(|array| array.iter().flat_map(|x| x.to_le_bytes()).collect())
            .collect();
        let mut views = Vec::new();
        for ((name, array), data) in self.arrays.iter().zip(&data) {
            let view = TensorView::new(Dtype::F64, array.shape().to_vec(), data);
            views.push((name, view.map_err(|error| Error::file(path, error))?));
        }
        let metadata = HashMap::from([(KIND.to_owned(), self.kind.clone())]);
        let bytes = safetensors::serialize(views, Some(metadata));
        let bytes = bytes.map_err(|error| Error::file(path, error))?;
        std::fs::write(path, bytes).map_err(|error| Error::file(path, error))
    }

    /// Reads a file that [`ArrayFile::write`] made.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be read, is damaged or of another kind, or holds anything but
    /// F64.
    pub fn read(path: impl AsRef<Path>, kind: &str) -> Result<Self> {
        Self::read_as(path.as_ref(), Some(kind))
    }

    /// Reads a file of anybody: of any kind or none, with numbers in F16, BF16, F32 or F64, as weights
    /// come. Arrays of other element types are left out.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be read or is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::read_as(path.as_ref(), None)
    }

    fn read_as(path: &Path, kind: Option<&str>) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| Error::file(path, error))?;
        let (_, header) =
            SafeTensors::read_metadata(&bytes).map_err(|error| Error::file(path, error))?;
        let found = header.metadata().as_ref().and_then(|metadata| metadata.get(KIND));
        let found = found.map_or("none", String::as_str);
        if let Some(kind) = kind.filter(|kind| *kind != found) {
            return Err(Error::file(path, format!("its kind is `{found}`, expected `{kind}`")));
        }
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| Error::file(path, error))?;
        let mut arrays = BTreeMap::new();
        for (name, view) in tensors.iter() {
            let data = match numbers(&view) {
                Some(data) if kind.is_none() || view.dtype() == Dtype::F64 => data,
                _ if kind.is_none() => continue,
                _ => {
                    let reason = format!("`{name}` holds {:?}, expected F64", view.dtype());
                    return Err(Error::file(path, reason));
                }
            };
            let array = ArrayD::from_shape_vec(IxDyn(view.shape()), data);
            let array = array.map_err(|error| Error::file(path, format!("`{name}`: {error}")))?;
            arrays.insert(name.to_owned(), array);
        }
        Ok(ArrayFile { kind: found.to_owned(), path: path.to_owned(), arrays })
    }

    /// Whether there is an array of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.arrays.contains_key(name)
    }

    /// The array of this name and rank.
    ///
    /// # Errors
    /// [`Error::File`] where there is none.
    pub fn get<D: Dimension>(&self, name: &str) -> Result<Array<f64, D>> {
        let missing = || Error::file(&self.path, format!("no array `{name}`"));
        let array = self.arrays.get(name).ok_or_else(missing)?.clone();
        let shape = array.shape().to_vec();
        array.into_dimensionality().map_err(|_| {
            Error::file(&self.path, format!("`{name}` has shape {shape:?}, of another rank"))
        })
    }
}

fn numbers(view: &TensorView<'_>) -> Option<Vec<f64>> {
    let data = view.data();
    match view.dtype() {
        Dtype::F16 => Some(elements(data, |bytes| f16::from_le_bytes(bytes).to_f64())),
        Dtype::BF16 => Some(elements(data, |bytes| bf16::from_le_bytes(bytes).to_f64())),
        Dtype::F32 => Some(elements(data, |bytes| f64::from(f32::from_le_bytes(bytes)))),
        Dtype::F64 => Some(elements(data, f64::from_le_bytes)),
        _ => None,
    }
}

/// Elements of `N` bytes each, wherever they lie.
fn elements<const N: usize>(data: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    data.as_chunks::<N>().0.iter().map(|&bytes| number(bytes)).collect()
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, Array3, Ix2, Ix3, arr2};

    use super::*;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("attn-core-{}-{name}.safetensors", std::process::id()))
    }

    #[test]
    fn what_is_written_is_read_bit_for_bit() -> Result<()> {
        let path = path("bits");
        let a = arr2(&[[f64::NEG_INFINITY, -0.0], [1.0 / 3.0, f64::MIN_POSITIVE]]);
        let empty = Array3::<f64>::zeros((2, 0, 3));
        ArrayFile::new("test").with("a", a.t()).with("empty", empty.view()).write(&path)?;
        let file = ArrayFile::read(&path, "test")?;
        let read: Array2<f64> = file.get::<Ix2>("a")?;
        assert!(read.iter().zip(a.t()).all(|(x, y)| x.to_bits() == y.to_bits()));
        assert_eq!(file.get::<Ix3>("empty")?, empty);
        for (error, part) in [
            (file.get::<Ix2>("b").unwrap_err(), "no array `b`"),
            (file.get::<Ix3>("a").unwrap_err(), "of another rank"),
            (ArrayFile::read(&path, "other").unwrap_err(), "its kind is `test`"),
        ] {
            assert!(error.to_string().contains(part), "{error}");
        }
        std::fs::remove_file(&path).map_err(|error| Error::file(&path, error))
    }

    #[test]
    fn files_of_anybody_are_opened() -> Result<()> {
        let path = path("anybody");
        let halves: Vec<u8> =
            [1.5, -2.0].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        let words: Vec<u8> = [3_u32].iter().flat_map(|x| x.to_le_bytes()).collect();
        let singles: Vec<u8> = [0.25_f32].iter().flat_map(|x| x.to_le_bytes()).collect();
        let views = [
            ("h", TensorView::new(Dtype::F16, vec![1, 2], &halves)),
            ("u", TensorView::new(Dtype::U32, vec![1], &words)),
            ("f", TensorView::new(Dtype::F32, vec![1], &singles)),
        ];
        let views = views.map(|(name, view)| (name, view.unwrap()));
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        assert!(ArrayFile::read(&path, "test").is_err());
        let file = ArrayFile::open(&path)?;
        assert_eq!(file.get::<Ix2>("h")?, arr2(&[[1.5, -2.0]]));
        assert_eq!(file.get::<ndarray::Ix1>("f")?, ndarray::arr1(&[0.25]));
        assert!(!file.contains("u"));
        std::fs::remove_file(&path).map_err(|error| Error::file(&path, error))
    }

    #[test]
    fn damaged_files_are_errors() -> Result<()> {
        let path = path("damaged");
        ArrayFile::new("test").with("a", arr2(&[[1.0, 2.0]]).view()).write(&path)?;
        let bytes = std::fs::read(&path).unwrap_or_default();
        for len in 0..bytes.len() {
            std::fs::write(&path, &bytes[..len]).map_err(|error| Error::file(&path, error))?;
            assert!(ArrayFile::read(&path, "test").is_err(), "{len} bytes");
        }
        std::fs::remove_file(&path).map_err(|error| Error::file(&path, error))?;
        assert!(ArrayFile::read(&path, "test").is_err());
        Ok(())
    }
}
