//! Paragraphs of Wikipedia's articles, out of their mark-up.

/// An article's paragraphs, with their markup gone and their headings left out.
pub struct Article {
    pub paragraphs: Vec<String>,
}

/// Characters of mark-up that an article has more of.
const SHORTEST: usize = 6000;
/// Characters that a paragraph has more of.
const PARAGRAPH: usize = 60;
/// What lines begin with that are no paragraphs.
const LISTS: &str = "*#:;|!{}<=&";
const DROPPED: [&str; 6] =
    ["References", "External links", "See also", "Notes", "Further reading", "Bibliography"];

/// The longer articles of an export of MediaWiki.
pub fn articles(xml: &str) -> Vec<Article> {
    let pages = xml.split("<page>").skip(1);
    pages.filter_map(article).filter(|article| !article.paragraphs.is_empty()).collect()
}

fn article(page: &str) -> Option<Article> {
    let title = between(page, "<title>", "</title>")?;
    let text = between(page, "<text", "</text>")?;
    let source = unescaped(&text[text.find('>')? + 1..]);
    if source.chars().count() <= SHORTEST || title.contains("disambiguation") {
        return None;
    }
    let mut is_dropped = false;
    let mut paragraphs = Vec::new();
    for line in plain(&source).lines().map(str::trim) {
        if let Some(heading) = heading(line) {
            is_dropped = DROPPED.iter().any(|name| heading.eq_ignore_ascii_case(name));
        } else if !is_dropped
            && line.chars().count() > PARAGRAPH
            && !line.starts_with(|first| LISTS.contains(first))
        {
            paragraphs.push(line.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    Some(Article { paragraphs })
}

/// The name of a section.
fn heading(line: &str) -> Option<&str> {
    let inside = line.strip_prefix("==")?.strip_suffix("==")?;
    Some(inside.trim_matches('=').trim())
}

fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    let start = text.find(open)? + open.len();
    let end = start + text[start..].find(close)?;
    Some(&text[start..end])
}

fn unescaped(text: &str) -> String {
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
    text.replace("&amp;", "&").replace("&nbsp;", " ")
}

/// Text without mark-up.
fn plain(source: &str) -> String {
    let mut text = without(source, "<!--", "-->");
    for tag in ["ref", "gallery", "math"] {
        text = without_element(&text, tag);
    }
    text = without_nested(&text, "{{", "}}");
    text = without_nested(&text, "{|", "|}");
    text = external(&links(&text));
    text = without_quotes(&text);
    without_tags(&text)
}

/// Without everything from `open` to the next `close`.
fn without(text: &str, open: &str, close: &str) -> String {
    let (mut kept, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once(open) {
        kept.push_str(before);
        rest = after.split_once(close).map_or("", |(_, after)| after);
    }
    kept + rest
}

/// Without `<tag ..>..</tag>` and `<tag ../>`.
fn without_element(text: &str, tag: &str) -> String {
    let (open, close) = (format!("<{tag}"), format!("</{tag}>"));
    let (mut kept, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once(&open) {
        kept.push_str(before);
        // Another tag may begin with the same letters: `<references/>`.
        if !after.starts_with(['>', '/', ' ', '\n']) {
            kept.push_str(&open);
            rest = after;
            continue;
        }
        let (attributes, content) = after.split_once('>').unwrap_or((after, ""));
        rest = match attributes.ends_with('/') {
            true => content,
            false => content.split_once(&close).map_or("", |(_, after)| after),
        };
    }
    kept + rest
}

/// Without everything between pairs of `open` and `close`, one in another included.
fn without_nested(text: &str, open: &str, close: &str) -> String {
    folded(text, open, close, |_| String::new())
}

/// Each pair of `open` and `close` with what is between, from the inside out, as `fold` makes it.
fn folded(text: &str, open: &str, close: &str, fold: impl Fn(&str) -> String) -> String {
    let (mut kept, mut starts, mut rest) = (String::new(), Vec::new(), text);
    while let Some(first) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix(open) {
            starts.push(kept.len());
            kept.push_str(open);
            rest = after;
        } else if let (Some(after), Some(start)) = (rest.strip_prefix(close), starts.last()) {
            let made = fold(&kept[start + open.len()..]);
            kept.truncate(*start);
            kept.push_str(&made);
            starts.pop();
            rest = after;
        } else {
            kept.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    kept
}

/// `[[a|b]]` as `b`, `[[a]]` as `a`; files, images and categories as nothing.
fn links(text: &str) -> String {
    folded(text, "[[", "]]", |inside| {
        let kind = inside.split(':').next().unwrap_or_default().trim();
        let is_shown = !["file", "image", "category"].iter().any(|k| kind.eq_ignore_ascii_case(k));
        let shown = inside.rsplit('|').next().filter(|_| is_shown);
        shown.unwrap_or_default().into()
    })
}

/// `[url text]` as `text`.
fn external(text: &str) -> String {
    folded(text, "[", "]", |inside| match inside.split_once("://") {
        Some(_) => inside.split_once(' ').map_or("", |(_, shown)| shown).into(),
        None => format!("[{inside}]"),
    })
}

/// Two quotes and more are italics and bold.
fn without_quotes(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("''") {
        kept.push_str(&rest[..at]);
        rest = rest[at..].trim_start_matches('\'');
    }
    kept + rest
}

fn without_tags(text: &str) -> String {
    let (mut kept, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('<') {
        kept.push_str(before);
        let is_tag = after.starts_with(|next: char| next.is_ascii_alphabetic() || next == '/');
        rest = match after.split_once('>').filter(|_| is_tag) {
            Some((_, after)) => after,
            None => {
                kept.push('<');
                after
            }
        };
    }
    kept + rest
}
