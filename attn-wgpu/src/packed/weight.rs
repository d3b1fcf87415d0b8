//! A matrix of blocks on a device.

use super::blocks::{BlockType, GROUP, place_row};
use super::gather::gather_rows;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::pool::resident_size;
use crate::tensor::{DType, Tensor};

/// A matrix `[rows, width]` of quantised blocks on a device, as files hold the weights of linear maps: a
/// row has what makes one output. Cloning shares the memory.
#[derive(Debug, Clone)]
pub struct Packed {
    kind: BlockType,
    rows: usize,
    width: usize,
    /// `[groups of four rows, words]`, u32.
    pub(super) codes: Tensor,
    pub(super) scales: Tensor,
}

/// Words that are arranged on the host and handed over at once.
const PIECE: usize = 1 << 20;

/// Bytes on a device of a matrix `[rows, width]`: those of its blocks, of a number of rows that is
/// rounded up to a multiple of four, in two buffers as of [`Tensor::resident`].
pub const fn device_bytes(kind: BlockType, rows: usize, width: usize) -> u64 {
    let [codes, scales] = kind.group_words(width);
    let group = 4 * rows.div_ceil(GROUP) as u64;
    resident_size(group.saturating_mul(codes as u64))
        .saturating_add(resident_size(group.saturating_mul(scales as u64)))
}

impl Packed {
    /// A matrix whose contents are not specified until [`Packed::write_rows`] has written them.
    ///
    /// # Errors
    /// [`attn_core::Error::Config`] if `width` is no multiple of the block's; allocation errors.
    pub fn uninit(gpu: &Gpu, kind: BlockType, rows: usize, width: usize) -> Result<Packed> {
        let (values, _) = kind.block();
        if !width.is_multiple_of(values) {
            let expected = format!("a multiple of {values}, the values of a {} block", kind.name());
            return Err(attn_core::Error::config("width", expected, width).into());
        }
        // A dimension that a kernel counts in 32 bits.
        if rows > u32::MAX as usize - GROUP || width > u32::MAX as usize {
            let expected = "extents below 2^32";
            return Err(attn_core::Error::shape("rows, width", expected, &[rows, width]).into());
        }
        let groups = rows.div_ceil(GROUP);
        let [codes, scales] = kind.group_words(width);
        let part = |words| Tensor::resident(gpu, &[groups, words], DType::U32);
        Ok(Packed { kind, rows, width, codes: part(codes)?, scales: part(scales)? })
    }

    /// A matrix of `blocks`, as they lie in a GGUF file.
    ///
    /// # Errors
    /// As [`Packed::uninit`] and [`Packed::write_rows`]; [`attn_core::Error::Data`] for another number of
    /// bytes.
    pub fn from_blocks(
        gpu: &Gpu,
        kind: BlockType,
        rows: usize,
        width: usize,
        blocks: &[u8],
    ) -> Result<Packed> {
        let packed = Packed::uninit(gpu, kind, rows, width)?;
        if rows.checked_mul(packed.row_bytes()) != Some(blocks.len()) {
            let expected = format!("{rows} rows of {} bytes", packed.row_bytes());
            let got = format!("{} bytes", blocks.len());
            return Err(attn_core::Error::data("blocks", expected, got).into());
        }
        packed.write_rows(0, blocks)?;
        Ok(packed)
    }

