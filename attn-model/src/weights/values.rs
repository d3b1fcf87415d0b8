use attn_wgpu::DType;
use half::{bf16, f16};

use crate::gguf::GgufType;

/// Numbers in one of the storage types.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Values {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 16-bit floats.
    F16(Vec<f16>),
    /// Upper halves of 32-bit floats.
    BF16(Vec<bf16>),
}

/// A tensor, or some of its rows, on the host.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TensorData {
    /// Row-major extents.
    pub shape: Vec<usize>,
    /// The elements.
    pub values: Values,
}

impl TensorData {
    /// The elements as f32, which holds every storage type exactly.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.values {
            Values::F32(values) => values.clone(),
            Values::F16(values) => values.iter().map(|v| v.to_f32()).collect(),
            Values::BF16(values) => values.iter().map(|v| v.to_f32()).collect(),
        }
    }
}

impl Values {
    /// Room for `len` numbers; none for integer types.
    pub(super) fn with_capacity(dtype: DType, len: usize) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Values::F32(Vec::with_capacity(len))),
            DType::F16 => Some(Values::F16(Vec::with_capacity(len))),
            DType::BF16 => Some(Values::BF16(Vec::with_capacity(len))),
            _ => None,
        }
    }

    /// The storage type.
    pub fn dtype(&self) -> DType {
        match self {
            Values::F32(_) => DType::F32,
            Values::F16(_) => DType::F16,
            Values::BF16(_) => DType::BF16,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Values::F32(values) => values.len(),
            Values::F16(values) => values.len(),
            Values::BF16(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers as little-endian bytes, as files have them.
    pub fn to_le_bytes(&self) -> Vec<u8> {
        match self {
            Values::F32(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Values::F16(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Values::BF16(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    pub(super) fn reserve(&mut self, more: usize) {
        match self {
            Values::F32(values) => values.reserve_exact(more),
            Values::F16(values) => values.reserve_exact(more),
            Values::BF16(values) => values.reserve_exact(more),
        }
    }

    /// Appends numbers, rounded. False where a finite one became infinite.
    pub(super) fn extend(&mut self, from: &[f32]) -> bool {
        match self {
            Values::F32(values) => values.extend_from_slice(from),
            Values::F16(values) => {
                let start = values.len();
                values.extend(from.iter().map(|v| f16::from_f32(*v)));
                let pairs = values[start..].iter().zip(from);
                return pairs.into_iter().all(|(to, from)| to.is_finite() || !from.is_finite());
            }
            Values::BF16(values) => {
                let start = values.len();
                values.extend(from.iter().map(|v| bf16::from_f32(*v)));
                let pairs = values[start..].iter().zip(from);
                return pairs.into_iter().all(|(to, from)| to.is_finite() || !from.is_finite());
            }
        }
        true
    }

    /// Appends numbers that are stored in this very type, whatever their alignment; false where they
    /// are not.
    pub(super) fn extend_stored(&mut self, kind: GgufType, bytes: &[u8]) -> bool {
        match (self, kind) {
            (Values::F32(values), GgufType::F32) => {
                values.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
            }
            (Values::F16(values), GgufType::F16) => {
                values.extend(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)));
            }
            (Values::BF16(values), GgufType::BF16) => {
                values.extend(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)));
            }
            _ => return false,
        }
        true
    }
}
