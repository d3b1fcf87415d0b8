//! Rows added into tables by number, against loops in f64.

mod common;

use attn_core::testing::{Values, fill, uniform};
use attn_wgpu::embedding::{RowLists, ScatterRows, gather_rows, scatter_add_rows};
use attn_wgpu::{DType, Gpu, Tensor, ops};
use common::{gpu, open};

/// Numbers below `rows`, some of them far more often than others, and some that no table has.
fn ids(count: usize, rows: usize, seed: u64) -> Vec<u32> {
    let id = |i: usize| {
        let x = uniform(seed, 0, i as u64);
        match i % 7 {
            0 => u32::MAX,
            1 | 2 => 0,
            _ => (x * x * rows as f64) as u32 + u32::from(i % 11 == 3) * rows as u32,
        }
    };
    (0..count).map(id).collect()
}

struct Case {
    share: usize,
    width: usize,
    rows: usize,
}

fn expected(ids: &[u32], source: &[f32], weights: Option<&[f32]>, case: &Case) -> Vec<f64> {
    let Case { share, width, rows } = *case;
    let mut sums = vec![0.0; rows * width];
    for (i, &id) in ids.iter().enumerate() {
        let weight = weights.map_or(1.0, |weights| f64::from(weights[i]));
        if (id as usize) < rows && weight != 0.0 {
            for c in 0..width {
                sums[id as usize * width + c] += weight * f64::from(source[i / share * width + c]);
            }
        }
    }
    sums
}

fn close(what: &str, got: &Tensor, want: &[f64], size: f64) {
    let got = got.to_vec::<f32>().unwrap();
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        assert!(error <= 2e-7 * size + 1e-6 * want.abs(), "{what}: {got} for {want} at {i}");
    }
}

/// Lists of none, one and many places, below and above a piece; one row and several ids a row.
#[test]
fn sums_are_those_of_a_loop() {
    let Some(gpu) = gpu() else { return };
    for (seed, (count, share, width, rows)) in [
        (0, 1, 4, 3),
        (1, 1, 1, 1),
        (37, 1, 3, 5),
        (126, 2, 8, 9),
        (130, 1, 16, 2),
        (2100, 21, 5, 30),
        (5000, 1, 4, 7),
    ]
    .into_iter()
    .enumerate()
    {
        let case = Case { share, width, rows };
        let ids = ids(count, rows, seed as u64);
        let source = fill(seed as u64, 1, Values::Normal, count / share * width);
        let mut weights = fill(seed as u64, 2, Values::Normal, count);
        weights.iter_mut().step_by(3).for_each(|weight| *weight = 0.0);
        let on = Tensor::from_slice(&gpu, &ids, &[count]).unwrap();
        let x = Tensor::from_slice(&gpu, &source, &[count / share, width]).unwrap();
        let w = Tensor::from_slice(&gpu, &weights, &[count]).unwrap();
        let lists = RowLists::new(&on, rows).unwrap();
        assert_eq!(lists.rows(), rows);
        let what = format!("{count} ids, {width} x {rows}");
        let size = 3.0 * (count as f64).sqrt().max(1.0);
        let plain = lists.sum(ScatterRows::new(&x)).unwrap();
        close(&what, &plain, &expected(&ids, &source, None, &case), size);
        let weighted = expected(&ids, &source, Some(&weights), &case);
        let call = ScatterRows::new(&x).with_weights(&w).with_factor(0.5);
        let halves: Vec<f64> = weighted.iter().map(|x| 0.5 * x).collect();
        close(&what, &lists.sum(call).unwrap(), &halves, size);
        // Added to what is there, also between other columns.
        let wide = Tensor::full(&gpu, &[rows, width + 3], 2f32).unwrap();
        let target = wide.narrow(1, 1, width).unwrap();
        lists.sum_into(call.accumulating(), &target).unwrap();
        let more: Vec<f64> = halves.iter().map(|x| x + 2.0).collect();
        close(&what, &target, &more, size);
        for edge in [wide.narrow(1, 0, 1).unwrap(), wide.narrow(1, width + 1, 2).unwrap()] {
            assert!(edge.to_vec::<f32>().unwrap().iter().all(|&x| x == 2.0), "{what}");
        }
    }
}

