//! Laws of sparse plans and of attention under them.

mod build;
mod damage;
mod definition;
mod forms;
mod gradients;
mod reference;
mod stats;
mod support;

use attn_core::AttentionShape;
use attn_core::plan::SparsePlan;
use attn_core::testing::plans::plan;
use attn_core::testing::strategies::shape;
use proptest::prelude::*;

/// Sound plans with the extents they are for, of few enough pairs to look at each.
fn plans() -> impl Strategy<Value = (AttentionShape, SparsePlan)> {
    let few = shape(40_000).prop_map(|mut shape| {
        (shape.dim_qk, shape.dim_v) = (1, 1);
        shape
    });
    few.prop_flat_map(|shape| (Just(shape), plan(shape)))
}

/// Every row of a plan.
fn rows(shape: &AttentionShape) -> impl Iterator<Item = [usize; 3]> + use<> {
    let AttentionShape { batch, heads, queries, .. } = *shape;
    let heads = (0..batch).flat_map(move |b| (0..heads).map(move |h| (b, h)));
    heads.flat_map(move |(b, h)| (0..queries).map(move |i| [b, h, i]))
}

/// The sets of keys of every row, with biases by their bits.
fn sets(plan: &SparsePlan, shape: &AttentionShape) -> Vec<Vec<(usize, u32)>> {
    let keys = |[b, h, i]: [usize; 3]| plan.keys_of(b, h, i);
    let bits = |keys: Vec<(usize, f32)>| keys.into_iter().map(|(t, bias)| (t, bias.to_bits()));
    rows(shape).map(|row| bits(keys(row)).collect()).collect()
}
