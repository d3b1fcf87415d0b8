//! Blocks of quantised values as GGUF files hold them, and how they are arranged on a device.
//!
//! Files hold blocks of 18, 20, 34, 144 or 210 bytes. Kernels read whole words, and are fastest with
//! four rows at once, so rows are taken in groups of four, and each group has two parts:
//!
//! * *Codes*: for each 32 values of the width, words of each of the four rows in turn. A word holds four
//!   values in its bytes (`Q8_0`, biased by 128), or eight in its nibbles, those of the low nibbles in
//!   front of those of the high ones; `Q6_K` has two more words with the upper bits.
//! * *Scales*: for each block, what makes values of codes, of the four rows in turn.
//!
//! Every part has as many bytes as in the file, of a number of rows that is rounded up to four.

/// How values are quantised. The names are those of GGUF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BlockType {
    /// 32 values `d (n - 8)`, `n` of 4 bits.
    Q4_0,
    /// 32 values `d n + m`, `n` of 4 bits.
    Q4_1,
    /// 32 values `d n`, `n` of 8 bits with a sign.
    Q8_0,
    /// 256 values `d s n - e t`, `n` of 4 bits; each 32 values have an `s` and a `t` of 6 bits.
    Q4K,
    /// 256 values `d s (n - 32)`, `n` of 6 bits; each 16 values have an `s` of 8 bits with a sign.
    Q6K,
}

/// Rows that lie together on a device.
pub(super) const GROUP: usize = 4;

/// Values that share the words of a step of a kernel.
pub(super) const STEP: usize = 32;

impl BlockType {
    #[cfg(any(test, feature = "bench"))]
    pub(super) const ALL: [BlockType; 5] =
        [BlockType::Q4_0, BlockType::Q4_1, BlockType::Q8_0, BlockType::Q4K, BlockType::Q6K];

    /// Values and bytes of a block in a file.
    pub const fn block(self) -> (usize, usize) {
        match self {
            BlockType::Q4_0 => (32, 18),
            BlockType::Q4_1 => (32, 20),
            BlockType::Q8_0 => (32, 34),
            BlockType::Q4K => (256, 144),
            BlockType::Q6K => (256, 210),
        }
    }

    /// The name that GGUF has for it.
    pub fn name(self) -> &'static str {
        match self {
            BlockType::Q4_0 => "Q4_0",
            BlockType::Q4_1 => "Q4_1",
            BlockType::Q8_0 => "Q8_0",
            BlockType::Q4K => "Q4_K",
            BlockType::Q6K => "Q6_K",
        }
    }

    /// Words of a row for [`STEP`] values.
    pub(super) const fn code_words(self) -> usize {
        match self {
            BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q4K => 4,
            BlockType::Q8_0 => 8,
            BlockType::Q6K => 6,
        }
    }

    /// Words of a group of rows for a block.
    pub(super) const fn scale_words(self) -> usize {
        match self {
            BlockType::Q4_0 | BlockType::Q8_0 => 2,
            BlockType::Q4_1 => 4,
            BlockType::Q4K => 16,
            BlockType::Q6K => 18,
        }
    }

    /// Words of all codes, and of all scales, of a group of rows.
    pub(super) const fn group_words(self, width: usize) -> [usize; 2] {
        let (values, _) = self.block();
        [
            (width / STEP).saturating_mul(GROUP * self.code_words()),
            (width / values).saturating_mul(self.scale_words()),
        ]
    }
}

/// Places the blocks of row `row` of a group among its codes and scales.
pub(super) fn place_row(
    kind: BlockType,
    row: usize,
    blocks: &[u8],
    codes: &mut [u32],
    scales: &mut [u32],
) {
    let (values, bytes) = kind.block();
    let codes = codes.chunks_exact_mut(values / STEP * GROUP * kind.code_words());
    let scales = scales.chunks_exact_mut(kind.scale_words());
    for ((block, codes), scales) in blocks.chunks_exact(bytes).zip(codes).zip(scales) {
        place_scales(kind, row, block, scales);
        let steps = codes.chunks_exact_mut(GROUP * kind.code_words());
        for (step, words) in steps.enumerate() {
            let codes = codes_of(kind, block, step);
            for (word, to) in words.iter_mut().skip(row).step_by(GROUP).enumerate() {
                *to = word_of(kind, &codes, word);
            }
        }
    }
}

/// Codes without sign of the values `32 step ..` of a block.
fn codes_of(kind: BlockType, block: &[u8], step: usize) -> [u8; STEP] {
    let nibble = |byte: u8, high: bool| if high { byte >> 4 } else { byte & 15 };
    std::array::from_fn(|i| match kind {
        BlockType::Q4_0 => nibble(block[2 + i % 16], i >= 16),
        BlockType::Q4_1 => nibble(block[4 + i % 16], i >= 16),
        BlockType::Q8_0 => block[2 + i] ^ 0x80,
        BlockType::Q4K => nibble(block[16 + step / 2 * 32 + i], step % 2 == 1),
        BlockType::Q6K => {
            // A half of 128 values: two times 32 bytes of nibbles, 32 bytes of four upper bit pairs.
            let (half, part) = (step / 4, step % 4);
            let low = nibble(block[half * 64 + part % 2 * 32 + i], part >= 2);
            low | (block[128 + half * 32 + i] >> (2 * part) & 3) << 4
        }
    })
}