/// The derivative of a gather: <gather(t), y> = <t, scatter(y)>, and the same bits in every run.
#[test]
fn scattering_is_what_gathering_needs() {
    let Some(gpu) = gpu() else { return };
    let (rows, width, count) = (13, 6, 300);
    let ids: Vec<u32> = ids(count, rows, 9).into_iter().map(|id| id % rows as u32).collect();
    let ids = Tensor::from_slice(&gpu, &ids, &[3, count / 3]).unwrap();
    let table = fill(9, 1, Values::Normal, rows * width);
    let y = fill(9, 2, Values::Normal, count * width);
    let on = Tensor::from_slice(&gpu, &table, &[rows, width]).unwrap();
    let gathered = gather_rows(&on, &ids, 1.0, DType::F32).unwrap().to_vec::<f32>().unwrap();
    let x = Tensor::from_slice(&gpu, &y, &[count, width]).unwrap();
    let sums = scatter_add_rows(&ids, &x, rows).unwrap();
    let again = scatter_add_rows(&ids, &x, rows).unwrap();
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let sums = sums.to_vec::<f32>().unwrap();
    assert!((dot(&gathered, &y) - dot(&table, &sums)).abs() < 1e-3);
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&sums), bits(&again.to_vec::<f32>().unwrap()));
}

/// A row of weight 0 is not read, nor one whose id no table has; halves are sources, too.
#[test]
fn what_weighs_nothing_is_not_read() {
    let Some(gpu) = gpu() else { return };
    let ids = Tensor::from_slice(&gpu, &[1u32, 7, 1, 0], &[4]).unwrap();
    let source = [1.0, f32::NAN, f32::NAN, 3.0f32];
    let weights = Tensor::from_slice(&gpu, &[1.0, 1.0, 0.0, 2.0f32], &[4]).unwrap();
    let x = Tensor::from_slice(&gpu, &source, &[4, 1]).unwrap();
    let halves = ops::convert(&x, DType::F16).unwrap();
    let lists = RowLists::new(&ids, 3).unwrap();
    for x in [&x, &halves] {
        let sums = lists.sum(ScatterRows::new(x).with_weights(&weights)).unwrap();
        assert_eq!(sums.to_vec::<f32>().unwrap(), [6.0, 1.0, 0.0]);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = gpu() else { return };
    let zeros = |shape: &[usize], dtype| Tensor::zeros(&gpu, shape, dtype).unwrap();
    let (ids, x) = (zeros(&[6], DType::U32), zeros(&[6, 2], DType::F32));
    let lists = RowLists::new(&ids, 3).unwrap();
    let sum = |rows: &Tensor| lists.sum(ScatterRows::new(rows)).unwrap_err().to_string();
    let into = |out: &Tensor| lists.sum_into(ScatterRows::new(&x), out).unwrap_err().to_string();
    let five = zeros(&[5], DType::F32);
    let fold = zeros(&[1, 2], DType::F32).expand(&[3, 2]).unwrap();
    for (message, part) in [
        (sum(&zeros(&[4, 2], DType::F32)), "`rows` has shape [4, 2]"),
        (sum(&zeros(&[0, 2], DType::F32)), "`rows` has shape [0, 2]"),
        (sum(&zeros(&[6], DType::F32)), "`rows` has shape [6]"),
        (sum(&zeros(&[6, 2], DType::U32)), "`rows` has element type u32"),
        (
            lists.sum(ScatterRows::new(&x).with_weights(&five)).unwrap_err().to_string(),
            "`weights` has shape [5]",
        ),
        (lists.sum(ScatterRows::new(&x).accumulating()).unwrap_err().to_string(), "`accumulate`"),
        (into(&zeros(&[3, 3], DType::F32)), "`out` has shape [3, 3]"),
        (into(&zeros(&[3, 2], DType::F16)), "`out` has element type f16"),
        (into(&fold), "`out`"),
        (RowLists::new(&zeros(&[6], DType::I32), 3).unwrap_err().to_string(), "`ids`"),
        (RowLists::new(&zeros(&[1, 1, 1, 6], DType::U32), 3).unwrap_err().to_string(), "`ids`"),
    ] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    let Some(other) = open(Gpu::builder()) else { return };
    let elsewhere = Tensor::zeros(&other, &[6, 2], DType::F32).unwrap();
    assert!(sum(&elsewhere).contains("another Gpu"));
}
