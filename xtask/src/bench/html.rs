//! The report as one HTML page that needs nothing else: no scripts, no fonts, no images from elsewhere.

pub mod heat;
pub mod svg;

use std::fmt::Write;

use self::svg::{Line, Plot, Point, Scale};
use super::report::{Adapter, AdapterReport, Host, Outcome, Report, Row, Summary};
use super::series::{self, Crossover, Series};
use super::table;
use super::{choice, kernels};

const STYLE: &str = include_str!("html/style.css");

/// Text that a browser shows as it is.
pub fn escape(text: &str) -> String {
    let signs = text.chars().map(|sign| match sign {
        '&' => "&amp;".into(),
        '<' => "&lt;".into(),
        '>' => "&gt;".into(),
        '"' => "&quot;".into(),
        other => other.to_string(),
    });
    signs.collect()
}

/// A whole page.
pub fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>{0}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n<h1>{0}</h1>\n{body}</body>\n</html>\n",
        escape(title)
    )
}

/// The page of one run.
pub fn report(report: &Report) -> String {
    let mut body = String::new();
    let _ = writeln!(
        body,
        "<p class=\"faint\">{}, {:.0} s, <code>{}</code></p>",
        escape(&report.date),
        report.seconds,
        escape(&report.command)
    );
    body.push_str(&verdict(report));
    body.push_str(&list(report.warnings.iter().map(|text| ("warning", text.clone()))));
    for adapter in &report.adapters {
        body.push_str(&section(adapter));
    }
    body.push_str("<h2>Environment</h2>\n");
    body.push_str(&environment(report));
    page("Attention mechanisms: error and speed", &body)
}

/// How many rows are right, and which are not.
fn verdict(report: &Report) -> String {
    let outcomes = || {
        let devices = report.adapters.iter().filter(|adapter| adapter.adapter.index.is_some());
        devices.flat_map(AdapterReport::outcomes)
    };
    let right = outcomes().filter(|outcome| **outcome == Outcome::Right).count();
    let bad = outcomes().filter(|outcome| outcome.is_bad()).count();
    let text = format!(
        "{right} results right, {bad} wrong or failed, {} not taken or too large. Each was compared with its f64 \
         reference before it was timed.",
        outcomes().count() - right - bad
    );
    let class = if bad > 0 { " class=\"bad\"" } else { "" };
    format!("<p{class}>{text}</p>\n")
}

fn section(report: &AdapterReport) -> String {
    let mut text = format!("<h2>{}</h2>\n", escape(&report.adapter.title()));
    for line in table::head(report) {
        let _ = writeln!(text, "<p class=\"faint\">{}</p>", escape(&line));
    }
    if let Some(error) = &report.error {
        let _ = writeln!(text, "<p class=\"bad\">Device failed: {}</p>", escape(error));
    }
    text.push_str(&list(report.warnings.iter().map(|text| ("warning", text.clone()))));
    text.push_str(&list(table::reasons(&report.rows)));
    text.push_str(&list(kernels::reasons(&report.kernels)));
    if report.adapter.index.is_some() {
        text.push_str(&plots(report));
    }
    let (header, rows) = table::columns(&report.rows);
    let results = html_table(&header, &rows, table::WORDS);
    match report.adapter.index {
        Some(_) => text.push_str(&results),
        // The reference is long and rarely wanted.
        None => {
            let _ = writeln!(
                text,
                "<details><summary>Times of the reference</summary>{results}</details>"
            );
        }
    }
    text.push_str(&chosen(&report.rows));
    if !report.kernels.is_empty() {
        let (header, rows) = kernels::columns(&report.kernels);
        text.push_str("<h3>General kernels</h3>\n");
        text.push_str(&html_table(&header, &rows, kernels::WORDS));
    }
    let lines =
        table::decode_lines(&report.rows).into_iter().chain(table::stream_lines(&report.rows));
    text.push_str(&list(lines.map(|line| ("", line))));
    text
}

/// What mechanisms chose, on the whole and by head.
fn chosen(rows: &[Row]) -> String {
    let Some((header, cells)) = choice::columns(rows) else { return String::new() };
    let mut text = format!(
        "<h3>What mechanisms chose</h3>\n{}<p class=\"faint\">{}</p>\n",
        html_table(&header, &cells, table::WORDS),
        escape(choice::NOTE)
    );
    if let Some((header, cells)) = choice::heads(rows) {
        let heads = html_table(&header, &cells, choice::WORDS);
        let _ =
            writeln!(text, "<details><summary>The same of every head</summary>{heads}</details>");
    }
    text
}

