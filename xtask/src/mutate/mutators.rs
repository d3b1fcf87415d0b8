//! What is broken: each mutator makes some wrong lines of a right one.

use super::line::{Kind, Line, Token, arguments};

/// One way to break a line.
pub struct Mutator {
    pub name: &'static str,
    /// Which mistake it stands for.
    pub reason: &'static str,
    /// The wrong lines; an empty one deletes the line.
    pub apply: fn(&Line<'_>, &[Field]) -> Vec<String>,
}

/// A field of `Params`: name and type.
pub type Field = (String, String);

/// All of them, in the order of reports.
pub const MUTATORS: &[Mutator] = &[
    Mutator { name: "edge", reason: "a mask or bound is off at its edge", apply: edge },
    Mutator { name: "equality", reason: "the opposite case", apply: equality },
    Mutator { name: "logic", reason: "both and either are confused", apply: logic },
    Mutator { name: "off by one", reason: "a 1 is forgotten", apply: off_by_one },
    Mutator { name: "extremum", reason: "a clamp or maximum goes the wrong way", apply: extremum },
    Mutator { name: "sum", reason: "a term or offset has the wrong sign", apply: sum },
    Mutator { name: "product", reason: "a stride is added, a split is wrong", apply: product },
    Mutator { name: "select", reason: "the cases of a select are swapped", apply: select },
    Mutator {
        name: "constant",
        reason: "a start, shift, distance or sentinel is wrong",
        apply: constant,
    },
    Mutator {
        name: "bool",
        reason: "a test is done or left out where it should not be",
        apply: boolean,
    },
    Mutator { name: "turns", reason: "a loop ends early", apply: turns },
    Mutator { name: "barrier", reason: "lanes do not wait for each other", apply: barrier },
    Mutator { name: "condition", reason: "a guard is missing, or shuts all out", apply: condition },
    Mutator { name: "fma", reason: "what was summed so far is lost", apply: fma },
    Mutator { name: "first term", reason: "a reduction leaves out a term", apply: first_term },
    Mutator { name: "factor", reason: "a scale is dropped", apply: factor },
    Mutator { name: "statement", reason: "an assignment is forgotten", apply: statement },
    Mutator { name: "flag", reason: "the code of the other variant is compiled", apply: flag },
    Mutator {
        name: "field",
        reason: "a parameter or stride is taken for its neighbour",
        apply: field,
    },
];

/// The line with one range replaced.
fn replaced(line: &Line<'_>, from: usize, to: usize, with: &str) -> String {
    format!("{}{with}{}", &line.text[..from], &line.text[to..])
}

fn text<'a>(line: &Line<'a>, at: usize) -> &'a str {
    line.tokens.get(at).map_or("", |token| token.text)
}

/// Replaces tokens, one at a time.
fn each(line: &Line<'_>, with: impl Fn(usize, &Token<'_>) -> Option<String>) -> Vec<String> {
    let tokens = line.tokens.iter().enumerate();
    let change = |(at, token): (usize, &Token<'_>)| {
        Some(replaced(line, token.from, token.to, &with(at, token)?))
    };
    tokens.filter_map(change).collect()
}

/// Replaces signs and names by a table, read both ways.
fn swap(line: &Line<'_>, pairs: &[(&str, &str)]) -> Vec<String> {
    each(line, |_, token| {
        pairs.iter().find_map(|&(a, b)| match token.text {
            text if text == a => Some(b.to_string()),
            text if text == b => Some(a.to_string()),
            _ => None,
        })
    })
}

fn edge(line: &Line<'_>, _: &[Field]) -> Vec<String> {
    if line.unrolled {
        return Vec::new();
    }
    swap(line, &[("<", "<="), (">", ">=")])
}

fn equality(line: &Line<'_>, _: &[Field]) -> Vec<String> {
    swap(line, &[("==", "!=")])
}

fn logic(line: &Line<'_>, _: &[Field]) -> Vec<String> {
    swap(line, &[("&&", "||")])
}

fn extremum(line: &Line<'_>, _: &[Field]) -> Vec<String> {
    swap(line, &[("min", "max")])
}

fn boolean(line: &Line<'_>, _: &[Field]) -> Vec<String> {
    swap(line, &[("true", "false")])
}

fn off_by_one(line: &Line<'_>, _: &[Field]) -> Vec<String> {
    let tokens = line.tokens.windows(2);
    let one = tokens
        .filter(|pair| ["+", "-"].contains(&pair[0].text) && ["1", "1u"].contains(&pair[1].text));
    one.map(|pair| {
        let from = line.text[..pair[0].from].trim_end().len();
        replaced(line, from, pair[1].to, "")
    })
    .collect()
}

