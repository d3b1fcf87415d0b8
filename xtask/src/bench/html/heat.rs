//! A small writer of heat maps as inline SVG. Colours come from the page's style sheet: a square is the more opaque the
//! larger its share.

use std::fmt::Write;

use super::escape;

/// Extents in units that are about a pixel on a phone.
const WIDTH: f64 = 420.0;
const LEFT: f64 = 74.0;
const TOP: f64 = 6.0;
const ROW: f64 = 40.0;
/// Between squares.
const GAP: f64 = 3.0;
/// Below the squares: their labels and that of the axis.
const BELOW: f64 = 50.0;
/// Labels of columns are left out where they would be closer.
const LABEL: f64 = 46.0;

/// Shares from 0 to 1 by row and column.
pub struct Heat<'a> {
    pub title: String,
    pub x_label: &'a str,
    pub y_label: &'a str,
    pub columns: Vec<String>,
    /// With their names; where there is no number, none.
    pub rows: Vec<(String, Vec<Option<Square>>)>,
}

pub struct Square {
    /// From 0 to 1.
    pub share: f64,
    /// What a reader is told of it.
    pub title: String,
}

impl Heat<'_> {
    pub fn svg(&self) -> String {
        let bottom = TOP + ROW * self.rows.len() as f64;
        let width = (WIDTH - LEFT - 4.0) / self.columns.len().max(1) as f64;
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"{}\">\n",
            bottom + BELOW,
            escape(&self.title)
        );
        let numbers = if width < LABEL { " small" } else { "" };
        for (row, (name, squares)) in self.rows.iter().enumerate() {
            let y = TOP + ROW * row as f64;
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                y + ROW / 2.0 + 4.0,
                escape(name)
            );
            for (column, square) in squares.iter().enumerate() {
                let x = LEFT + width * column as f64;
                match square {
                    Some(square) => {
                        let _ = write!(svg, "<g><title>{}</title>", escape(&square.title));
                        rect(&mut svg, [x, y, width - GAP, ROW - GAP], square.share);
                        let _ = writeln!(
                            svg,
                            "<text class=\"axis{numbers}\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.0}</text></g>",
                            x + (width - GAP) / 2.0,
                            y + (ROW - GAP) / 2.0 + 5.0,
                            100.0 * square.share
                        );
                    }
                    None => {
                        rect(&mut svg, [x, y, width - GAP, ROW - GAP], 0.0);
                    }
                }
            }
        }
        let step = (LABEL / width).ceil().max(1.0) as usize;
        for (column, name) in self.columns.iter().enumerate().step_by(step) {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                LEFT + width * column as f64 + (width - GAP) / 2.0,
                bottom + 17.0,
                escape(name)
            );
        }
        let _ = writeln!(
            svg,
            "<text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n<text class=\"axis\" \
             transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n</svg>",
            (LEFT + WIDTH) / 2.0,
            bottom + 40.0,
            escape(self.x_label),
            (TOP + bottom) / 2.0,
            escape(self.y_label)
        );
        svg
    }
}

fn rect(svg: &mut String, [x, y, width, height]: [f64; 4], share: f64) {
    let opacity = share.clamp(0.0, 1.0);
    let _ = write!(
        svg,
        "<rect class=\"heat\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
         fill-opacity=\"{opacity:.2}\"/>"
    );
}

/// The scale of colours.
pub fn legend(what: &str) -> String {
    let steps = [0.0, 0.25, 0.5, 0.75, 1.0];
    let mut svg = format!(
        "<svg class=\"scale\" viewBox=\"0 0 260 46\" role=\"img\" aria-label=\"Colours from 0 to 100 percent of \
         {}\">\n",
        escape(what)
    );
    for (number, share) in steps.into_iter().enumerate() {
        let x = 52.0 * number as f64;
        rect(&mut svg, [x + 1.0, 1.0, 49.0, 20.0], share);
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"40\" text-anchor=\"middle\">{:.0} %</text>",
            x + 25.0,
            100.0 * share
        );
    }
    svg + "</svg>"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn svg(columns: usize) -> String {
        let square = |share| Some(Square { share, title: "a < b".into() });
        Heat {
            title: "t".into(),
            x_label: "x",
            y_label: "y",
            columns: (0..columns).map(|column| format!("c{column}")).collect(),
            rows: vec![("r".into(), (0..columns).map(|_| square(0.375)).chain([None]).collect())],
        }
        .svg()
    }

    #[test]
    fn squares_have_numbers_and_titles() {
        let text = svg(3);
        assert_eq!(text.matches("<title>a &lt; b</title>").count(), 3);
        assert_eq!(text.matches(">38</text>").count(), 3);
        assert_eq!(text.matches("<rect").count(), 4);
        assert!(text.contains("fill-opacity=\"0.38\"") && text.contains(">c2</text>"));
    }

    #[test]
    fn narrow_columns_have_fewer_labels() {
        let text = svg(20);
        assert!(text.contains(">c0<") && text.contains(">c3<") && !text.contains(">c1<"));
        assert!(!svg(0).contains("NaN") && !svg(0).contains("inf"));
    }

    #[test]
    fn the_scale_ends_at_all() {
        let text = legend("a & b");
        assert!(text.contains("a &amp; b") && text.contains(">100 %<"));
        assert_eq!(text.matches("<rect").count(), 5);
    }
}
