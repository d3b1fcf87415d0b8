//! Is a result right? Decided before any time is taken.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow, bail};
use attn_core::AttentionShape;
use attn_core::plan::SparsePlan;
use attn_core::testing::{Budget, Errors, HostInputs, compare};
use attn_wgpu::bench::{Mechanism, pick_rows};
use attn_wgpu::{DType, Tensor};
use half::{bf16, f16};

use super::cases::Case;
use super::report::{Checked, Gate, Tolerance, finite};

/// Up to so many keys every row is compared.
pub const ALL_ROWS: usize = 1024;
/// Above, at least so many rows of each head are.
pub const SAMPLED_ROWS: usize = 256;
/// Rows at either end of a sequence that are always compared.
const ENDS: usize = 32;
/// Where a kernel's tiles may begin, as far as they are not too many.
const TILE: usize = 32;
const MOST_TILES: usize = 64;

/// Bounds without a yardstick: in units of the largest value, and relative in the l2 norm.
const FIXED_MAX_ABS: f64 = 2e-5;
const FIXED_REL_L2: f64 = 1e-5;

/// Results of a run on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Got {
    pub name: &'static str,
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

/// What results are compared with.
pub struct Expected {
    rows: Vec<usize>,
    dtype: DType,
    logits: f64,
    wants: Vec<Want>,
}

/// One result: with the compared queries only, if it has a row for each query.
struct Want {
    shape: Vec<usize>,
    data: Vec<f64>,
    /// By the simple implementation, rounded to the type of the result.
    simple: Option<Vec<f32>>,
}

/// Queries that are compared.
pub fn rows(shape: &AttentionShape) -> Vec<usize> {
    let queries = shape.queries;
    if shape.keys <= ALL_ROWS || queries <= SAMPLED_ROWS {
        return (0..queries).collect();
    }
    let mut rows: BTreeSet<usize> = (0..ENDS).chain(queries - ENDS..queries).collect();
    let step = TILE.max((queries / MOST_TILES).next_multiple_of(TILE));
    rows.extend((step..queries).step_by(step).flat_map(|edge| [edge - 1, edge]));
    // Steps of the golden ratio are spread evenly wherever one stops.
    let mut place = 0.5;
    while rows.len() < SAMPLED_ROWS {
        rows.insert(((place * queries as f64) as usize).min(queries - 1));
        place = (place + 0.618_033_988_749_895) % 1.0;
    }
    rows.into_iter().collect()
}