/// Whether the sign at this place stands between two operands.
fn binary(line: &Line<'_>, at: usize) -> bool {
    at.checked_sub(1).is_some_and(|before| {
        let before = &line.tokens[before];
        before.kind != Kind::Sign && before.text != "return" || [")", "]"].contains(&before.text)
    }) || at == 0
}

fn sum(line: &Line<'_>, _: &[Field]) -> Vec<String> {
    each(line, |at, token| {
        let other = match token.text {
            "+" if binary(line, at) => "-",
            "-" if binary(line, at) => "+",
            "+=" => "-=",
            "-=" => "+=",
            _ => return None,
        };
        Some(other.into())
    })
}

fn product(line: &Line<'_>, _: &[Field]) -> Vec<String> {
    each(line, |at, token| {
        let other = match token.text {
            "*" if binary(line, at) => "+",
            "/" => "*",
            "%" => "/",
            "*=" => "+=",
            _ => return None,
        };
        Some(other.into())
    })
}

/// The arguments of every call of `name`: the place of the name, of the end, and the arguments' texts.
fn calls<'a>(line: &Line<'a>, name: &str) -> Vec<(usize, usize, Vec<&'a str>)> {
    let mut found = Vec::new();
    for (at, token) in line.tokens.iter().enumerate() {
        if token.text == name
            && text(line, at + 1) == "("
            && let Some((ranges, close)) = arguments(&line.tokens, at + 1)
        {
            let texts = ranges.iter().map(|&(from, to)| line.text[from..to].trim()).collect();
            found.push((token.from, line.tokens[close].to, texts));
        }
    }
    found
}

fn select(line: &Line<'_>, _: &[Field]) -> Vec<String> {
    let swapped = |(from, to, args): (usize, usize, Vec<&str>)| match args[..] {
        [a, b, c] => Some(replaced(line, from, to, &format!("select({b}, {a}, {c})"))),
        _ => None,
    };
    calls(line, "select").into_iter().filter_map(swapped).collect()
}

fn fma(line: &Line<'_>, _: &[Field]) -> Vec<String> {
    let product = |(from, to, args): (usize, usize, Vec<&str>)| match args[..] {
        [a, b, _] => Some(replaced(line, from, to, &format!("({a} * {b})"))),
        _ => None,
    };
    calls(line, "fma").into_iter().filter_map(product).collect()
}

/// Integers are one more, masks of bits are shifted, 0.0 is 1.0, other floats are doubled.
fn constant(line: &Line<'_>, _: &[Field]) -> Vec<String> {
    if line.unrolled {
        return Vec::new();
    }
    each(line, |_, token| if token.kind == Kind::Number { other_number(token.text) } else { None })
}

fn other_number(number: &str) -> Option<String> {
    let (digits, suffix) = match number.strip_suffix('u') {
        Some(digits) => (digits, "u"),
        None => (number, ""),
    };
    if let Some(hex) = digits.strip_prefix("0x") {
        let value = u32::from_str_radix(hex, 16).ok()?;
        return Some(format!("0x{:x}{suffix}", value >> 1));
    }
    if let Ok(value) = digits.parse::<u32>() {
        return Some(format!("{}{suffix}", value.checked_add(1)?));
    }
    let value: f64 = digits.parse().ok()?;
    let other = if value == 0.0 { 1.0 } else { 2.0 * value };
    Some(if other > 1e38 { "1e38".into() } else { format!("{other:?}") })
}

/// `for (..; i < END; ..)` ends one turn early; a loop that the loader unrolls has one turn.
fn turns(line: &Line<'_>, _: &[Field]) -> Vec<String> {
    if text(line, 0) != "for" {
        return Vec::new();
    }
    let semicolon = |after: usize| {
        line.tokens.iter().skip(after).position(|t| t.text == ";").map(|at| at + after)
    };
    let Some(first) = semicolon(0) else { return Vec::new() };
    let Some(second) = semicolon(first + 1) else { return Vec::new() };
    let condition = &line.tokens[first + 1..second];
    let [variable, less, .., last] = condition else { return Vec::new() };
    if less.text != "<" {
        return Vec::new();
    }
    let with = if line.unrolled {
        format!("{} < 1u", variable.text)
    } else {
        let end = &line.text[less.to..last.to];
        format!("{} + 1u <{end}", variable.text)
    };
    vec![replaced(line, variable.from, last.to, &with)]
}

