use super::host::HostInputs;
use super::values::Values;
use crate::{AttentionShape, Mask, dense};

/// A problem that tests and benchmarks share by name.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Problem {
    /// Name, as `smollm2-prefill-2k`.
    pub name: &'static str,
    /// Extents.
    pub shape: AttentionShape,
    /// Mask and scale.
    pub config: dense::Config,
    /// Seed of the inputs.
    pub seed: u64,
}

impl Problem {
    /// Normal random inputs; always the same.
    pub fn inputs(&self) -> HostInputs {
        HostInputs::random(self.shape, self.seed, Values::Normal)
    }

    /// Floating-point operations of a forward pass.
    pub fn flops(&self) -> f64 {
        self.shape.flops(&self.config.mask)
    }
}

/// All named problems.
///
/// `smollm2-*` have the heads of SmolLM2-135M (9 query heads, 3 key heads, dim 64); `d128-*` the
/// head dim of larger models; `tiny-*` are odd in every extent and take microseconds.
pub fn problems() -> Vec<Problem> {
    let smollm2 = |queries, keys| shape([1, 9, 3, queries, keys, 64, 64]);
    let d128 = |queries, keys| shape([1, 4, 4, queries, keys, 128, 128]);
    let window = Mask::Window { left: 255, right: 0 };
    let documents = Mask::documents(&[0, 300, 300, 1111, 2048], Mask::Causal);
    let tiny_documents = Mask::Documents {
        cu_q: vec![0, 5, 5, 12, 21],
        cu_k: vec![0, 9, 10, 10, 33],
        inner: Box::new(Mask::Causal),
    };
    let list = [
        ("smollm2-prefill-1k", smollm2(1024, 1024), Mask::Causal),
        ("smollm2-prefill-2k", smollm2(2048, 2048), Mask::Causal),
        ("smollm2-full-2k", smollm2(2048, 2048), Mask::Full),
        ("smollm2-window-2k", smollm2(2048, 2048), window),
        ("smollm2-documents-2k", smollm2(2048, 2048), documents),
        ("smollm2-chunk-2k", smollm2(256, 2048), Mask::Causal),
        ("smollm2-decode-2k", smollm2(1, 2048), Mask::Causal),
        ("d128-prefill-2k", d128(2048, 2048), Mask::Causal),
        ("d128-decode-2k", d128(1, 2048), Mask::Causal),
        ("tiny-odd", shape([3, 5, 5, 37, 37, 41, 41]), Mask::Causal),
        ("tiny-gqa", shape([1, 21, 3, 17, 65, 63, 40]), Mask::Causal),
        ("tiny-window", shape([2, 3, 1, 67, 67, 72, 72]), Mask::Window { left: 7, right: 3 }),
        ("tiny-documents", shape([1, 3, 1, 21, 33, 24, 96]), tiny_documents),
        ("tiny-one", shape([1, 1, 1, 1, 1, 1, 1]), Mask::Full),
    ];
    let problem = |(index, (name, shape, mask))| Problem {
        name,
        shape,
        config: dense::Config::new().with_mask(mask),
        seed: index as u64,
    };
    list.into_iter().enumerate().map(problem).collect()
}

/// The problem of this name.
pub fn by_name(name: &str) -> Option<Problem> {
    problems().into_iter().find(|problem| problem.name == name)
}

fn shape([batch, heads, heads_kv, queries, keys, dim_qk, dim_v]: [usize; 7]) -> AttentionShape {
    AttentionShape { batch, heads, heads_kv, queries, keys, dim_qk, dim_v }
}
