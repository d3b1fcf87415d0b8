//! The f64 references on the host, timed as one more adapter.

use attn_core::AttentionShape;
use attn_core::plan::Tile;
use attn_wgpu::DType;
use attn_wgpu::bench::Mechanism;

use super::cases::Case;
use super::device::Plan;
use super::measure::{Effort, on_host};
use super::report::{Adapter, AdapterReport, Outcome, Row, Timing};

/// Queries that are timed: a reference is slow, and one row costs what its neighbours cost.
const TIMED_ROWS: usize = 32;

/// One thread is steadier than a device, and nobody waits for these figures.
const SAMPLES: usize = 3;

/// What is timed: the reference does not depend on how a device stores its inputs.
pub fn pairs(plan: &Plan) -> impl Iterator<Item = (&Case, &dyn Mechanism)> {
    // The reference of a stream is that of the whole text, which has problems of its own.
    plan.pairs().filter(|(case, mechanism)| mechanism.dtype() == DType::F32 && !case.is_stream)
}

/// Times the reference of every problem and mechanism.
pub fn run(plan: &Plan, cpu: Option<&str>) -> AdapterReport {
    let mut report = AdapterReport::new(Adapter {
        name: cpu.unwrap_or("processor").into(),
        backend: "host".into(),
        kind: "reference".into(),
        driver: "f64 reference, one thread".into(),
        ..Adapter::default()
    });
    for (case, mechanism) in pairs(plan) {
        (plan.progress)(&format!("reference of {}, {}", case.name, mechanism.name()));
        let mut row = Row::new(case, mechanism);
        row.variant = Some("f64".into());
        row.outcome = match measure(case, mechanism, plan.effort(case), &mut row) {
            Ok(()) => Outcome::Right,
            Err(error) => Outcome::Unsupported(error.to_string()),
        };
        report.rows.push(row);
    }
    report
}

fn measure(
    case: &Case,
    mechanism: &dyn Mechanism,
    effort: Effort,
    row: &mut Row,
) -> attn_core::Result<()> {
    let rows = rows(&case.inputs.shape);
    let lengths = case.inputs.shape.lengths();
    let seen = |row: usize| {
        let keys = 0..case.inputs.shape.keys;
        keys.filter(|&key| case.config.mask.allows(lengths, row, key)).count()
    };
    let pairs: usize = rows.iter().map(|&row| seen(row)).sum();
    let factor = case.config.mask.pairs(lengths) as f64 / pairs.max(1) as f64;
    let arrays = case.inputs.to_f64()?;
    // Keys are chosen for all rows at once, so this does not belong to the time of some.
    let chosen = mechanism.choice(&arrays, &case.config)?;
    if let Some(plan) = &chosen {
        row.flops *= plan.stats(Tile::default())?.density();
    }
    let effort = Effort { samples: SAMPLES, sample: effort.sample / 2 };
    let timing = on_host(effort, || {
        mechanism.reference(&arrays, &case.config, &rows, chosen.as_ref()).map(drop)
    })?;
    if rows.len() < case.inputs.shape.queries {
        row.timed_rows = Some(rows.len());
    }
    let Timing { seconds, wall, .. } = timing;
    // The reference reads f64, twice the bytes that are counted.
    row.timed(
        Timing { seconds: seconds.scaled(factor), wall: wall.scaled(factor), ..timing },
        false,
    );
    Ok(())
}

/// Rows at even distances, first and last among them.
fn rows(shape: &AttentionShape) -> Vec<usize> {
    if shape.queries <= TIMED_ROWS {
        return (0..shape.queries).collect();
    }
    (0..TIMED_ROWS).map(|at| at * (shape.queries - 1) / (TIMED_ROWS - 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::cases::tests::shape;
    use super::*;
    use attn_core::testing::{HostInputs, Values};
    use attn_core::{Mask, dense};
    use attn_wgpu::bench::DenseAttention;
    use std::time::Duration;

    #[test]
    fn timed_rows_are_spread() {
        assert_eq!(rows(&shape(1, 3, 9)), [0, 1, 2]);
        let rows = rows(&shape(1, 1000, 1000));
        assert_eq!((rows.len(), rows[0], rows[31]), (TIMED_ROWS, 0, 999));
        assert!(rows.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn times_are_scaled_to_all_rows() {
        let inputs = HostInputs::random(shape(1, 640, 64), 0, Values::Normal);
        let config = dense::Config::new().with_mask(Mask::Full);
        let case = Case { inputs, config, ..Case::for_tests() };
        let mut row = Row::new(&case, &DenseAttention::F32);
        let effort = Effort { samples: 3, sample: Duration::from_millis(1) };
        measure(&case, &DenseAttention::F32, effort, &mut row).unwrap();
        let timing = row.timing.unwrap();
        let raw = timing.samples.iter().map(|s| s.wall_seconds / f64::from(s.runs));
        let largest = raw.fold(0.0, f64::max);
        assert_eq!(row.timed_rows, Some(TIMED_ROWS));
        assert!(timing.wall.q80 <= 20.0 * largest * (1.0 + 1e-9) && timing.wall.q80 > largest);
        assert!(row.gflops_per_second.is_some() && row.gigabytes_per_second.is_none());
    }
}
