//! Element and block types, and what their bytes stand for.

use half::{bf16, f16};

/// Values in a block of the types with one scale.
const BLOCK: usize = 32;
/// Values in a block of the types whose parts have scales of their own.
const K_BLOCK: usize = 256;

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
    /// Blocks of 256 unsigned 4-bit values with a 6-bit scale and minimum for every 32.
    Q4K,
    /// Blocks of 256 unsigned 5-bit values with a 6-bit scale and minimum for every 32.
    Q5K,
    /// Blocks of 256 signed 6-bit values with an 8-bit scale for every 16.
    Q6K,
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
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
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
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
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
            Self::Q4K => Some((K_BLOCK, 4 + 12 + 128)),
            Self::Q5K => Some((K_BLOCK, 4 + 12 + 32 + 128)),
            Self::Q6K => Some((K_BLOCK, 128 + 64 + 16 + 2)),
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
            GgufType::Q4K => {
                let low = &block[16..];
                to.extend(parts_of_32(block, |part, i| nibble(low, part, i)));
            }
            GgufType::Q5K => {
                let (high, low) = (&block[16..48], &block[48..]);
                let five = |part: usize, i: usize| (high[i] >> part & 1) << 4;
                to.extend(parts_of_32(block, |part, i| nibble(low, part, i) | five(part, i)));
            }
            GgufType::Q6K => to.extend(sixes(block)),
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

/// Value `i` of part `part` of 32: parts 2p and 2p + 1 are the low and the high halves of 32 bytes.
fn nibble(bytes: &[u8], part: usize, i: usize) -> u8 {
    bytes[32 * (part / 2) + i] >> (4 * (part % 2)) & 15
}

/// Scale and minimum of each of eight parts of 32 values, 6 bits each, in 12 bytes: those of the first
/// four parts in the low bits of the first eight bytes; those of the others have their low bits in the last
/// four bytes and their high ones above the first eight numbers.
fn scale_and_least(bytes: &[u8], part: usize) -> (u8, u8) {
    match part {
        0..4 => (bytes[part] & 63, bytes[part + 4] & 63),
        _ => {
            let low = bytes[part + 4];
            (low & 15 | bytes[part - 4] >> 6 << 4, low >> 4 | bytes[part] >> 6 << 4)
        }
    }
}

/// `scale scale_p n - least least_p` of all values of a block, where `number(p, i)` is value `i` of part `p`.
fn parts_of_32(
    block: &[u8],
    number: impl Fn(usize, usize) -> u8 + Copy,
) -> impl Iterator<Item = f32> {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    (0..8).flat_map(move |part| {
        let (own_scale, own_least) = scale_and_least(&block[4..16], part);
        let (scale, least) = (scale * f32::from(own_scale), least * f32::from(own_least));
        (0..32).map(move |i| scale * f32::from(number(part, i)) - least)
    })
}

/// Values of a Q6_K block: 128 bytes of low halves, 64 of upper pairs of bits, 16 scales, and the scale of all.
/// Each half of the block has four parts of 32 values, numbered by `part`.
fn sixes(block: &[u8]) -> impl Iterator<Item = f32> {
    let scale = half_at(block, 208);
    (0..8).flat_map(move |part| {
        let (half, part) = (part / 4, part % 4);
        let (low, high) = (&block[64 * half..], &block[128 + 32 * half..]);
        (0..32).map(move |i| {
            let four = low[32 * (part % 2) + i] >> (4 * (part / 2)) & 15;
            let number = four | (high[i] >> (2 * part) & 3) << 4;
            let own = block[192 + 8 * half + 2 * part + i / 16] as i8;
            scale * f32::from(own) * (f32::from(number) - 32.0)
        })
    })
}