fn barrier(line: &Line<'_>, _: &[Field]) -> Vec<String> {
    let is = line.text.trim() == "workgroupBarrier();";
    if is { vec![String::new()] } else { Vec::new() }
}

fn condition(line: &Line<'_>, _: &[Field]) -> Vec<String> {
    let (Some(first), Some(last)) = (line.tokens.first(), line.tokens.last()) else {
        return Vec::new();
    };
    if first.text != "if" || last.text != "{" {
        return Vec::new();
    }
    ["true", "false"].map(|value| replaced(line, first.to, last.from, &format!(" {value} "))).into()
}

/// `(a.x + a.y)` without `a.x`.
fn first_term(line: &Line<'_>, _: &[Field]) -> Vec<String> {
    let texts: Vec<_> = line.tokens.iter().map(|token| token.text).collect();
    let mut found = Vec::new();
    for at in 0..texts.len() {
        if let [open, a, ".", _, "+", b, ".", ..] = texts[at..]
            && open == "("
            && a == b
        {
            found.push(replaced(line, line.tokens[at + 1].from, line.tokens[at + 5].from, ""));
        }
    }
    found
}

/// Factors whose absence is a classic: scales, and conversions between logarithms.
const FACTORS: &[&str] = &["params.scale", "params.grad_scale", "LOG2_E", "LN_2", "factor"];

fn factor(line: &Line<'_>, _: &[Field]) -> Vec<String> {
    let mut found = Vec::new();
    for token in line.tokens.iter().filter(|token| ["*", "*="].contains(&token.text)) {
        let rest = &line.text[token.to..];
        let space = rest.len() - rest.trim_start().len();
        for factor in FACTORS.iter().filter(|factor| rest.trim_start().starts_with(**factor)) {
            let to = token.to + space + factor.len();
            let longer = line.text[to..].starts_with(|c: char| c.is_alphanumeric() || c == '_');
            if !longer && token.text == "*" {
                let from = line.text[..token.from].trim_end().len();
                found.push(replaced(line, from, to, ""));
            }
        }
    }
    found
}

fn statement(line: &Line<'_>, _: &[Field]) -> Vec<String> {
    let declares = ["let", "var", "for", "return", "if"].contains(&text(line, 0));
    let assigns = |token: &Token<'_>| ["=", "+=", "-=", "*=", "/=", "%="].contains(&token.text);
    let whole = line.text.ends_with(';') && line.tokens.iter().any(assigns);
    if whole && !declares { vec![String::new()] } else { Vec::new() }
}

/// The loader's `#else` turns the branch around, so two of them leave the second half as it was.
fn flag(line: &Line<'_>, _: &[Field]) -> Vec<String> {
    if line.text.starts_with("#ifdef") { vec![format!("{}\n#else", line.text)] } else { Vec::new() }
}

fn field(line: &Line<'_>, fields: &[Field]) -> Vec<String> {
    let mut found = Vec::new();
    for (at, token) in line.tokens.iter().enumerate() {
        let other = match token.text {
            "dim_qk" => Some("dim_v"),
            "dim_v" => Some("dim_qk"),
            "dispatch_heads" => Some("group_heads"),
            "group_heads" => Some("dispatch_heads"),
            _ if at >= 2 && text(line, at - 2) == "params" => neighbour(fields, token.text),
            _ => None,
        };
        let call = text(line, at + 1) == "(" || at >= 2 && text(line, at - 2) == "params";
        if let Some(other) = other.filter(|_| call) {
            found.push(replaced(line, token.from, token.to, other));
        }
    }
    found
}

/// The next field of the same type, or the one before where it is the last.
fn neighbour<'a>(fields: &'a [Field], name: &str) -> Option<&'a str> {
    let at = fields.iter().position(|(field, _)| field == name)?;
    let same = |(_, kind): &&Field| *kind == fields[at].1;
    let after = fields[at + 1..].iter().find(same);
    let before = fields[..at].iter().rev().find(same);
    after.or(before).map(|(name, _)| name.as_str())
}