fn plots(report: &AdapterReport) -> String {
    let all = series::series(&report.rows);
    if all.is_empty() {
        return String::new();
    }
    let at =
        |row: &Row, y: Option<f64>| Some(Point { x: row.shape[4] as f64, y: y?, spread: None });
    let time = series::lines(&all, |row| {
        let Summary { median, q20, q80, .. } = row.timing.as_ref()?.seconds;
        let point = at(row, Some(1e3 * median))?;
        Some(Point { spread: Some((1e3 * q20, 1e3 * q80)), ..point })
    });
    let error = series::lines(&all, |row| at(row, row.gate.as_ref()?.max_abs()?));
    let memory = series::lines(&all, |row| {
        at(row, row.memory.as_ref().map(|memory| memory.peak_bytes as f64 / f64::from(1 << 20)))
    });
    let share =
        series::lines(&all, |row| at(row, row.share_of_yardstick.map(|share| 100.0 * share)));
    let mut speed = time.clone();
    speed.iter_mut().zip(&all).for_each(|(line, series)| {
        let base = series::base(&all, series);
        let ups = base.map_or(Vec::new(), |base| series::speed_ups(series, base));
        line.points = ups.into_iter().map(|(x, y)| Point { x, y, spread: None }).collect();
    });
    speed.retain(|line| !line.points.is_empty());

    let mut text = String::from("<div>");
    text.push_str(&legend(&time));
    text.push_str("</div>\n<div class=\"plots\">\n");
    let figure = |title: &str, y_label: &str, scale, level, lines: &[Line], note: String| {
        let drawing = Plot { x_label: "keys", y_label, scale, level, lines }.svg()?;
        Some(format!("<figure><h3>{title}</h3>\n{drawing}{note}</figure>\n"))
    };
    let none = String::new;
    let times =
        "<p class=\"faint\">Median; bars from the 20 % to the 80 % quantile.</p>".to_string();
    let figures = [
        figure("Time of one run", "ms", Scale::Log, None, &time, times),
        figure(
            "Speed-up over dense attention",
            "times",
            Scale::Log,
            Some(1.0),
            &speed,
            crossovers(&all),
        ),
        figure("Largest error", "absolute", Scale::Log, None, &error, none()),
        figure("Memory at the worst moment", "MiB", Scale::Log, None, &memory, none()),
        figure("Share of the yardstick", "%", Scale::Linear, None, &share, yardstick(report)),
    ];
    figures.into_iter().flatten().for_each(|figure| text.push_str(&figure));
    text.push_str("</div>\n");
    text
}

/// What shares refer to.
fn yardstick(report: &AdapterReport) -> String {
    let Some(probe) = &report.fma_yardstick else { return String::new() };
    let peak = report.fma_peak.as_ref();
    let peak =
        peak.map_or(String::new(), |peak| format!("; their fastest form reaches {:.0}", peak.mean));
    format!(
        "<p class=\"faint\">Of plain multiply-adds in registers: {:.0} GFLOP/s in this run{peak}.</p>\n",
        probe.mean
    )
}