fn word_of(kind: BlockType, codes: &[u8; STEP], word: usize) -> u32 {
    let bytes = |byte: &dyn Fn(usize) -> u8| u32::from_le_bytes(std::array::from_fn(byte));
    match kind {
        BlockType::Q8_0 => bytes(&|i| codes[4 * word + i]),
        // Pairs of upper bits: chunk c of four values has bits 2 (c % 4) of each byte.
        BlockType::Q6K if word >= 4 => bytes(&|i| {
            let at = 16 * (word - 4) + i;
            (0..4).map(|chunk| codes[at + 4 * chunk] >> 4 << (2 * chunk)).sum()
        }),
        _ => bytes(&|i| codes[8 * word + i] & 15 | (codes[8 * word + 4 + i] & 15) << 4),
    }
}

fn place_scales(kind: BlockType, row: usize, block: &[u8], scales: &mut [u32]) {
    // Half words: number `at` of the scales from byte `from` of the block.
    let half = |scales: &mut [u32], at: usize, from: usize| {
        let value = u32::from(u16::from_le_bytes([block[from], block[from + 1]]));
        let shift = 16 * (at as u32 % 2);
        let word = &mut scales[at / 2];
        *word = *word & !(0xffff << shift) | value << shift;
    };
    match kind {
        BlockType::Q4_0 | BlockType::Q8_0 => half(scales, row, 0),
        BlockType::Q4_1 => {
            half(scales, row, 0);
            half(scales, GROUP + row, 2);
        }
        BlockType::Q4K => {
            half(scales, row, 0);
            half(scales, GROUP + row, 2);
            // Of 8 scales and 8 minima of 6 bits: lower nibbles of each, and the upper bits of all.
            let [mut lower, mut lower_min, mut upper] = [0; 3];
            for (i, [scale, minimum]) in six_bits(&block[4..16]).into_iter().enumerate() {
                lower |= u32::from(scale & 15) << (4 * i);
                lower_min |= u32::from(minimum & 15) << (4 * i);
                upper |= u32::from(scale >> 4) << (2 * i) | u32::from(minimum >> 4) << (16 + 2 * i);
            }
            for (part, word) in [lower, lower_min, upper].into_iter().enumerate() {
                scales[GROUP * (part + 1) + row] = word;
            }
        }
        BlockType::Q6K => {
            for word in 0..4 {
                let bytes = std::array::from_fn(|i| block[192 + 4 * word + i]);
                scales[GROUP * word + row] = u32::from_le_bytes(bytes);
            }
            half(scales, 2 * 16 + row, 208);
        }
    }
}

/// The scales and minima of the 8 parts of a `Q4_K` block, from its 12 bytes.
fn six_bits(bytes: &[u8]) -> [[u8; 2]; 8] {
    std::array::from_fn(|i| match i {
        0..4 => [bytes[i] & 63, bytes[i + 4] & 63],
        _ => [bytes[i + 4] & 15 | bytes[i - 4] >> 6 << 4, bytes[i + 4] >> 4 | bytes[i] >> 6 << 4],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing grows: a group of rows has the bytes that it has in a file.
    #[test]
    fn parts_have_the_bytes_of_the_file() {
        for kind in BlockType::ALL {
            let (values, bytes) = kind.block();
            for blocks in [0, 1, 3, 18] {
                let words: usize = kind.group_words(blocks * values).iter().sum();
                assert_eq!(4 * words, GROUP * blocks * bytes, "{kind:?}");
            }
        }
    }

    /// Each bit of a block moves to a place of its own: only Q8_0's bias changes any.
    #[test]
    fn every_bit_is_kept() {
        for kind in BlockType::ALL {
            let (values, bytes) = kind.block();
            let [codes, scales] = kind.group_words(values);
            let placed = |block: &[u8]| {
                let mut words = vec![0; codes + scales];
                let (codes, scales) = words.split_at_mut(codes);
                place_row(kind, 3, block, codes, scales);
                words
            };
            let mut block = vec![0; bytes];
            let nothing = placed(&block);
            let mut seen = vec![0; codes + scales];
            for bit in 0..8 * bytes {
                block[bit / 8] ^= 1 << (bit % 8);
                let words = placed(&block);
                block[bit / 8] ^= 1 << (bit % 8);
                let mut moved = 0;
                for ((word, none), seen) in words.iter().zip(&nothing).zip(&mut seen) {
                    let changed = word ^ none;
                    assert_eq!(*seen & changed, 0, "{kind:?} {bit}");
                    *seen |= changed;
                    moved += changed.count_ones();
                }
                assert_eq!(moved, 1, "{kind:?} {bit}");
            }
        }
    }
}
