//! What mechanisms that choose keys have chosen, what the choice keeps of dense attention, and what it costs.

use std::collections::HashMap;

use attn_core::dense::{self, Config};
use attn_core::plan::{SparsePlan, Tile};
use attn_core::testing::HostArrays;
use attn_core::{AttentionShape, Mask};
use attn_wgpu::Gpu;
use attn_wgpu::bench::{Mechanism, Prepared, Stage, mask_of_rows, pick_rows};
use attn_wgpu::ndarray::{Array4, Axis, s};
use serde::{Deserialize, Serialize};

use super::cases::Case;
use super::gate::Got;
use super::measure::{Effort, on_device};
use super::report::{Row, Timing, finite};
use super::series::base_name;
use super::table::{NONE, digits, milliseconds};

/// Queries of each head that are compared with dense attention.
const ROWS: usize = 128;
/// A choice that shares fewer pairs with that of the f64 reference is wrong. Rounding turns close ones.
const ALIKE: f64 = 0.99;

/// A choice of keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Chosen pairs over those that the mask allows.
    pub density: f64,
    /// The same of the pairs in tiles of 32 queries and 16 keys that have to be computed.
    pub executed_density: f64,
    /// Pairs that the f64 reference has chosen too, over those that either has; none where it has no choice.
    pub alike: Option<f64>,
    /// By batch entry and head.
    pub heads: Vec<Head>,
    /// Choosing alone, where something is chosen.
    pub select: Option<Timing>,
    /// Attention to what was chosen before.
    pub attend: Option<Timing>,
    /// Time of dense attention in this run over that of choice and attention together.
    pub speed_up: Option<f64>,
    /// Speed-up of attention alone times executed density: 1 where a pair costs what it costs in dense attention.
    pub efficiency: Option<f64>,
}

/// What one head keeps of dense attention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Head {
    pub batch: usize,
    pub head: usize,
    pub density: f64,
    /// Share of the dense attention of a query that falls on chosen keys, the mean over some queries.
    pub mass: f64,
    /// Distance of the output from that of dense attention over the norm of the latter, of the same queries.
    pub error: Option<f64>,
}

/// Dense attention of some queries of one head.
struct Dense<'a> {
    shape: AttentionShape,
    inputs: &'a HostArrays,
    config: &'a Config,
    rows: &'a [usize],
}

impl Dense<'_> {
    /// Output `[1, 1, rows, dim_v]` and log-sum-exp of each row under this mask.
    fn run(&self, batch: usize, head: usize, mask: &Mask) -> attn_core::Result<dense::Output> {
        let group = (self.shape.heads / self.shape.heads_kv.max(1)).max(1);
        let (b, h, kv) = (batch..batch + 1, head..head + 1, head / group..head / group + 1);
        let q = self.inputs.q.slice(s![b.clone(), h, .., ..]).select(Axis(2), self.rows);
        let k = self.inputs.k.slice(s![b.clone(), kv.clone(), .., ..]);
        let v = self.inputs.v.slice(s![b, kv, .., ..]);
        let one = AttentionShape { batch: 1, heads: 1, heads_kv: 1, ..self.shape };
        let config = self.config.clone().with_mask(mask_of_rows(&one, mask, self.rows));
        dense::forward(dense::Inputs::new(q.view(), k, v), &config)
    }
}