/// The fields of `struct Params` in this text, in order.
pub fn fields(params: &str) -> Vec<Field> {
    let code = params.lines().map(|line| line.split("//").next().unwrap_or(""));
    let code: String = code.filter(|line| !line.starts_with('#')).collect();
    let field = |part: &str| {
        let (name, kind) = part.split_once(':')?;
        Some((name.trim().to_string(), kind.trim().to_string()))
    };
    code.split(',').filter_map(field).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate::line::lines;

    /// What a mutator makes of the last line of a text.
    fn mutants(name: &str, code: &str) -> Vec<String> {
        let fields =
            fields("a_batch: u32, a_head: u32, // x: u32\n#import \"y\"\n scale: f32, cap: f32,");
        let mutator = MUTATORS.iter().find(|m| m.name == name).unwrap();
        lines(code).last().map_or(Vec::new(), |line| (mutator.apply)(line, &fields))
    }

    #[test]
    fn each_mutator() {
        let cases: &[(&str, &str, &[&str])] = &[
            (
                "edge",
                "if a < b && c >= vec2<u32>(d) {",
                &["if a <= b && c >= vec2<u32>(d) {", "if a < b && c > vec2<u32>(d) {"],
            ),
            ("edge", "#unroll\nfor (var i = 0u; i < N; i++) {", &[]),
            ("equality", "let a = b == c;", &["let a = b != c;"]),
            ("logic", "let a = b || c;", &["let a = b && c;"]),
            ("off by one", "a = b + 1u - c - 1;", &["a = b - c - 1;", "a = b + 1u - c;"]),
            ("off by one", "a = b + 10u;", &[]),
            ("extremum", "a = min(b, minimum);", &["a = max(b, minimum);"]),
            (
                "sum",
                "a += b[-c + 1] - d;",
                &["a -= b[-c + 1] - d;", "a += b[-c - 1] - d;", "a += b[-c + 1] + d;"],
            ),
            (
                "product",
                "a = (*b)[c] * d % e / f;",
                &[
                    "a = (*b)[c] + d % e / f;",
                    "a = (*b)[c] * d / e / f;",
                    "a = (*b)[c] * d % e * f;",
                ],
            ),
            ("select", "a = select(b, c[0], d(e, f));", &["a = select(c[0], b, d(e, f));"]),
            (
                "constant",
                "a = 0u + 0xfu + 0.5 + 3e38;",
                &[
                    "a = 1u + 0xfu + 0.5 + 3e38;",
                    "a = 0u + 0x7u + 0.5 + 3e38;",
                    "a = 0u + 0xfu + 1.0 + 3e38;",
                    "a = 0u + 0xfu + 0.5 + 1e38;",
                ],
            ),
            (
                "constant",
                "a = 0.0 + 0xffffffffu;",
                &["a = 1.0 + 0xffffffffu;", "a = 0.0 + 0x7fffffffu;"],
            ),
            ("bool", "f(true);", &["f(false);"]),
            ("turns", "for (var i = 0u; i < N; i++) {", &["for (var i = 0u; i + 1u < N; i++) {"]),
            (
                "turns",
                "#unroll\nfor (var i = 0u; i < N; i++) {",
                &["for (var i = 0u; i < 1u; i++) {"],
            ),
            ("constant", "#unroll\nfor (var i = 0u; i < N; i++) {", &[]),
            ("barrier", "  workgroupBarrier();", &[""]),
            ("condition", "if a < b {", &["if true {", "if false {"]),
            ("fma", "a = fma(b, f(c, d), a);", &["a = (b * f(c, d));"]),
            (
                "first term",
                "a = (b.x + b.y) + (c.z + c.w);",
                &["a = (b.y) + (c.z + c.w);", "a = (b.x + b.y) + (c.w);"],
            ),
            ("factor", "a = b * params.scale * LN_2;", &["a = b * LN_2;", "a = b * params.scale;"]),
            ("factor", "a = b * params.scaled;", &[]),
            ("statement", "a[0] = b;", &[""]),
            ("statement", "let a = b;", &[]),
            ("flag", "#ifdef X", &["#ifdef X\n#else"]),
            (
                "field",
                "f(params.a_batch, params.a_head, params.cap, dim_v());",
                &[
                    "f(params.a_head, params.a_head, params.cap, dim_v());",
                    "f(params.a_batch, params.a_batch, params.cap, dim_v());",
                    "f(params.a_batch, params.a_head, params.scale, dim_v());",
                    "f(params.a_batch, params.a_head, params.cap, dim_qk());",
                ],
            ),
        ];
        for (name, code, want) in cases {
            assert_eq!(mutants(name, code), *want, "{name}: {code}");
        }
    }

    #[test]
    fn names_are_unique() {
        for (at, mutator) in MUTATORS.iter().enumerate() {
            assert!(MUTATORS[..at].iter().all(|other| other.name != mutator.name));
            assert!(!mutator.reason.is_empty());
        }
    }
}
