//! Proptest strategies: extents, masks and values where kernels tend to be wrong.

use proptest::collection::vec;
use proptest::option::of as option;
use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof};
use proptest::sample::select;

use super::{HostInputs, Values, bits as random_bits, uniform};
use crate::{AttentionShape, BitMask, Lengths, Mask, Modifier, alibi_slopes, dense};

/// One attention call.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Case {
    /// Extents.
    pub shape: AttentionShape,
    /// Mask, valid for them, and scale.
    pub config: dense::Config,
    /// Distribution of the inputs.
    pub values: Values,
    /// Seed of the inputs.
    pub seed: u64,
}

impl Case {
    /// The inputs.
    pub fn inputs(&self) -> HostInputs {
        HostInputs::random(self.shape, self.seed, self.values)
    }
}

/// Calls of at most `work` multiplications ([`shape`]), with every mask and distribution.
pub fn case(work: usize) -> impl Strategy<Value = Case> {
    let with_mask = shape(work).prop_flat_map(|shape| (Just(shape), mask(shape.lengths())));
    (with_mask, values(), any::<u64>()).prop_map(|((shape, mask), values, seed)| Case {
        shape,
        config: dense::Config::new().with_mask(mask),
        values,
        seed,
    })
}

/// Numbers of tokens: 0, 1 to 17, the neighbours of 64 and 128, and any to 200.
pub fn length() -> impl Strategy<Value = usize> {
    prop_oneof![
        1 => Just(0),
        6 => 1..=17_usize,
        3 => select(&[63, 64, 65, 127, 129][..]),
        2 => 1..=200_usize,
    ]
}

/// Head dims: those of models, their neighbours, and any to 256.
pub fn dim() -> impl Strategy<Value = usize> {
    let common = &[1, 3, 40, 63, 64, 72, 96, 127, 128, 192, 256][..];
    prop_oneof![2 => select(common), 1 => 1..=256_usize]
}

/// Extents with queries and keys of equal and of different number, equal and different dims of keys
/// and values, and 1 to 9 query heads to a key head, cut down to at most `work` multiplications
/// without a mask: `batch * heads * queries * keys * (dim_qk + dim_v)`.
pub fn shape(work: usize) -> impl Strategy<Value = AttentionShape> {
    let lengths = prop_oneof![length().prop_map(|n| (n, n)), (length(), length())];
    let dims = prop_oneof![dim().prop_map(|d| (d, d)), (dim(), dim())];
    let group = select(&[1, 2, 3, 5, 6, 7, 9][..]);
    (1..=3_usize, 1..=3_usize, group, lengths, dims).prop_map(
        move |(batch, heads_kv, group, (queries, keys), (dim_qk, dim_v))| {
            let heads = heads_kv * group;
            fit(AttentionShape { batch, heads, heads_kv, queries, keys, dim_qk, dim_v }, work)
        },
    )
}

/// Masks of every kind, valid for `lengths`. Documents are often empty or the only one.
pub fn mask(lengths: Lengths) -> BoxedStrategy<Mask> {
    let keys = lengths.keys;
    let cu = || offsets(keys);
    let block = prop_oneof![1..=9_usize, Just(64)];
    prop_oneof![
        2 => simple_mask(keys),
        1 => (reach(keys), reach(keys)).prop_map(|(left, sinks)| Mask::SinkWindow { left, sinks }),
        1 => (reach(keys), reach(keys))
            .prop_map(|(window, global)| Mask::GlobalWindow { window, global }),
        2 => documents(lengths),
        1 => cu().prop_map(|cu| Mask::ShareQuestion { cu }),
        1 => cu().prop_map(|cu| Mask::CausalBlockwise { cu }),
        1 => (cu(), block).prop_map(|(cu, block)| Mask::BlockCausalDocuments { cu, block }),
        2 => bits(lengths).prop_map(Mask::Bits),
    ]
    .boxed()
}

/// Bits of any density, one by one or in blocks of which some are empty, some full and some mixed.
/// Many rows, and many words of 32 keys, are empty or full.
pub fn bits(lengths: Lengths) -> impl Strategy<Value = BitMask> {
    let density = select(&[0.0, 0.03, 0.3, 0.7, 1.0][..]);
    let block = select(&[1, 3, 16, 32, 64][..]);
    (density, block, select(&[1, 5, 16, 64][..]), any::<u64>()).prop_map(
        move |(density, block, rows, seed)| {
            BitMask::from_fn(lengths.queries, lengths.keys, |query, key| {
                let (row, column) = (query / rows, key / block);
                let mixed = uniform(seed, query as u64, key as u64) < density;
                let whole = |bits: u64, otherwise: bool| match bits % 4 {
                    0 => false,
                    1 => true,
                    _ => otherwise,
                };
                let of_block = whole(random_bits(seed, !(row as u64), column as u64), mixed);
                whole(random_bits(!seed, 0, row as u64) >> 1, of_block)
            })
        },
    )
}

