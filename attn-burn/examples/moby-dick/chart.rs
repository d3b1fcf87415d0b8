//! Curves of losses as SVG.

use std::fmt::Write as _;

const SIZE: [f64; 2] = [640.0, 360.0];
const MARGIN: f64 = 48.0;
/// Colours and dashes: of curves that are one line both are to be seen.
const STYLES: [(&str, &str); 4] =
    [("#0072b2", "none"), ("#d55e00", "none"), ("#009e73", "6 6"), ("#555555", "none")];

/// One curve for each name, smoothed over steps; `label` says of what.
pub fn draw(label: &str, curves: &[(&str, &[f64])]) -> String {
    let curves: Vec<_> = curves.iter().map(|(name, losses)| (*name, smooth(losses))).collect();
    let all = || curves.iter().flat_map(|(_, losses)| losses.iter().copied());
    let (low, high) =
        (all().fold(f64::INFINITY, f64::min).floor(), all().fold(0.0, f64::max).ceil());
    let steps = curves.iter().map(|(_, losses)| losses.len()).max().unwrap_or(1);
    let x = |step: usize| MARGIN + (SIZE[0] - 2.0 * MARGIN) * step as f64 / steps.max(2) as f64;
    let y = |loss: f64| MARGIN + (SIZE[1] - 2.0 * MARGIN) * (high - loss) / (high - low).max(1e-9);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        SIZE[0], SIZE[1]
    );
    for tick in 0..=4 {
        let loss = low + (high - low) * f64::from(tick) / 4.0;
        let step = steps * tick as usize / 4;
        let _ = writeln!(
            svg,
            "<path d=\"M{MARGIN} {0:.1}H{1}\" stroke=\"#ddd\"/><text x=\"8\" y=\"{2:.1}\">{loss:.2}</text>\
             <text x=\"{3:.1}\" y=\"{4}\" text-anchor=\"middle\">{step}</text>",
            y(loss),
            SIZE[0] - MARGIN,
            y(loss) + 4.0,
            x(step),
            SIZE[1] - MARGIN + 18.0
        );
    }
    for (i, (name, losses)) in curves.iter().enumerate() {
        let (colour, dashes) = STYLES[i % STYLES.len()];
        let points: String = losses
            .iter()
            .enumerate()
            .map(|(step, l)| format!("{:.1},{:.1} ", x(step), y(*l)))
            .collect();
        // Between the first two lines of the grid.
        let (right, top) = (SIZE[0] - MARGIN - 60.0, MARGIN + 18.0 + 16.0 * i as f64);
        let _ = writeln!(
            svg,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" \
             stroke-dasharray=\"{dashes}\"/>\
             <text x=\"{right}\" y=\"{top}\" fill=\"{colour}\">{name}</text>"
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">steps</text>\
         <text x=\"8\" y=\"20\">{label}</text>\n</svg>",
        SIZE[0] / 2.0,
        SIZE[1] - 10.0
    );
    svg
}

/// A moving average: single batches differ.
fn smooth(losses: &[f64]) -> Vec<f64> {
    let mut mean = losses.first().copied().unwrap_or(0.0);
    let mut each = |loss: &f64| {
        mean = 0.9 * mean + 0.1 * loss;
        mean
    };
    losses.iter().map(&mut each).collect()
}
