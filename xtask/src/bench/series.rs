//! What the plots show: figures of every mechanism and mask over the number of keys.

use super::html::svg::{Line, Point};
use super::report::Row;

/// A mechanism under one mask with so many heads, its rows by rising number of keys.
pub struct Series<'a> {
    pub mechanism: &'a str,
    pub mask: &'a str,
    pub heads: usize,
    pub rows: Vec<&'a Row>,
}

/// A pair of neighbouring lengths between which a series becomes faster than dense attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Crossover {
    /// Faster at every length that was measured.
    Always,
    /// From about so many keys on.
    At(f64),
    Never,
}

impl Series<'_> {
    pub fn name(&self) -> String {
        let heads = if self.heads == 1 { ", one head" } else { "" };
        format!("{}, {}{heads}", self.mechanism, self.mask)
    }
}

/// The series among right results, in their order.
pub fn series(rows: &[Row]) -> Vec<Series<'_>> {
    let mut all: Vec<Series<'_>> = Vec::new();
    for row in rows.iter().filter(|row| row.in_series && row.timing.is_some()) {
        let (mechanism, mask, heads) = (row.mechanism.as_str(), row.mask.as_str(), row.shape[1]);
        let same = |s: &&mut Series<'_>| (s.mechanism, s.mask, s.heads) == (mechanism, mask, heads);
        match all.iter_mut().find(same) {
            Some(series) => series.rows.push(row),
            None => all.push(Series { mechanism, mask, heads, rows: vec![row] }),
        }
    }
    all.iter_mut().for_each(|series| series.rows.sort_by_key(|row| row.shape[4]));
    all
}

/// Lines of one figure. Colours tell mechanisms and dashes masks.
pub fn lines(all: &[Series<'_>], figure: impl Fn(&Row) -> Option<Point>) -> Vec<Line> {
    let numbers = |names: Vec<&str>| {
        let mut unique: Vec<String> = Vec::new();
        let number = |name: &str| match unique.iter().position(|known| known == name) {
            Some(at) => at,
            None => {
                unique.push(name.into());
                unique.len() - 1
            }
        };
        names.into_iter().map(number).collect::<Vec<_>>()
    };
    let colours = numbers(all.iter().map(|series| series.mechanism).collect());
    let dashes = numbers(all.iter().map(|series| series.mask).collect());
    let line = |(series, (colour, dash)): (&Series<'_>, (usize, usize))| Line {
        name: series.name(),
        colour,
        dash,
        points: series.rows.iter().filter_map(|row| figure(row)).collect(),
    };
    all.iter().zip(colours.into_iter().zip(dashes)).map(line).collect()
}

/// Dense attention that does the same task: what a row is compared with.
pub fn base_name(mechanism: &str) -> &'static str {
    match mechanism.rsplit_once('-') {
        Some((_, "backward")) => "dense-backward",
        Some((_, "stream")) => "dense-stream",
        _ => "dense",
    }
}

/// The series that others are compared with: dense attention under the mask that comes first.
pub fn base<'a, 'b>(all: &'b [Series<'a>], of: &Series<'a>) -> Option<&'b Series<'a>> {
    let is_base = |series: &&Series<'_>| {
        series.mechanism == base_name(of.mechanism) && series.heads == of.heads
    };
    let base = all.iter().find(is_base)?;
    (base.name() != of.name()).then_some(base)
}

/// Times of dense attention over those of a series, at the lengths of both.
pub fn speed_ups(of: &Series<'_>, base: &Series<'_>) -> Vec<(f64, f64)> {
    let seconds = |row: &Row| row.timing.as_ref().map(|timing| timing.seconds.median);
    let speed_up = |row: &&Row| {
        let dense = base.rows.iter().find(|dense| dense.shape == row.shape)?;
        Some((row.shape[4] as f64, seconds(dense)? / seconds(row)?))
    };
    of.rows.iter().filter_map(speed_up).filter(|(_, y)| y.is_finite()).collect()
}

/// Where the speed-up rises above 1 for good, between two lengths by the line that a plot draws.
pub fn crossover(speed_ups: &[(f64, f64)]) -> Crossover {
    match speed_ups.iter().rposition(|(_, y)| *y <= 1.0) {
        None => Crossover::Always,
        Some(last) if last + 1 == speed_ups.len() => Crossover::Never,
        Some(last) => {
            let ((x0, y0), (x1, y1)) = (speed_ups[last], speed_ups[last + 1]);
            let part = (1.0 - y0) / (y1 - y0);
            Crossover::At(x0 * (x1 / x0).powf(part))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::sample;
    use super::*;

    fn rows() -> Vec<Row> {
        let right = sample().adapters[0].rows[0].clone();
        let row = |mechanism: &str, keys, median| {
            let mut row = Row { mechanism: mechanism.into(), ..right.clone() };
            (row.shape[3], row.shape[4]) = (keys, keys);
            row.timing.as_mut().unwrap().seconds.median = median;
            row
        };
        vec![
            row("dense", 256, 2.0),
            row("dense", 128, 1.0),
            row("new", 128, 2.0),
            row("new", 256, 1.0),
            Row { timing: None, ..row("new", 512, 1.0) },
            Row { in_series: false, ..row("new", 512, 1.0) },
        ]
    }

    #[test]
    fn series_are_sorted_and_complete() {
        let rows = rows();
        let all = series(&rows);
        assert_eq!(all.len(), 2);
        let keys = |at: usize| all[at].rows.iter().map(|row| row.shape[4]).collect::<Vec<_>>();
        assert_eq!((keys(0), keys(1)), (vec![128, 256], vec![128, 256]));
        let lines = lines(&all, |row| Some(Point { x: row.shape[4] as f64, y: 1.0, spread: None }));
        assert_eq!((lines[0].colour, lines[1].colour, lines[1].dash), (0, 1, 0));
        assert_eq!(lines[1].name, "new, causal");
    }

    #[test]
    fn speed_up_and_crossover() {
        let rows = rows();
        let all = series(&rows);
        assert!(base(&all, &all[0]).is_none());
        let ups = speed_ups(&all[1], base(&all, &all[1]).unwrap());
        assert_eq!(ups, [(128.0, 0.5), (256.0, 2.0)]);
        let Crossover::At(keys) = crossover(&ups) else { panic!("{:?}", crossover(&ups)) };
        assert!((160.0..163.0).contains(&keys), "{keys}");
        assert_eq!(crossover(&[(1.0, 1.5)]), Crossover::Always);
        assert_eq!(crossover(&[(1.0, 1.5), (2.0, 0.9)]), Crossover::Never);
    }

    #[test]
    fn gradients_are_compared_with_gradients() {
        assert_eq!((base_name("x-backward"), base_name("x")), ("dense-backward", "dense"));
        assert_eq!((base_name("x-stream"), base_name("x-y")), ("dense-stream", "dense"));
    }
}
