//! Results of `model needle` as one HTML page.

use std::fmt::Write;

use super::report::{Asked, Cell, PolicyResult, Report, percent};
use crate::bench::html::heat::{Heat, Square, legend};
use crate::bench::html::{details, escape, host, html_table, page as whole_page};

/// A page that needs nothing else.
pub fn page(report: &Report) -> String {
    let Report { origin, settings, policies } = report;
    let mut body = format!(
        "<p class=\"faint\">{}, <code>{}</code></p>\n<p>{} ({}, weights in {}): {}.</p>\n",
        escape(&origin.date),
        escape(&origin.command),
        escape(&origin.model.name),
        escape(&origin.model.family),
        escape(&origin.model.weights),
        escape(&report.what()),
    );
    let _ = writeln!(
        body,
        "<p class=\"faint\">A number is the share of the hidden facts' words that are in the answers, in percent. A \
         depth of 0 % is the beginning of the text.</p>\n{}\n<div class=\"plots\">",
        legend("recall")
    );
    for policy in policies {
        let _ = writeln!(
            body,
            "<figure><h3>{}</h3>\n<p class=\"faint\">{}</p>\n{}</figure>",
            escape(&policy.label),
            escape(&policy.summary()),
            heat(policy, &settings.lengths, &settings.depths)
        );
    }
    body.push_str("</div>\n<h2>Answers</h2>\n");
    for policy in policies {
        let _ = writeln!(
            body,
            "<details><summary>{}</summary>{}</details>",
            escape(&policy.label),
            answers(policy)
        );
    }
    body.push_str("<h2>Environment</h2>\n");
    let more = [
        ("device", origin.adapter.title()),
        ("text", format!("{}, {} tokens", origin.text.file, origin.text.tokens)),
        ("keys and values", origin.model.cache.clone()),
        ("chat template", if settings.chat_template { "used".into() } else { "none".to_string() }),
        ("tokens of an answer", format!("{} at most", settings.answer_tokens)),
    ];
    body.push_str(&host(&origin.host, more.map(|(name, value)| (name.to_string(), value))));
    body.push_str(&details(&origin.adapter));
    whole_page("Needles in a haystack", &body)
}

fn heat(policy: &PolicyResult, lengths: &[usize], depths: &[u32]) -> String {
    let square = |cell: &Cell| {
        let Cell { length, depth, recall, exact, asked } = cell;
        let exact = (exact * asked.len() as f64).round();
        Square {
            share: *recall,
            title: format!(
                "{length} tokens, depth {depth} %: recall {}, {exact} of {} word for word",
                percent(*recall),
                asked.len()
            ),
        }
    };
    let rows = depths.iter().map(|depth| {
        let squares = lengths.iter().map(|length| policy.cell(*length, *depth).map(square));
        (format!("{depth} %"), squares.collect())
    });
    let heat = Heat {
        title: format!("Recall by depth and length, {}", policy.label),
        x_label: "tokens of the prompt",
        y_label: "depth",
        columns: lengths.iter().map(usize::to_string).collect(),
        rows: rows.collect(),
    };
    heat.svg()
}

fn answers(policy: &PolicyResult) -> String {
    let header = ["length", "depth", "recall", "fact", "answer"].map(String::from);
    let row = |cell: &Cell, asked: &Asked| {
        let Asked { needle, answer, recall, .. } = asked;
        let (length, depth) = (cell.length.to_string(), format!("{} %", cell.depth));
        vec![length, depth, percent(*recall), needle.statement.clone(), answer.clone()]
    };
    let rows: Vec<_> = policy
        .cells
        .iter()
        .flat_map(|cell| cell.asked.iter().map(move |asked| row(cell, asked)))
        .collect();
    // Answers are long: they wrap.
    html_table(&header, &rows, 0).replacen("<table>", "<table class=\"answers\">", 1)
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::sample;
    use super::*;

    #[test]
    fn the_page_is_whole_and_needs_nothing_else() {
        let text = page(&sample());
        assert!(text.starts_with("<!doctype html>") && text.ends_with("</html>\n"));
        assert!(text.contains("a &lt;b&gt; &amp; c") && !text.contains("<b>"));
        assert_eq!(text.matches("<figure>").count(), 2);
        assert_eq!(text.matches("role=\"img\"").count(), 3);
        for outside in ["http:", "https:", "src=", "href=", "<script", "@import", "url(", "NaN"] {
            assert!(!text.contains(outside), "{outside}");
        }
        for tag in ["table", "figure", "details", "svg", "div", "g", "p", "title", "text"] {
            let opened = text.matches(&format!("<{tag}>")).count()
                + text.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, text.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }
}
