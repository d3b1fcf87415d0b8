//! Laws of masks, of the dense reference and of the test support itself.

mod edges;
mod limits;
mod logits;
mod masks;
mod parts;
mod reference;
mod sinks;
mod support;
mod vjp;

use attn_core::dense::{Config, Output};
use attn_core::testing::strategies::{self, Case};
use attn_core::testing::{HostArrays, HostInputs, Values};
use attn_core::{AttentionShape, Mask};
use proptest::prelude::*;

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

/// Calls with everything that a configuration can hold, and inputs with sinks in every second one.
fn full_case(work: usize) -> impl Strategy<Value = (Case, HostInputs)> {
    let with_config = strategies::case(work).prop_flat_map(|case| {
        let config = strategies::config(case.shape.lengths());
        (Just(case), config, any::<bool>())
    });
    with_config.prop_map(|(mut case, config, sinks)| {
        case.config = config;
        let inputs = case.inputs();
        let inputs = if sinks { inputs.with_random_sinks(case.seed) } else { inputs };
        (case, inputs)
    })
}

fn close<'a>(
    got: impl IntoIterator<Item = &'a f64>,
    want: impl IntoIterator<Item = &'a f64>,
    tolerance: f64,
) -> Result<(), TestCaseError> {
    for (got, want) in got.into_iter().zip(want) {
        prop_assert!(got == want || (got - want).abs() <= tolerance, "{} {}", got, want);
    }
    Ok(())
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
