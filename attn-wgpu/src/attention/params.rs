//! Parameters and compile-time forms of the attention kernels.

use attn_core::{Modifier, ModifierKind};

use super::variant::Variant;
use crate::kernel::Constants;
use crate::tensor::{DType, Tensor};

/// The parameters that all attention kernels have: attention_fields.wgsl.
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Common {
    pub(super) heads_group: u32,
    pub(super) queries: u32,
    pub(super) keys: u32,
    pub(super) dims: u32,
    pub(super) q: [u32; 4],
    pub(super) k: [u32; 4],
    pub(super) v: [u32; 4],
    pub(super) out: [u32; 4],
    pub(super) stats_start: u32,
    pub(super) first_tile: u32,
    pub(super) tiles: u32,
    pub(super) total: u32,
    pub(super) scale: f32,
    pub(super) soft_cap: f32,
    pub(super) left: i32,
    pub(super) right: i32,
    pub(super) first_batch: u32,
    pub(super) first_head: u32,
}

/// Two numbers below 65,536 in one word.
pub(super) fn pair(high: usize, low: usize) -> u32 {
    (high as u32) << 16 | low as u32
}

/// Start and strides of a window in vec4s, with tokens numbered from the call's token 0, which may
/// lie in front of the window (`first` is the window's).
pub(super) fn place(window: &Tensor, start: usize, first: usize) -> [u32; 4] {
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
pub(super) struct Form<'a> {
    pub(super) dtype: DType,
    pub(super) soft_cap: bool,
    pub(super) modifier: Option<&'a Modifier>,
    pub(super) bits: bool,
}

impl Form<'_> {
    /// Whether logits pass through their natural form, in which q is not scaled by log2(e).
    pub(super) fn natural(&self) -> bool {
        self.soft_cap || self.modifier.is_some()
    }

    pub(super) fn constants(&self, variant: &Variant) -> Constants {
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
pub(super) fn storage(constants: Constants, dtype: DType) -> Constants {
    constants.flag("F16", dtype == DType::F16).flag("BF16", dtype == DType::BF16)
}
