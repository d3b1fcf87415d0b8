//! Summaries of blocks of tokens.

use super::{each_long, select_kernel};
use crate::error::Result;
use crate::kernel::KernelSource;
use crate::rows::{self, Place};
use crate::tensor::{DType, Tensor};

pub(crate) const POOL: KernelSource = select_kernel!("select_pool");

/// What becomes of the tokens of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PoolKind {
    /// Their mean, over those that there are.
    Mean,
    /// Their sum.
    Sum,
    /// The largest of each feature.
    Max,
    /// The smallest of each feature.
    Min,
}

impl PoolKind {
    #[cfg(feature = "bench")]
    pub(crate) const ALL: [PoolKind; 4] =
        [PoolKind::Mean, PoolKind::Sum, PoolKind::Max, PoolKind::Min];

    pub(crate) fn flag(self) -> Option<&'static str> {
        match self {
            PoolKind::Mean => Some("MEAN"),
            PoolKind::Sum => None,
            PoolKind::Max => Some("HIGHEST"),
            PoolKind::Min => Some("LOWEST"),
        }
    }
}

/// Which block is short where the tokens are not whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Short {
    /// The last one: blocks are counted from the first token.
    #[default]
    Last,
    /// The first one: blocks are counted back from the last token.
    First,
}

/// How [`pool`] summarises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pool {
    /// Tokens of a block.
    pub block: usize,
    /// What becomes of them.
    pub kind: PoolKind,
    /// Which block is short.
    pub short: Short,
}

impl Pool {
    /// Blocks from the first token on.
    pub fn new(block: usize, kind: PoolKind) -> Pool {
        Pool { block, kind, short: Short::Last }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    count: u32,
    chunks: u32,
    extent_1: u32,
    blocks: u32,
    x: Place,
    out: Place,
    tokens: u32,
    block: u32,
    lack: u32,
}

/// Summaries of the blocks of `x` `[B, H, N, D]`, f32 or a half type: f32 `[B, H, ceil(N / block), D]`.
///
/// # Errors
/// [`attn_core::Error`] for other shapes or types or blocks of no token; [`crate::Error::Limit`] for
/// blocks that need longer loops than the device does.
pub fn pool(x: &Tensor, pool: &Pool) -> Result<Tensor> {
    let gpu = x.gpu();
    rows::check("x", x, gpu)?;
    let &[batch, heads, tokens, dim] = x.shape() else {
        return Err(attn_core::Error::shape("x", "[B, H, N, D]", x.shape()).into());
    };
    if pool.block == 0 {
        return Err(attn_core::Error::config("block", "at least 1", 0).into());
    }
    let block = pool.block.min(tokens.max(1));
    let blocks = tokens.div_ceil(block);
    let lack = match pool.short {
        Short::Last => 0,
        Short::First => blocks * block - tokens,
    };
    let shape = [batch, heads, blocks, dim];
    let storage =
        [(x.dtype() == DType::F16, "SOURCE_F16"), (x.dtype() == DType::BF16, "SOURCE_BF16")];
    let storage = storage.iter().filter(|(is, _)| *is).map(|(_, flag)| *flag);
    let flags: Vec<&str> = storage.chain(pool.kind.flag()).collect();
    rows::write(gpu, &shape, DType::F32, |out| {
        let x = rows::source(x)?;
        rows::windows(&[&x, out], 0..2, &mut |windows| {
            let ((_, x_place), (_, out_place)) = (rows::bind(windows[0]), rows::bind(windows[1]));
            let count = windows[1].len() / 4;
            let params = Params {
                count: count as u32,
                chunks: (windows[1].shape()[3] / 4) as u32,
                extent_1: windows[1].shape()[1] as u32,
                blocks: blocks as u32,
                tokens: tokens as u32,
                block: block as u32,
                lack: lack as u32,
                x: x_place,
                out: out_place,
            };
            each_long(gpu, &POOL, &flags, windows, bytemuck::bytes_of(&params), (count, block))
        })
    })
}