impl Choice {
    /// Compares what was chosen, and the first of the `results` of attention to it, with dense attention.
    pub fn of(
        mechanism: &dyn Mechanism,
        case: &Case,
        plan: &SparsePlan,
        results: &[Got],
    ) -> attn_core::Result<Choice> {
        let stats = plan.stats(Tile::default())?;
        let arrays = case.inputs.to_f64()?;
        let own = mechanism.choice(&arrays, &case.config)?;
        let (inputs, config) = mechanism.dense(&arrays, &case.config)?;
        let shape = inputs.view().check()?;
        let rows = rows(shape.queries);
        let dense = Dense { shape, inputs: &inputs, config: &config, rows: &rows };
        let out =
            results.first().map_or(Vec::new(), |got| pick_rows(&got.data, shape.out(), &rows));
        let extents = (shape.batch, shape.heads, rows.len(), shape.dim_v);
        let out = Array4::from_shape_vec(extents, out)
            .map_err(|error| attn_core::Error::data("results", "an output", error))?;

        let (mut heads, mut both, mut either) = (Vec::new(), 0_u64, 0_u64);
        for (batch, head) in (0..shape.batch).flat_map(|b| (0..shape.heads).map(move |h| (b, h))) {
            let chosen = plan.to_dense_mask(batch, head)?;
            if let Some(own) = &own {
                let own = own.to_dense_mask(batch, head)?;
                for (a, b) in chosen.words().iter().zip(own.words()) {
                    both += u64::from((a & b).count_ones());
                    either += u64::from((a | b).count_ones());
                }
            }
            let pairs = (0..shape.queries).map(|row| chosen.count(row)).sum::<usize>();
            let whole = dense.run(batch, head, &config.mask)?;
            let kept = dense.run(batch, head, &Mask::Bits(chosen))?;
            let share = |(kept, whole): (&f64, &f64)| match whole.is_finite() {
                true => (kept - whole).exp(),
                false => 1.0, // nothing to keep
            };
            let mass = kept.lse.iter().zip(&whole.lse).map(share).sum::<f64>();
            let own = out.slice(s![batch, head, .., ..]);
            let distance = own.iter().zip(&whole.out).map(|(a, b)| (f64::from(*a) - b).powi(2));
            let norm = whole.out.iter().map(|x| x * x).sum::<f64>();
            heads.push(Head {
                batch,
                head,
                density: pairs as f64 / (config.mask.pairs(shape.lengths()) as f64).max(1.0),
                mass: mass / rows.len().max(1) as f64,
                error: finite((distance.sum::<f64>() / norm).sqrt()),
            });
        }
        Ok(Choice {
            density: stats.density(),
            executed_density: stats.executed_density(),
            alike: own.map(|_| both as f64 / (either as f64).max(1.0)),
            heads,
            select: None,
            attend: None,
            speed_up: None,
            efficiency: None,
        })
    }

    /// Why the choice is not the mechanism's, if it is not.
    pub fn wrong(&self) -> Option<String> {
        let alike = self.alike.filter(|alike| *alike < ALIKE)?;
        Some(format!("{:.1} % of the chosen pairs are those of the f64 reference", 100.0 * alike))
    }

    /// Times both stages.
    pub fn time(
        &mut self,
        gpu: &Gpu,
        effort: Effort,
        prepared: &dyn Prepared,
    ) -> attn_wgpu::Result<()> {
        let time = |stage| {
            let there = prepared.stage(stage)?;
            let timing = || on_device(gpu, effort, &|| prepared.stage(stage).map(drop));
            there.then(timing).transpose()
        };
        self.select = time(Stage::Select)?;
        self.attend = time(Stage::Attend)?;
        Ok(())
    }

    /// Mean over all heads of a figure that each has.
    fn mean(&self, figure: impl Fn(&Head) -> Option<f64>) -> Option<f64> {
        let figures: Option<Vec<f64>> = self.heads.iter().map(figure).collect();
        let figures = figures.filter(|figures| !figures.is_empty())?;
        Some(figures.iter().sum::<f64>() / figures.len() as f64)
    }
}

/// Queries at even distances, the last among them.
fn rows(queries: usize) -> Vec<usize> {
    let step = queries.div_ceil(ROWS).max(1);
    let mut rows: Vec<_> = (0..queries).rev().step_by(step).collect();
    rows.reverse();
    rows
}

/// Fills in what follows from the times of dense attention on the same problems.
pub fn compare_with_dense(rows: &mut [Row]) {
    let key = |row: &Row, mechanism: &str| {
        (row.problem.clone(), row.mask.clone(), row.dtype.clone(), mechanism.to_string())
    };
    let seconds = |timing: &Option<Timing>| timing.as_ref().map(|timing| timing.seconds.median);
    let known = |row: &Row| Some((key(row, &row.mechanism), seconds(&row.timing)?));
    let known: HashMap<_, _> = rows.iter().filter_map(known).collect();
    for row in rows {
        let dense = known.get(&key(row, base_name(&row.mechanism))).copied();
        let whole = seconds(&row.timing);
        let Some(choice) = &mut row.choice else { continue };
        let over = |seconds: Option<f64>| finite(dense? / seconds?);
        choice.speed_up = over(whole);
        choice.efficiency =
            over(seconds(&choice.attend)).map(|times| times * choice.executed_density);
    }
}

