//! A small writer of line plots as inline SVG. Colours come from the page's style sheet, by class.

use std::fmt::Write;

use super::escape;

/// Extents of the drawing and of the plot inside, in units that are about a pixel on a phone.
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 290.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 408.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 236.0;
/// Colours, dash patterns and markers of the style sheet.
pub const COLOURS: usize = 6;
pub const DASHES: usize = 4;
/// Labels on an axis at most.
const MOST_LABELS: usize = 8;

/// Values upwards.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    /// From 0.
    Linear,
    /// Only what is above 0 is drawn.
    Log,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    pub x: f64,
    pub y: f64,
    /// Ends of a vertical bar.
    pub spread: Option<(f64, f64)>,
}

/// One line: all share the horizontal axis, which is logarithmic to the base 2.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub name: String,
    pub colour: usize,
    pub dash: usize,
    pub points: Vec<Point>,
}

pub struct Plot<'a> {
    pub x_label: &'a str,
    pub y_label: &'a str,
    pub scale: Scale,
    /// A horizontal line that others are compared with.
    pub level: Option<f64>,
    pub lines: &'a [Line],
}

/// From values to places.
struct Axis {
    log: bool,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn place(&self, value: f64) -> f64 {
        let scaled = |x: f64| if self.log { x.ln() } else { x };
        let (low, high) = (scaled(self.low), scaled(self.high));
        self.from + (self.to - self.from) * (scaled(value) - low) / (high - low)
    }
}

impl Plot<'_> {
    /// The drawing, or nothing where there is no point.
    pub fn svg(&self) -> Option<String> {
        let usable = |point: &&Point| {
            let [x, y] = [point.x, point.y].map(|value| value.is_finite() && value > 0.0);
            x && (y || (self.scale == Scale::Linear && point.y == 0.0))
        };
        let lines: Vec<(&Line, Vec<Point>)> = self
            .lines
            .iter()
            .map(|line| (line, line.points.iter().filter(usable).copied().collect()))
            .collect();
        let all = || lines.iter().flat_map(|(_, points)| points);
        all().next()?;
        let mut xs: Vec<f64> = all().map(|point| point.x).collect();
        xs.sort_by(f64::total_cmp);
        xs.dedup();
        let ends = |point: &Point| point.spread.unwrap_or((point.y, point.y));
        let ys = all().flat_map(|point| [point.y, ends(point).0, ends(point).1]).chain(self.level);
        let ys: Vec<f64> = ys.filter(|y| y.is_finite() && *y > 0.0).collect();
        let (low, high) = ys.iter().fold((f64::MAX, 0.0_f64), |(a, b), &y| (a.min(y), b.max(y)));
        let (low, high) = if ys.is_empty() { (0.1, 1.0) } else { (low, high) };
        let ticks = match self.scale {
            Scale::Linear => linear_ticks(high),
            Scale::Log => log_ticks(low, high),
        };
        let y = match self.scale {
            Scale::Linear => {
                let high = ticks.last().copied().unwrap_or(1.0).max(high);
                Axis { log: false, low: 0.0, high, from: BOTTOM, to: TOP }
            }
            Scale::Log => {
                Axis { log: true, low: low / 1.3, high: high * 1.3, from: BOTTOM, to: TOP }
            }
        };
        let (first, last) = (xs[0], xs[xs.len() - 1]);
        let x = Axis { log: true, low: first / 1.15, high: last * 1.15, from: LEFT, to: RIGHT };

        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{} against {}\">\n",
            escape(self.y_label),
            escape(self.x_label)
        );
        grid(&mut svg, &x, &y, &xs, &ticks);
        if let Some(level) = self.level {
            let at = y.place(level);
            let _ = writeln!(svg, "<path class=\"level\" d=\"M{LEFT} {at:.1}H{RIGHT}\"/>");
        }
        for (line, points) in &lines {
            draw(&mut svg, line, points, &x, &y, ends);
        }
        let _ = writeln!(
            svg,
            "<text class=\"axis\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n<text class=\"axis\" \
             transform=\"translate(14 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n</svg>",
            (LEFT + RIGHT) / 2.0,
            HEIGHT - 10.0,
            escape(self.x_label),
            (TOP + BOTTOM) / 2.0,
            escape(self.y_label)
        );
        Some(svg)
    }
}

