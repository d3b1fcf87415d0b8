//! Parameters and compile-time forms of the attention kernels.

use attn_core::{Modifier, ModifierKind};

use super::variant::Variant;
use crate::kernel::Constants;
use crate::tensor::{DType, Tensor};

/// The parameters that all attention kernels have: attention_fields.wgsl.
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Common {
    pub(crate) heads_group: u32,
    pub(crate) queries: u32,
    pub(crate) keys: u32,
    pub(crate) dims: u32,
    pub(crate) q: [u32; 4],
    pub(crate) k: [u32; 4],
    pub(crate) v: [u32; 4],
    pub(crate) out: [u32; 4],
    pub(crate) stats_start: u32,
    pub(crate) first_tile: u32,
    pub(crate) tiles: u32,
    pub(crate) total: u32,
    pub(crate) scale: f32,
    pub(crate) soft_cap: f32,
    pub(crate) left: i32,
    pub(crate) right: i32,
    pub(crate) first_batch: u32,
    pub(crate) first_head: u32,
}

/// Two numbers below 65,536 in one word.
pub(crate) fn pair(high: usize, low: usize) -> u32 {
    (high as u32) << 16 | low as u32
}

/// Start and strides of a window in vec4s, with tokens numbered from the call's token 0, which may
/// lie in front of the window (`first` is the window's).
pub(crate) fn place(window: &Tensor, start: usize, first: usize) -> [u32; 4] {
    let stride = |d: usize| if window.shape()[d] > 1 { window.strides()[d] as u32 / 4 } else { 0 };
    // A window of a single token still is that token, whatever its number.
    let token = window.strides()[2] as u32 / 4;
    [
        (start as u32 / 4).wrapping_sub((first as u32).wrapping_mul(token)),
        stride(0),
        stride(1),
        token,
    ]
}

/// What a kernel is compiled for besides its variant.
#[derive(Debug, Clone)]
pub(crate) struct Form<'a> {
    pub(crate) dtype: DType,
    pub(crate) soft_cap: bool,
    pub(crate) modifier: Option<&'a Modifier>,
    pub(crate) bits: bool,
}

impl Form<'_> {
    /// Whether logits pass through their natural form, in which q is not scaled by log2(e).
    pub(crate) fn natural(&self) -> bool {
        self.soft_cap || self.modifier.is_some()
    }

    pub(crate) fn constants(&self, variant: &Variant) -> Constants {
        let kind = self.modifier.map(Modifier::kind);
        let constants = storage(variant.constants(), self.dtype)
            .int(
                "MODIFIER_WORDS",
                self.modifier.map_or(0, |m| super::modifier::words(m).len() as u32),
            )
            .flag("SOFT_CAP", self.soft_cap)
            .flag("BITS", self.bits)
            .flag("NATURAL", self.natural())
            .flag("MODIFIER", kind.is_some())
            .flag("MODIFIER_SCORE", kind == Some(ModifierKind::Score))
            .flag("MODIFIER_MASK", kind == Some(ModifierKind::Mask));
        match self.modifier {
            Some(modifier) => constants.snippet("modifier", super::modifier::snippet(modifier)),
            None => constants,
        }
    }
}

/// Adds the flag of a storage type.
pub(crate) fn storage(constants: Constants, dtype: DType) -> Constants {
    constants.flag("F16", dtype == DType::F16).flag("BF16", dtype == DType::BF16)
}
