//! Laws of masks, of the dense reference and of the test support itself.

mod edges;
mod limits;
mod masks;
mod reference;
mod support;
mod vjp;

use attn_core::dense::{Config, Output};
use attn_core::testing::{HostArrays, HostInputs, Values};
use attn_core::{AttentionShape, Mask};

/// `[batch, heads, heads_kv, queries, keys, dim_qk, dim_v]`
fn shape(extents: [usize; 7]) -> AttentionShape {
    let [batch, heads, heads_kv, queries, keys, dim_qk, dim_v] = extents;
    AttentionShape { batch, heads, heads_kv, queries, keys, dim_qk, dim_v }
}

fn normal(extents: [usize; 7]) -> HostArrays {
    HostInputs::random(shape(extents), 1, Values::Normal).to_f64().unwrap()
}

fn config(mask: Mask) -> Config {
    Config::new().with_mask(mask)
}

/// The bits of everything that depends on one row, `NaN` included.
fn row_bits(output: &Output, [b, h, i]: [usize; 3]) -> Vec<u64> {
    let out = output.out.slice(attn_core::ndarray::s![b, h, i, ..]);
    let mut bits: Vec<u64> = out.iter().map(|x| x.to_bits()).collect();
    bits.push(output.lse[[b, h, i]].to_bits());
    bits.push(output.row_max[[b, h, i]].to_bits());
    bits.push(output.argmax[[b, h, i]].map_or(u64::MAX, |t| t as u64));
    bits
}

fn bits(output: &Output) -> Vec<Vec<u64>> {
    let (batch, heads, queries) = output.lse.dim();
    let rows = (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h)));
    rows.flat_map(|(b, h)| (0..queries).map(move |i| [b, h, i]))
        .map(|at| row_bits(output, at))
        .collect()
}
