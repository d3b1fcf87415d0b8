//! Element and block types, and what their bytes stand for.

use half::{bf16, f16};

/// Values in a block of the types with one scale.
const BLOCK: usize = 32;

/// Element or block type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GgufType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// Upper halves of 32-bit floats.
    BF16,
    /// Blocks of 32 signed 4-bit values with one scale.
    Q4_0,
    /// Blocks of 32 unsigned 4-bit values with a scale and a minimum.
    Q4_1,
    /// Blocks of 32 signed 5-bit values with one scale.
    Q5_0,
    /// Blocks of 32 unsigned 5-bit values with a scale and a minimum.
    Q5_1,
    /// Blocks of 32 signed 8-bit values with one scale.
    Q8_0,
    /// A type that is not read, by its number.
    Other(u32),
}

impl GgufType {
    /// The type with a number of the format.
    pub fn from_id(id: u32) -> Self {
        match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            30 => Self::BF16,
            other => Self::Other(other),
        }
    }

    /// The name that the format uses.
    pub fn name(self) -> String {
        let name = match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Other(id) => return other_name(id),
        };
        name.into()
    }

    /// Values and bytes of a block; a plain element is a block of one. None for types that are not read.
    pub fn block(self) -> Option<(usize, usize)> {
        match self {
            Self::F32 => Some((1, 4)),
            Self::F16 | Self::BF16 => Some((1, 2)),
            Self::Q4_0 => Some((BLOCK, 2 + 16)),
            Self::Q4_1 => Some((BLOCK, 4 + 16)),
            Self::Q5_0 => Some((BLOCK, 2 + 4 + 16)),
            Self::Q5_1 => Some((BLOCK, 4 + 4 + 16)),
            Self::Q8_0 => Some((BLOCK, 2 + 32)),
            Self::Other(_) => None,
        }
    }

    /// Bytes of a tensor whose rows have `row` elements, 0 for types that are not read.
    pub(super) fn bytes(self, elements: usize, row: Option<usize>) -> Result<u64, String> {
        let Some((values, bytes)) = self.block() else {
            return Ok(0);
        };
        if !row.unwrap_or(1).is_multiple_of(values) {
            return Err(format!("rows of whole blocks of {values} values"));
        }
        Ok((elements / values) as u64 * bytes as u64)
    }
}

/// Types that exist but are not read.
fn other_name(id: u32) -> String {
    let name = match id {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        14 => "Q6_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        _ => return format!("type {id}"),
    };
    name.into()
}

/// Appends the values of whole blocks to `to`; bytes behind the last whole block are ignored. False
/// for a type that is not read.
pub fn dequantize(kind: GgufType, bytes: &[u8], to: &mut Vec<f32>) -> bool {
    let Some((_, size)) = kind.block() else {
        return false;
    };
    for block in bytes.chunks_exact(size) {
        match kind {
            GgufType::F32 => to.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]])),
            GgufType::F16 => to.push(half_at(block, 0)),
            GgufType::BF16 => to.push(bf16::from_le_bytes([block[0], block[1]]).to_f32()),
            GgufType::Q4_0 => {
                let scale = half_at(block, 0);
                to.extend(nibbles(&block[2..]).map(|n| scale * (f32::from(n) - 8.0)));
            }
            GgufType::Q4_1 => {
                let (scale, least) = (half_at(block, 0), half_at(block, 2));
                to.extend(nibbles(&block[4..]).map(|n| scale * f32::from(n) + least));
            }
            GgufType::Q5_0 => {
                let scale = half_at(block, 0);
                to.extend(fives(&block[2..]).map(|n| scale * (f32::from(n) - 16.0)));
            }
            GgufType::Q5_1 => {
                let (scale, least) = (half_at(block, 0), half_at(block, 2));
                to.extend(fives(&block[4..]).map(|n| scale * f32::from(n) + least));
            }
            GgufType::Q8_0 => {
                let scale = half_at(block, 0);
                to.extend(block[2..].iter().map(|&n| scale * f32::from(n as i8)));
            }
            GgufType::Other(_) => return false,
        }
    }
    true
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Low halves of the bytes, then high halves.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    bytes.iter().map(|b| b & 15).chain(bytes.iter().map(|b| b >> 4))
}

/// Four bytes with the fifth bit of each value, then nibbles.
fn fives(bytes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    nibbles(&bytes[4..]).enumerate().map(move |(i, n)| n | ((high >> i & 1) as u8) << 4)
}