fn grid(svg: &mut String, x: &Axis, y: &Axis, xs: &[f64], ticks: &[f64]) {
    for &tick in ticks {
        let at = y.place(tick);
        let _ = writeln!(
            svg,
            "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{RIGHT}\"/><text x=\"{}\" y=\"{:.1}\" \
             text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            at + 5.0,
            label(tick)
        );
    }
    let step = xs.len().div_ceil(MOST_LABELS);
    for &tick in xs.iter().rev().step_by(step) {
        let at = x.place(tick);
        let _ = writeln!(
            svg,
            "<path class=\"grid\" d=\"M{at:.1} {TOP}V{BOTTOM}\"/><text x=\"{at:.1}\" y=\"{}\" \
             text-anchor=\"middle\">{}</text>",
            BOTTOM + 20.0,
            label(tick)
        );
    }
}

fn draw(
    svg: &mut String,
    line: &Line,
    points: &[Point],
    x: &Axis,
    y: &Axis,
    ends: impl Fn(&Point) -> (f64, f64),
) {
    let _ = writeln!(svg, "<g class=\"c{} d{}\">", line.colour % COLOURS, line.dash % DASHES);
    let mut path = String::new();
    for point in points {
        let start = if path.is_empty() { 'M' } else { 'L' };
        let _ = write!(path, "{start}{:.1} {:.1}", x.place(point.x), y.place(point.y));
    }
    if points.len() > 1 {
        let _ = writeln!(svg, "<path class=\"line\" d=\"{path}\"/>");
    }
    for point in points {
        let at = x.place(point.x);
        let (low, high) = ends(point);
        if low < high && low > 0.0 {
            let _ = writeln!(
                svg,
                "<path class=\"bar\" d=\"M{at:.1} {:.1}V{:.1}\"/>",
                y.place(low),
                y.place(high)
            );
        }
        let _ = writeln!(
            svg,
            "<path class=\"mark\" d=\"{}\"><title>{}, {}: {}</title></path>",
            marker(line.colour, at, y.place(point.y)),
            escape(&line.name),
            label(point.x),
            label(point.y)
        );
    }
    svg.push_str("</g>\n");
}

/// The line of a legend.
pub fn sample(line: &Line) -> String {
    format!(
        "<svg class=\"sample\" viewBox=\"0 0 34 12\" aria-hidden=\"true\"><g class=\"c{} d{}\"><path \
         class=\"line\" d=\"M1 6H33\"/><path class=\"mark\" d=\"{}\"/></g></svg>",
        line.colour % COLOURS,
        line.dash % DASHES,
        marker(line.colour, 17.0, 6.0)
    )
}

/// Shapes differ as colours do, for those who cannot tell colours.
fn marker(number: usize, x: f64, y: f64) -> String {
    match number % COLOURS {
        0 => format!("M{:.1} {y:.1}a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0z", x - 3.6),
        1 => format!("M{:.1} {:.1}h6.4v6.4h-6.4z", x - 3.2, y - 3.2),
        2 => format!("M{x:.1} {:.1}l4.4 7.4h-8.8z", y - 4.6),
        3 => format!("M{x:.1} {:.1}l4.6 4.6l-4.6 4.6l-4.6 -4.6z", y - 4.6),
        4 => format!("M{x:.1} {:.1}l-4.4 -7.4h8.8z", y + 4.6),
        _ => format!("M{:.1} {:.1}h8.4v4h-8.4z", x - 4.2, y - 2.0),
    }
}

fn linear_ticks(high: f64) -> Vec<f64> {
    let rough = high / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    let step = step.into_iter().find(|step| *step >= rough).unwrap_or(10.0 * power);
    let count = (high / step).ceil().clamp(1.0, 10.0) as u32;
    (0..=count).map(|at| f64::from(at) * step).collect()
}

