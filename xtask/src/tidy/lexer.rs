//! Just enough of Rust's grammar to tell code from comments and text, and library code from tests.

/// One line of a Rust file.
pub struct Line {
    pub number: usize,
    /// The line without comments and without the contents of strings and characters.
    pub code: String,
    /// Inside an item under `#[cfg(test)]`, or inside a module named `tests` or `testing`.
    pub test: bool,
}

/// Splits a file into lines.
pub fn lines(text: &str) -> Vec<Line> {
    let code = code_only(text);
    let test = test_lines(&code);
    let numbered = code.lines().zip(test).enumerate();
    let line =
        |(i, (code, test)): (usize, (&str, bool))| Line { number: i + 1, code: code.into(), test };
    numbered.map(line).collect()
}

/// Whether `word` stands in `code`, not as a part of a longer name.
pub fn has_word(code: &str, word: &str) -> bool {
    let name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        let open_end = word.ends_with(name) && after.is_some_and(name);
        !before.is_some_and(name) && !open_end
    })
}

/// The text with comments, strings and characters emptied; line breaks stay.
fn code_only(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut i = 0;
    while i < chars.len() {
        let end = match chars[i] {
            '/' if chars.get(i + 1) == Some(&'/') => line_end(&chars, i),
            '/' if chars.get(i + 1) == Some(&'*') => comment_end(&chars, i),
            '"' => string_end(&chars, i),
            'r' if starts_raw(&chars, i) => raw_end(&chars, i),
            '\'' => char_end(&chars, i),
            _ => i,
        };
        if end == i {
            code.push(chars[i]);
            i += 1;
            continue;
        }
        // A string stays visible as something: `["x"]` must not turn into `[]`.
        if chars[i] != '/' {
            code.push('"');
        }
        code.extend(chars[i..end].iter().filter(|c| **c == '\n'));
        if chars[i] != '/' {
            code.push('"');
        }
        i = end;
    }
    code
}

fn line_end(chars: &[char], from: usize) -> usize {
    let rest = chars[from..].iter().position(|c| *c == '\n');
    rest.map_or(chars.len(), |n| from + n)
}

/// Block comments nest.
fn comment_end(chars: &[char], from: usize) -> usize {
    let mut depth = 0;
    let mut i = from;
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                i += 1;
                continue;
            }
        }
        i += 2;
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

fn string_end(chars: &[char], from: usize) -> usize {
    let mut i = from + 1;
    while i < chars.len() {
        match chars[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    chars.len()
}

/// `r"` or `r#"`, not the end of a name such as `for`, and not a raw name such as `r#type`.
fn starts_raw(chars: &[char], at: usize) -> bool {
    let before = at.checked_sub(1).map(|i| chars[i]);
    let prefix = before == Some('b') || before == Some('c');
    let in_name = before.is_some_and(|c| c.is_alphanumeric() || c == '_') && !prefix;
    let after = chars[at + 1..].iter().find(|c| **c != '#');
    !in_name && after == Some(&'"')
}

fn raw_end(chars: &[char], from: usize) -> usize {
    let hashes = chars[from + 1..].iter().take_while(|c| **c == '#').count();
    let mut i = from + hashes + 2;
    while i < chars.len() {
        let closing = chars[i] == '"' && chars[i + 1..].iter().take(hashes).all(|c| *c == '#');
        if closing && chars.len() > i + hashes {
            return i + 1 + hashes;
        }
        i += 1;
    }
    chars.len()
}

/// A character literal ends at its quote; a lifetime is code and ends where it starts.
fn char_end(chars: &[char], from: usize) -> usize {
    match chars.get(from + 1) {
        Some('\\') => {
            let rest = chars.iter().skip(from + 3).position(|c| *c == '\'');
            rest.map_or(chars.len(), |n| from + 4 + n)
        }
        Some(_) if chars.get(from + 2) == Some(&'\'') => from + 3,
        _ => from,
    }
}

/// For each line whether it belongs to test code.
fn test_lines(code: &str) -> Vec<bool> {
    const MARKS: [&str; 4] = ["#[cfg(test)]", "#[cfg(any(test,", "mod tests", "mod testing"];
    let mut test = vec![false; code.lines().count()];
    let starts: Vec<usize> = code
        .split_inclusive('\n')
        .scan(0, |at, line| {
            let start = *at;
            *at += line.len();
            Some(start)
        })
        .collect();
    let line_of = |at: usize| starts.partition_point(|start| *start <= at) - 1;
    for mark in MARKS {
        for (at, _) in code.match_indices(mark) {
            if !has_word(&code[at..], mark) {
                continue;
            }
            let last = item_end(code, at + mark.len());
            let last = line_of(last.min(code.len().saturating_sub(1)));
            test[line_of(at)..=last].fill(true);
        }
    }
    test
}

/// Where the item after `from` ends: at the brace that closes its first block, or at a semicolon before that.
/// `from` may lie inside an attribute's parentheses, whose closing ones then count for nothing.
fn item_end(code: &str, from: usize) -> usize {
    let (mut braces, mut others) = (0usize, 0usize);
    for (at, c) in code[from..].char_indices() {
        match c {
            '(' | '[' => others += 1,
            ')' | ']' => others = others.saturating_sub(1),
            '{' => braces += 1,
            '}' if braces <= 1 => return from + at,
            '}' => braces -= 1,
            ';' if braces == 0 && others == 0 => return from + at,
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        code_only(text)
    }

    #[test]
    fn comments_and_texts_vanish() {
        assert_eq!(code("a // b\nc"), "a \nc");
        assert_eq!(code("a /* b /* c */ d */ e"), "a  e");
        assert_eq!(code("a /* b\nc */ d"), "a \n d");
        assert_eq!(code(r#"f("a // \" b") // c"#), r#"f("") "#);
        assert_eq!(code("f(r#\"a \" b\"#, br\"c\\\")"), "f(\"\", b\"\")");
        assert_eq!(code("\"open"), "\"\"");
    }

    #[test]
    fn characters_and_lifetimes() {
        assert_eq!(code(r"('a', '\'', '\u{41}', '\\')"), r#"("", "", "", "")"#);
        assert_eq!(code("fn f<'a>(x: &'a str, y: &'static str)").matches('\'').count(), 3);
        assert_eq!(code("'\"' + x // y"), "\"\" + x ");
        assert_eq!(code("let r#type = for_r;"), "let r#type = for_r;");
    }

    #[test]
    fn words() {
        assert!(has_word("x = panic!(", "panic!"));
        assert!(!has_word("dont_panic!(", "panic!"));
        assert!(has_word("unsafe {", "unsafe"));
        assert!(!has_word("unsafe_code", "unsafe"));
    }

    #[test]
    fn test_items() {
        let text = "\
fn a() {}
#[cfg(test)]
fn b() {
    c();
}
fn d() {}
#[cfg(any(test, feature = \"testing\"))]
pub mod testing;
fn e() {}
#[cfg(test)]
const F: [u8; 2] = [1, 2];
fn g() {}
mod tests {
    mod inner {}
    fn h() {}
}
fn i() { mod_testing(); }
";
        let numbers: Vec<_> = lines(text).iter().filter(|l| l.test).map(|l| l.number).collect();
        assert_eq!(numbers, [2, 3, 4, 5, 7, 8, 10, 11, 13, 14, 15, 16]);
    }

    #[test]
    fn files_that_end_in_the_middle() {
        for text in ["", "#[cfg(test)]", "mod tests {", "'", "r#\"", "/*", "\"\\", "'\\"] {
            lines(text);
        }
    }
}