/// Reads results back as f32.
pub fn read(results: &[(&'static str, Tensor)]) -> attn_wgpu::Result<Vec<Got>> {
    let read = |&(name, ref tensor): &(&'static str, Tensor)| {
        let data = match tensor.dtype() {
            DType::F16 => tensor.to_vec::<f16>()?.into_iter().map(f32::from).collect(),
            DType::BF16 => tensor.to_vec::<bf16>()?.into_iter().map(f32::from).collect(),
            // Numbers of elements, which f32 holds exactly.
            DType::U32 => tensor.to_vec::<u32>()?.into_iter().map(|x| x as f32).collect(),
            _ => tensor.to_vec::<f32>()?,
        };
        Ok(Got { name, shape: tensor.shape().to_vec(), data })
    };
    results.iter().map(read).collect()
}

/// The number of the type that is nearest.
fn round(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::BF16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// Inputs as the mechanism stores them.
fn rounded(inputs: &HostInputs, dtype: DType) -> HostInputs {
    let each = |data: &[f32]| data.iter().map(|&x| round(dtype, x)).collect();
    let HostInputs { q, k, v, .. } = inputs;
    HostInputs { q: each(q), k: each(k), v: each(v), ..inputs.clone() }
}

/// What is required, in words.
fn rule(dtype: DType, rows: &str) -> String {
    let inputs = match dtype {
        DType::F32 => String::new(),
        _ => format!(" on inputs rounded to {}", dtype.name()),
    };
    let stored = match dtype {
        DType::F32 => String::new(),
        _ => format!(", rounded to {} at the end", dtype.name()),
    };
    format!(
        "{rows}: distance from the f64 reference{inputs} at most `factor` times that of a simple f32 implementation of \
         the same{stored}, plus (`floor_ulps` + `logits`) times the epsilon of f32 times the largest reference value; \
         maximum and root mean square are both held to it. Without a simple implementation fixed bounds apply. Two \
         runs must give the same bits."
    )
}

impl Expected {
    /// Computes the reference and, where there is one, the yardstick, each in a thread of its own.
    pub fn compute(
        mechanism: &dyn Mechanism,
        case: &Case,
        chosen: Option<&SparsePlan>,
    ) -> Result<Expected> {
        let Case { inputs, config, .. } = case;
        let (rows, dtype) = (rows(&inputs.shape), mechanism.dtype());
        let inputs = &rounded(inputs, dtype);
        let (reference, simple) = std::thread::scope(|scope| {
            let yardstick = scope.spawn(|| mechanism.simple(inputs, config, &rows, chosen));
            let arrays = inputs.to_f64();
            (arrays.and_then(|a| mechanism.reference(&a, config, &rows, chosen)), yardstick.join())
        });
        let simple = simple.map_err(|_| anyhow!("the simple f32 implementation panicked"))??;
        let reference = reference?;
        let count = reference.results.len();
        if simple.as_ref().is_some_and(|simple| simple.len() != count) {
            bail!("the simple f32 implementation has not {count} results as the reference");
        }
        let mut simple = simple.into_iter().flatten();
        let wants = reference.results.into_iter().map(|result| Want {
            shape: result.shape().to_vec(),
            data: result.iter().copied().collect(),
            simple: simple.next().map(|all| all.into_iter().map(|x| round(dtype, x)).collect()),
        });
        let wants = wants.collect();
        Ok(Expected { rows, dtype, logits: reference.logits, wants })
    }

    /// Compares whole results. The second part says what is wrong.
    pub fn check(&self, shape: &AttentionShape, got: &[Got]) -> (Gate, Option<String>) {
        let whole = self.rows.len() == shape.queries;
        let rows = if whole { "all rows".into() } else { format!("{} rows", self.rows.len()) };
        let mut gate = Gate {
            rows_checked: self.rows.len(),
            rule: rule(self.dtype, &rows),
            results: Vec::new(),
            repeatable: None,
        };
        let mut wrong = None;
        if got.len() != self.wants.len() {
            wrong = Some(format!("{} results, expected {}", got.len(), self.wants.len()));
        }
        for (got, want) in got.iter().zip(&self.wants) {
            let (checked, why) = self.check_one(got, want);
            gate.results.push(checked);
            wrong = wrong.or(why);
        }
        (gate, wrong)
    }

    fn check_one(&self, got: &Got, want: &Want) -> (Checked, Option<String>) {
        let Got { name, ref shape, ref data } = *got;
        let picked = match <[usize; 4]>::try_from(shape.as_slice()) {
            Ok(extents) if *shape != want.shape => pick_rows(data, extents, &self.rows),
            _ => data.clone(),
        };
        let errors = compare(&picked, &want.data);
        let (tolerance, verdict) = match &want.simple {
            Some(simple) => {
                let budget = Budget { logits: self.logits, ..Budget::default() };
                let yardstick = compare(simple, &want.data);
                let tolerance = Tolerance::Budget {
                    factor: budget.factor,
                    floor_ulps: budget.floor_ulps,
                    logits: budget.logits,
                    simple_max_abs: finite(yardstick.max_abs),
                    simple_rms: finite(yardstick.rms),
                };
                (tolerance, budget.check(name, &picked, simple, &want.data).map(drop))
            }
            None => {
                let largest = want.data.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
                let stored = epsilon(self.dtype);
                let bounds = ((FIXED_MAX_ABS + stored) * largest, FIXED_REL_L2 + stored);
                let tolerance = Tolerance::Fixed { max_abs: bounds.0, rel_l2: bounds.1 };
                (tolerance, check_fixed(name, &errors, bounds))
            }
        };
        let expected: usize = shape.iter().product();
        let wrong = match data.iter().position(|x| !x.is_finite()) {
            _ if data.len() != expected => {
                Some(format!("{name}: {} elements, expected {expected}", data.len()))
            }
            Some(at) => Some(format!("{name}: element {at} is {}", data[at])),
            None => verdict.err(),
        };
        let checked = Checked {
            name: name.into(),
            max_abs: finite(errors.max_abs),
            rms: finite(errors.rms),
            rel_l2: finite(errors.rel_l2),
            tolerance,
        };
        (checked, wrong)
    }
}

/// Distance from 1 to the next number of a half type; nothing more than the fixed bounds for f32.
fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => f16::EPSILON.to_f64(),
        DType::BF16 => bf16::EPSILON.to_f64(),
        _ => 0.0,
    }
}

fn check_fixed(name: &str, errors: &Errors, (max_abs, rel_l2): (f64, f64)) -> Result<(), String> {
    if errors.max_abs <= max_abs && errors.rel_l2 <= rel_l2 {
        return Ok(());
    }
    let Errors { max_abs: max, rel_l2: l2, .. } = errors;
    Err(format!(
        "{name}: max error {max:.3e} (bound {max_abs:.3e}), relative l2 {l2:.3e} (bound {rel_l2:.3e})"
    ))
}

#[cfg(test)]
mod tests {
    use super::super::cases::tests::shape;
    use super::super::dense_backward::DenseBackward;
    use super::super::registry;
    use super::*;
    use attn_core::testing::{Values, simple_f32};
    use attn_core::{Mask, dense};
    use attn_wgpu::bench::{DenseAttention, STREAM_TOKENS};

    #[test]
    fn short_problems_are_compared_whole() {
        assert_eq!(rows(&shape(1, 1024, 1024)).len(), 1024);
        assert_eq!(rows(&shape(1, 256, 9999)).len(), 256);
        assert!(rows(&shape(1, 0, 9999)).is_empty());
    }

    #[test]
    fn long_problems_are_sampled_at_ends_and_edges() {
        for queries in [257, 1025, 2048, 5000, 8192, 100_000] {
            let rows = rows(&shape(1, queries, queries.max(1025)));
            assert!(
                (SAMPLED_ROWS..=SAMPLED_ROWS + 64).contains(&rows.len()),
                "{queries}: {}",
                rows.len()
            );
            assert!(rows.is_sorted_by(|a, b| a < b) && rows[rows.len() - 1] == queries - 1);
            assert_eq!(rows[..ENDS], (0..ENDS).collect::<Vec<_>>());
            assert_eq!(rows[rows.len() - ENDS], queries - ENDS);
        }
        let rows = rows(&shape(1, 2048, 2048));
        assert!([63, 64, 95, 96, 1023, 1024].iter().all(|row| rows.contains(row)));
    }

    #[test]
    fn simple_rows_are_those_of_the_whole() {
        let shape = AttentionShape { heads_kv: 1, ..shape(2, 21, 33) };
        let inputs = HostInputs::random(shape, 1, Values::Normal);
        for mask in [
            Mask::Causal,
            Mask::Window { left: 3, right: 2 },
            Mask::GlobalWindow { window: 2, global: 3 },
        ] {
            let config = dense::Config::new().with_mask(mask);
            let whole = simple_f32(&inputs, &config).unwrap();
            let rows = [0, 3, 20];
            let some = DenseAttention::F32.simple(&inputs, &config, &rows, None).unwrap().unwrap();
            assert_eq!(some, [pick_rows(&whole.out, shape.out(), &rows)]);
        }
    }

    fn case() -> Case {
        let inputs = HostInputs::random(shape(2, 16, 16), 1, Values::Normal);
        let config = dense::Config::new().with_mask(Mask::Causal);
        Case { inputs, config, ..Case::for_tests() }
    }

    fn got(shape: [usize; 4], data: Vec<f32>) -> Got {
        Got { name: "out", shape: shape.to_vec(), data }
    }

    #[test]
    fn wrong_results_are_told() {
        let case = case();
        let shape = case.inputs.shape;
        let right = simple_f32(&case.inputs, &case.config).unwrap().out;
        let mut expected = Expected::compute(&DenseAttention::F32, &case, None).unwrap();
        for fixed in [false, true] {
            if fixed {
                expected.wants[0].simple = None;
            }
            let verdict = |change: &dyn Fn(&mut Vec<f32>)| {
                let mut out = right.clone();
                change(&mut out);
                expected.check(&shape, &[got(shape.out(), out)]).1
            };
            assert_eq!(verdict(&|_| ()), None);
            assert!(verdict(&|out| out[7] += 1e-3).unwrap().contains("max error"));
            assert_eq!(verdict(&|out| out[9] = f32::NAN).unwrap(), "out: element 9 is NaN");
            assert_eq!(verdict(&|out| out.truncate(5)).unwrap(), "out: 5 elements, expected 128");
        }
        let (gate, _) = expected.check(&shape, &[got(shape.out(), right)]);
        assert_eq!(gate.rows_checked, 16);
        assert!(gate.max_abs().is_some_and(|error| error.is_some_and(|error| error < 1e-5)));
        assert_eq!(expected.check(&shape, &[]).1.unwrap(), "0 results, expected 1");
    }

    #[test]
    fn half_results_are_judged_on_rounded_inputs() {
        let case = case();
        let shape = case.inputs.shape;
        let expected = Expected::compute(&DenseAttention::F16, &case, None).unwrap();
        let inputs = rounded(&case.inputs, DType::F16);
        assert_ne!(inputs.q, case.inputs.q);
        let out = simple_f32(&inputs, &case.config).unwrap().out;
        let half: Vec<f32> = out.iter().map(|&x| round(DType::F16, x)).collect();
        let (gate, wrong) = expected.check(&shape, &[got(shape.out(), half.clone())]);
        assert_eq!(wrong, None);
        assert!(gate.rule.contains("rounded to f16 at the end"), "{}", gate.rule);
        // Eight units in the last place of a number near 1 are too much.
        let bad = half.iter().map(|x| x + 8.0 * f16::EPSILON.to_f32()).collect();
        assert!(expected.check(&shape, &[got(shape.out(), bad)]).1.is_some());
    }

    #[test]
    fn wrong_gradients_are_told_by_name() {
        let case = case();
        let shape = case.inputs.shape;
        let expected = Expected::compute(&DenseBackward, &case, None).unwrap();
        let grads = DenseBackward.simple(&case.inputs, &case.config, &expected.rows, None);
        let grads = grads.unwrap().unwrap();
        let mut all: Vec<Got> = ["dq", "dk", "dv"]
            .into_iter()
            .zip([shape.q(), shape.k(), shape.v()])
            .zip(grads)
            .map(|((name, shape), data)| Got { name, ..got(shape, data) })
            .collect();
        assert_eq!(expected.check(&shape, &all).1, None);
        all[1].data[3] += 0.1;
        assert!(expected.check(&shape, &all).1.unwrap().starts_with("dk: max error"));
    }

    /// Every stream reads its tokens as the whole text does, each time anew.
    #[test]
    fn streams_are_the_end_of_a_text() {
        let Ok(gpu) = attn_wgpu::Gpu::new() else { return };
        let shape = AttentionShape { dim_v: 8, ..shape(2, STREAM_TOKENS, 3 * STREAM_TOKENS) };
        let case = Case { inputs: HostInputs::random(shape, 1, Values::Normal), ..case() };
        let mut streams = 0;
        for mechanism in registry::mechanisms().iter().filter(|m| m.is_stream()) {
            assert!(mechanism.is_for(&shape, &case.config), "{}", mechanism.name());
            let odd = AttentionShape { keys: shape.keys + 1, ..shape };
            assert!(!mechanism.is_for(&odd, &case.config) && mechanism.name().ends_with("-stream"));
            let prepared = mechanism.prepare(&gpu, &case.inputs, &case.config).unwrap();
            let got = [(); 2].map(|()| read(&prepared.record().unwrap()).unwrap());
            let bits =
                |got: &[Got]| got.iter().flat_map(|got| got.data.clone()).collect::<Vec<_>>();
            assert!(bits(&got[0]) == bits(&got[1]), "{}", mechanism.name());
            let expected = Expected::compute(&**mechanism, &case, None).unwrap();
            assert_eq!(expected.check(&shape, &got[0]).1, None, "{}", mechanism.name());
            streams += 1;
        }
        assert!(streams >= 3);
    }
}