const HEADER: [&str; 12] = [
    "problem",
    "mask",
    "mechanism",
    "density",
    "executed",
    "mass kept",
    "from dense",
    "alike",
    "select ms",
    "attend ms",
    "speed-up",
    "efficiency",
];

fn percent(x: f64) -> String {
    format!("{:.1} %", 100.0 * x)
}

/// Header and cells of all rows with a choice, if there are any.
pub fn columns(rows: &[Row]) -> Option<(Vec<String>, Vec<Vec<String>>)> {
    let show = |value: Option<f64>, shown: fn(f64) -> String| value.map_or(NONE.into(), shown);
    let line = |row: &Row| {
        let choice = row.choice.as_ref()?;
        let time = |timing: &Option<Timing>| timing.as_ref().map(|timing| timing.seconds.median);
        Some(vec![
            row.problem.clone(),
            row.mask.clone(),
            row.mechanism.clone(),
            percent(choice.density),
            percent(choice.executed_density),
            show(choice.mean(|head| Some(head.mass)), percent),
            show(choice.mean(|head| head.error), percent),
            show(choice.alike, percent),
            show(time(&choice.select), milliseconds),
            show(time(&choice.attend), milliseconds),
            show(choice.speed_up, digits),
            show(choice.efficiency, digits),
        ])
    };
    let cells: Vec<_> = rows.iter().filter_map(line).collect();
    (!cells.is_empty()).then(|| (HEADER.map(String::from).to_vec(), cells))
}

const HEADS: [&str; 7] =
    ["problem", "mask", "mechanism", "batch, head", "density", "mass kept", "from dense"];

/// Columns of [`heads`] that hold words.
pub const WORDS: usize = 4;

/// The same of every head.
pub fn heads(rows: &[Row]) -> Option<(Vec<String>, Vec<Vec<String>>)> {
    let line = |row: &Row, head: &Head| {
        vec![
            row.problem.clone(),
            row.mask.clone(),
            row.mechanism.clone(),
            format!("{}, {}", head.batch, head.head),
            percent(head.density),
            percent(head.mass),
            head.error.map_or(NONE.into(), percent),
        ]
    };
    let lines = |row: &Row| {
        let heads = row.choice.iter().flat_map(|choice| &choice.heads);
        heads.map(|head| line(row, head)).collect::<Vec<_>>()
    };
    let cells: Vec<_> = rows.iter().flat_map(lines).collect();
    (!cells.is_empty()).then(|| (HEADS.map(String::from).to_vec(), cells))
}

/// What the columns mean.
pub const NOTE: &str = "density is chosen pairs of those that the mask allows; executed: in tiles of 32 queries and 16 \
     keys; mass kept: share of dense attention on the chosen keys; from dense: distance of the output from that of \
     dense attention, relative; of at most 128 queries a head, the mean over heads; alike: chosen pairs that are also \
     the f64 reference's; speed-up: over dense attention in this run, choosing included; efficiency: speed-up of \
     attending alone, times executed.";

#[cfg(test)]
mod tests {
    use attn_core::plan::{PlanShape, Share};
    use attn_core::testing::{HostInputs, Values, simple_f32};
    use attn_wgpu::bench::DenseAttention;

    use super::super::cases::tests::shape;
    use super::super::report::tests::sample;
    use super::*;

    fn case() -> Case {
        let shape = AttentionShape { heads_kv: 1, ..shape(2, 16, 16) };
        let inputs = HostInputs::random(shape, 5, Values::Normal);
        Case { inputs, ..Case::for_tests() }
    }