/// Powers of ten, with more between where there is room.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let (low, high) = (low / 1.3, high * 1.3);
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let all = |factors: &[f64]| -> Vec<f64> {
        let ticks = decades
            .clone()
            .flat_map(|power| factors.iter().map(move |factor| factor * 10_f64.powi(power)));
        ticks.filter(|tick| (low..=high).contains(tick)).collect()
    };
    let sets: [&[f64]; 3] = [&[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0], &[1.0, 2.0, 5.0], &[1.0]];
    let fits = |ticks: &Vec<f64>| ticks.len() <= MOST_LABELS;
    sets.into_iter().map(all).find(fits).unwrap_or_else(|| all(&[1.0]))
}

/// A number with few signs.
fn label(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        "0".into()
    } else if !(1e-2..1e6).contains(&size) {
        let text = format!("{value:.1e}");
        text.replace(".0e", "e")
    } else {
        // Three digits, without the zeros at the end.
        let places = (2 - size.log10().floor() as i32).max(0) as usize;
        let text = format!("{value:.places$}");
        match text.contains('.') {
            true => text.trim_end_matches('0').trim_end_matches('.').into(),
            false => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: &[(f64, f64)]) -> Line {
        let point = |&(x, y)| Point { x, y, spread: Some((0.9 * y, 1.1 * y)) };
        Line { name: "a<b".into(), colour: 0, dash: 0, points: points.iter().map(point).collect() }
    }

    fn svg(scale: Scale, points: &[(f64, f64)]) -> Option<String> {
        let lines = [line(points)];
        Plot { x_label: "N", y_label: "ms", scale, level: Some(1.0), lines: &lines }.svg()
    }

    #[test]
    fn no_drawing_has_nan_or_infinity() {
        let odd = [(f64::NAN, 1.0), (8.0, f64::INFINITY), (8.0, -1.0), (0.0, 1.0), (8.0, f64::NAN)];
        for scale in [Scale::Linear, Scale::Log] {
            assert_eq!(svg(scale, &odd), None);
            assert_eq!(svg(scale, &[]), None);
            for points in [
                &[(128.0, 1.0)][..],
                &[(128.0, 0.0), (256.0, 0.0)],
                &[(128.0, 1e-9), (256.0, 1e9)],
                &[(128.0, 2.0), (8.0, f64::INFINITY), (256.0, 2.0)],
            ] {
                if let Some(text) = svg(scale, points) {
                    assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
                    assert!(text.contains("a&lt;b") && !text.contains("a<b"));
                }
            }
        }
        assert!(
            svg(Scale::Log, &[(8.0, 0.0)]).is_none() && svg(Scale::Linear, &[(8.0, 0.0)]).is_some()
        );
    }

    #[test]
    fn everything_lies_inside() {
        let text = svg(Scale::Log, &[(128.0, 1.0), (1024.0, 64.0)]).unwrap();
        let paths = text.lines().filter(|line| line.contains("class=\"line\""));
        for number in paths.flat_map(|line| line.split(['M', 'L', ' ', '"'])) {
            if let Ok(number) = number.parse::<f64>() {
                assert!((TOP..=RIGHT).contains(&number), "{number}");
            }
        }
    }

    #[test]
    fn ticks() {
        assert_eq!(linear_ticks(47.0), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(linear_ticks(1.0).len(), 6);
        assert_eq!(log_ticks(1.0, 40.0), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
        assert_eq!(log_ticks(1.0, 2.0), [1.0, 1.5, 2.0]);
        assert_eq!(log_ticks(1e-6, 2e-3).len(), 4);
    }

    #[test]
    fn labels() {
        let shown = [0.0, 1e-6, 2.5e-4, 0.05, 1.0, 12.5, 1024.0, 8192.0, 3e7].map(label);
        assert_eq!(shown, ["0", "1e-6", "2.5e-4", "0.05", "1", "12.5", "1024", "8192", "3e7"]);
    }
}