    /// Writes whole rows from row `first` on, `blocks` as they lie in a GGUF file. Large matrices are
    /// written in pieces this way.
    ///
    /// Operations recorded before see the old contents, later ones the new. Pieces that begin or end
    /// within a group of four rows, but at the end of the matrix, wait for the device.
    ///
    /// # Errors
    /// [`attn_core::Error::Data`] for bytes that are not whole rows, [`attn_core::Error::Config`] for rows
    /// that the matrix does not have; errors of the device.
    pub fn write_rows(&self, first: usize, blocks: &[u8]) -> Result<()> {
        let bytes = self.row_bytes();
        let count = blocks.len().checked_div(bytes).unwrap_or(0);
        if count * bytes != blocks.len() {
            let expected = format!("whole rows of {bytes} bytes");
            let got = format!("{} bytes", blocks.len());
            return Err(attn_core::Error::data("blocks", expected, got).into());
        }
        if first > self.rows || count > self.rows - first {
            let expected = format!("rows of a matrix of {}", self.rows);
            let got = format!("{count} rows from {first} on");
            return Err(attn_core::Error::config("first", expected, got).into());
        }
        let [code_words, scale_words] = self.kind.group_words(self.width);
        let groups = (PIECE / code_words.max(1)).max(1);
        let (mut row, end) = (first, first + count);
        while row < end {
            let group = row / GROUP;
            let last = end.min((group + groups) * GROUP).div_ceil(GROUP);
            let stop = end.min(last * GROUP);
            // Groups of which only some rows are written keep the others.
            let partial = |group: usize| {
                let [from, to] = [group * GROUP, ((group + 1) * GROUP).min(self.rows)];
                row > from || end < to
            };
            let old = |part: &Tensor, words: usize| -> Result<Vec<u32>> {
                let mut all = vec![0; (last - group) * words];
                for number in [group, last - 1] {
                    if partial(number) {
                        let kept = part.narrow(0, number, 1)?.to_vec::<u32>()?;
                        let at = (number - group) * words;
                        all[at..at + words].copy_from_slice(&kept);
                    }
                }
                Ok(all)
            };
            let mut codes = old(&self.codes, code_words)?;
            let mut scales = old(&self.scales, scale_words)?;
            for at in row..stop {
                let number = at / GROUP - group;
                let from = (at - first) * bytes;
                place_row(
                    self.kind,
                    at % GROUP,
                    &blocks[from..from + bytes],
                    &mut codes[number * code_words..(number + 1) * code_words],
                    &mut scales[number * scale_words..(number + 1) * scale_words],
                );
            }
            self.codes.write_words(group * code_words, &codes)?;
            self.scales.write_words(group * scale_words, &scales)?;
            row = stop;
        }
        Ok(())
    }

    /// How values are quantised.
    pub fn kind(&self) -> BlockType {
        self.kind
    }

    /// Rows: outputs of a linear map.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row: inputs of a linear map.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        self.codes.gpu()
    }

    /// Bytes on the device: [`device_bytes`].
    pub fn bytes(&self) -> u64 {
        device_bytes(self.kind, self.rows, self.width)
    }

    /// All values, `[rows, width]` in f32, on the device.
    ///
    /// # Errors
    /// Allocation errors; [`Error::Limit`] for a row that no binding holds.
    pub fn dequantize(&self) -> Result<Tensor> {
        let numbers: Vec<u32> = (0..self.rows as u32).collect();
        let ids = Tensor::from_slice(self.gpu(), &numbers, &[self.rows])?;
        gather_rows(self, &ids, 1.0, DType::F32)
    }

    fn row_bytes(&self) -> usize {
        let (values, bytes) = self.kind.block();
        self.width / values * bytes
    }

    /// Ranges of groups whose codes and scales fit a binding.
    pub(super) fn windows(&self) -> Result<Vec<std::ops::Range<usize>>> {
        let capabilities = self.gpu().capabilities();
        let available = capabilities.max_binding_bytes.min(1 << 32);
        let align = capabilities.offset_alignment;
        let groups = self.rows.div_ceil(GROUP);
        let mut each = groups.max(1);
        for words in self.kind.group_words(self.width).into_iter().filter(|&words| words > 0) {
            let needed = 4 * words as u64;
            // A binding begins at an aligned place, which may lie in front of its window.
            let skipped = if needed.is_multiple_of(align) { 0 } else { align };
            let fitting = available.saturating_sub(skipped) / needed;
            if fitting == 0 {
                let what = "four rows of packed weights".into();
                let limit = "maxStorageBufferBindingSize";
                return Err(Error::Limit { what, limit, needed, available });
            }
            each = each.min(usize::try_from(fitting).unwrap_or(usize::MAX));
        }
        let starts = (0..groups).step_by(each);
        Ok(starts.map(|start| start..(start + each).min(groups)).collect())
    }
}