/// From where on each series is faster than dense attention.
fn crossovers(all: &[Series<'_>]) -> String {
    let mut text = String::from("<ul class=\"plain faint\">\n");
    for of in all {
        let Some(base) = series::base(all, of) else { continue };
        let ups = series::speed_ups(of, base);
        let when = match series::crossover(&ups) {
            _ if ups.is_empty() => continue,
            Crossover::Always => "faster at all lengths".into(),
            Crossover::Never => "not faster at the greatest length".into(),
            Crossover::At(keys) => format!("faster from about {keys:.0} keys on"),
        };
        let _ =
            writeln!(text, "<li>{}: {when} than {}</li>", escape(&of.name()), escape(&base.name()));
    }
    text.push_str("</ul>\n");
    text
}

/// Samples and names of lines.
pub fn legend(lines: &[Line]) -> String {
    let items = lines
        .iter()
        .map(|line| format!("<li>{}<span>{}</span></li>\n", svg::sample(line), escape(&line.name)));
    format!("<ul class=\"legend\">\n{}</ul>\n", items.collect::<String>())
}

/// A table that scrolls on narrow screens; the first `words` columns hold text.
pub fn html_table(header: &[String], rows: &[Vec<String>], words: usize) -> String {
    let line = |cells: &[String], tag: &str| {
        let cell = |(at, text): (usize, &String)| {
            let class = if at < words { " class=\"word\"" } else { "" };
            format!("<{tag}{class}>{}</{tag}>", escape(text))
        };
        let cells: String = cells.iter().enumerate().map(cell).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let body: String = rows.iter().map(|row| line(row, "td")).collect();
    format!(
        "<div class=\"scroll\"><table>\n<thead>\n{}</thead>\n<tbody>\n{body}</tbody>\n</table></div>\n",
        line(header, "th")
    )
}

/// Names and values.
fn facts(all: impl IntoIterator<Item = (String, String)>) -> String {
    let row = |(name, value): (String, String)| {
        format!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n", escape(&name), escape(&value))
    };
    let rows: String = all.into_iter().map(row).collect();
    format!("<div class=\"scroll\"><table class=\"facts\">\n{rows}</table></div>\n")
}

fn list<'a>(items: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let items = items.into_iter().map(|(kind, text)| match kind {
        "" => format!("<li>{}</li>\n", escape(&text)),
        _ => format!("<li><strong>{}</strong>: {}</li>\n", escape(kind), escape(&text)),
    });
    let items: String = items.collect();
    if items.is_empty() { items } else { format!("<ul class=\"plain\">\n{items}</ul>\n") }
}

fn environment(report: &Report) -> String {
    let capture = ("captured inputs".to_string(), report.capture.file.clone());
    let adapters = report.adapters.iter().map(|report| &report.adapter);
    host(&report.host, [capture]) + &adapters.map(details).collect::<String>()
}

/// The machine and the source, and `more` about the run.
pub fn host(host: &Host, more: impl IntoIterator<Item = (String, String)>) -> String {
    let unknown = || "unknown".to_string();
    let mut all = vec![
        ("system".to_string(), format!("{}, {}", host.os, host.arch)),
        ("processor".into(), host.cpu.clone().unwrap_or_else(unknown)),
        ("cores".into(), host.cores.to_string()),
        ("compiler".into(), host.rustc.clone().unwrap_or_else(unknown)),
        ("commit".into(), host.commit.clone().unwrap_or_else(unknown)),
    ];
    all.extend(more);
    all.extend(host.environment.iter().map(|(name, value)| (name.clone(), value.clone())));
    facts(all)
}

/// Limits and features of a device that was opened.
pub fn details(adapter: &Adapter) -> String {
    let Some(capabilities) = &adapter.capabilities else { return String::new() };
    let subgroups =
        capabilities.subgroups.map_or("none".into(), |[a, b]| format!("{a} to {b} lanes"));
    let mut all = vec![
        ("subgroups".to_string(), subgroups),
        ("16-bit arithmetic".into(), capabilities.f16.to_string()),
        ("timestamps".into(), capabilities.timestamps.to_string()),
        ("bytes of immediates".into(), capabilities.immediate_bytes.to_string()),
    ];
    all.extend(adapter.limits.iter().map(|(name, value)| (name.clone(), value.to_string())));
    all.push(("features".into(), adapter.features.join(", ")));
    format!(
        "<details><summary>Limits and features of {}</summary>{}</details>\n",
        escape(&adapter.name),
        facts(all)
    )
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::sample;
    use super::*;

    #[test]
    fn the_page_is_whole_and_needs_nothing_else() {
        let mut data = sample();
        data.adapters[0].adapter.name = "<b> & co".into();
        let text = report(&data);
        assert!(text.starts_with("<!doctype html>") && text.ends_with("</html>\n"));
        assert!(text.contains("&lt;b&gt; &amp; co") && !text.contains("<b>"));
        assert!(text.contains("2 results right, 2 wrong or failed"));
        assert!(text.contains("<svg viewBox") && !text.contains("NaN"));
        for outside in ["http:", "https:", "src=", "href=", "<script", "@import", "url("] {
            assert!(!text.contains(outside), "{outside}");
        }
        for tag in ["table", "figure", "details", "ul", "svg", "div", "g"] {
            let opened = text.matches(&format!("<{tag}>")).count()
                + text.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, text.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn reports_without_rows_are_pages_too() {
        let mut data = sample();
        data.adapters[0].rows.clear();
        assert!(!report(&data).contains("<figure"));
        data.adapters.clear();
        assert!(report(&data).contains("Environment"));
    }
}