    /// The choice of the first `keys` keys, with the output of dense attention.
    fn choice(case: &Case, keys: usize) -> Choice {
        let of = PlanShape::from(&case.inputs.shape);
        let plan = SparsePlan::covering(of, Share::PerHead, true, [1, 1], |_, _, key| key < keys);
        let shape = case.inputs.shape.out().to_vec();
        let data = simple_f32(&case.inputs, &case.config).unwrap().out;
        let results = [Got { name: "out", shape, data }];
        Choice::of(&DenseAttention::F32, case, &plan.unwrap(), &results).unwrap()
    }

    #[test]
    fn all_keys_keep_all() {
        let all = choice(&case(), 16);
        assert_eq!((all.density, all.heads.len(), all.alike), (1.0, 2, None));
        for head in &all.heads {
            assert!((head.mass - 1.0).abs() < 1e-12 && head.density == 1.0, "{head:?}");
            assert!(head.error.is_some_and(|error| error < 1e-6), "{head:?}");
        }
    }

    #[test]
    fn some_keys_keep_their_share() {
        let case = case();
        let some = choice(&case, 3);
        // Queries 0, 1 and all others see 1, 2 and 3 of their 1 to 16 keys.
        assert_eq!(some.density, 45.0 / 136.0);
        let arrays = case.inputs.to_f64().unwrap();
        let output = dense::forward(arrays.view(), &case.config).unwrap();
        let scale = case.config.scale_for(8);
        for head in &some.heads {
            let logit = |row: usize, key: usize| {
                let q = arrays.q.slice(s![0, head.head, row, ..]);
                scale
                    * q.iter()
                        .zip(arrays.k.slice(s![0, 0, key, ..]))
                        .map(|(a, b)| a * b)
                        .sum::<f64>()
            };
            let of = |row: usize| {
                let keys = 0..3.min(row + 1);
                keys.map(|key| (logit(row, key) - output.lse[[0, head.head, row]]).exp())
                    .sum::<f64>()
            };
            let mass = (0..16).map(of).sum::<f64>() / 16.0;
            assert!((head.mass - mass).abs() < 1e-12, "{} {mass}", head.mass);
        }
    }

    #[test]
    fn other_choices_than_the_references_are_wrong() {
        let mut some = choice(&case(), 3);
        assert_eq!(some.wrong(), None);
        some.alike = Some(0.995);
        assert_eq!(some.wrong(), None);
        some.alike = Some(0.9);
        assert!(some.wrong().is_some_and(|why| why.starts_with("90.0 %")));
    }

    #[test]
    fn queries_are_spread_up_to_the_last() {
        assert_eq!(rows(3), [0, 1, 2]);
        assert_eq!(rows(0), [0; 0]);
        let rows = rows(1000);
        assert!(rows.len() <= ROWS && rows.len() > ROWS / 2 && rows.last() == Some(&999));
    }

    #[test]
    fn times_over_those_of_dense_attention() {
        let right = sample().adapters[0].rows[0].clone();
        let mut timing = right.timing.clone().unwrap();
        timing.seconds = timing.seconds.scaled(0.5);
        let mut mine =
            Row { mechanism: "new".into(), timing: Some(timing.clone()), ..right.clone() };
        let attend = Timing { seconds: timing.seconds.scaled(0.5), ..timing };
        mine.choice =
            Some(Choice { executed_density: 0.2, attend: Some(attend), ..choice(&case(), 3) });
        let other = Row { problem: "other".into(), ..mine.clone() };
        let mut rows = vec![mine, right, other];
        compare_with_dense(&mut rows);
        let found = |at: usize| rows[at].choice.as_ref().map(|c| (c.speed_up, c.efficiency));
        assert_eq!(found(0), Some((Some(2.0), Some(0.8))));
        assert_eq!((found(1), found(2)), (None, Some((None, None))));
        let (header, cells) = columns(&rows).unwrap();
        assert_eq!((header.len(), cells.len(), cells[0][10].as_str()), (12, 2, "2.00"));
        let (header, cells) = heads(&rows).unwrap();
        assert_eq!((header.len(), cells.len(), cells[1][3].as_str()), (7, 4, "0, 1"));
    }
}