/// Everything a call can be configured with: [`mask`], and each with even chance a soft-cap, a
/// scale and a modifier of the crate (ALiBi for 32 heads, or temperature). Scales are positive:
/// equal logits below 0 may cancel in the log-sum-exp, which no relative budget allows for.
pub fn config(lengths: Lengths) -> BoxedStrategy<dense::Config> {
    let scale = option(0.02..1.0_f64);
    let parts = (mask(lengths), option(select(&[0.5, 3.0, 30.0, 50.0][..])), scale);
    (parts, option(modifier()))
        .prop_map(|((mask, soft_cap, scale), modifier)| {
            let mut config = dense::Config::new().with_mask(mask);
            (config.soft_cap, config.scale, config.modifier) = (soft_cap, scale, modifier);
            config
        })
        .boxed()
}

/// The modifiers that this crate brings. Tables have few lengths, since kernels are compiled for
/// each; they are shorter and longer than the keys.
fn modifier() -> impl Strategy<Value = Modifier> {
    let factors = select(&[1, 9, 70][..]).prop_flat_map(|len| vec(0.25..2.0_f32, len));
    prop_oneof![
        Just(Modifier::alibi(&alibi_slopes(32))),
        factors.prop_map(|factors| Modifier::temperature(&factors)),
    ]
}

/// Every distribution.
pub fn values() -> impl Strategy<Value = Values> {
    select(&Values::ALL[..])
}

/// Offsets of 1 to 6 documents in `length` tokens, some of them empty.
pub fn offsets(length: usize) -> impl Strategy<Value = Vec<usize>> {
    (1..=6_usize).prop_flat_map(move |documents| offsets_of(length, documents))
}

/// The masks that have no offsets.
fn simple_mask(keys: usize) -> BoxedStrategy<Mask> {
    prop_oneof![
        Just(Mask::Full),
        Just(Mask::Causal),
        (reach(keys), reach(keys)).prop_map(|(left, right)| Mask::Window { left, right }),
        reach(keys).prop_map(|left| Mask::Window { left, right: 0 }),
        reach(keys).prop_map(|prefix| Mask::PrefixLm { prefix }),
    ]
    .boxed()
}

fn documents(lengths: Lengths) -> impl Strategy<Value = Mask> {
    let Lengths { queries, keys } = lengths;
    let cu = (1..=6_usize).prop_flat_map(move |documents| {
        (offsets_of(queries, documents), offsets_of(keys, documents), any::<bool>())
    });
    (cu, simple_mask(keys)).prop_map(move |((cu_q, cu_k, equal), inner)| {
        let cu_q = if equal && queries == keys { cu_k.clone() } else { cu_q };
        Mask::Documents { cu_q, cu_k, inner: Box::new(inner) }
    })
}

fn offsets_of(length: usize, documents: usize) -> impl Strategy<Value = Vec<usize>> {
    let cut = prop_oneof![4 => 0..=length, 1 => Just(0), 1 => Just(length)];
    vec(cut, documents - 1).prop_map(move |mut cu| {
        cu.extend([0, length]);
        cu.sort_unstable();
        cu
    })
}

fn reach(keys: usize) -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..=8_usize, 3 => 0..=keys + 1, 1 => Just(usize::MAX)]
}

/// Gives up batch entries first, then heads, dims and lengths, as far as needed.
fn fit(mut shape: AttentionShape, work: usize) -> AttentionShape {
    let too_much =
        |s: &AttentionShape| s.batch * s.heads * s.queries * s.keys * (s.dim_qk + s.dim_v) > work;
    if too_much(&shape) {
        shape.batch = 1;
    }
    if too_much(&shape) {
        (shape.heads, shape.heads_kv) = (shape.group(), 1);
    }
    while too_much(&shape) && shape.dim_qk.max(shape.dim_v) > 8 {
        shape.dim_qk = shape.dim_qk.div_ceil(2);
        shape.dim_v = shape.dim_v.div_ceil(2);
    }
    while too_much(&shape) && shape.queries.max(shape.keys) > 1 {
        shape.queries = shape.queries.div_ceil(2);
        shape.keys = shape.keys.div_ceil(2);
    }
    shape
}
