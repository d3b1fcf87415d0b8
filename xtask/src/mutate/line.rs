//! The lines of a WGSL file that compute something, in tokens.

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A name, with its type arguments where it has some: `vec4<f32>` is one token.
    Name,
    Number,
    Sign,
}

/// A token with its place in the line, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
    pub from: usize,
    pub to: usize,
}

/// One line of code.
#[derive(Clone, Debug)]
pub struct Line<'a> {
    /// From 1.
    pub number: usize,
    /// Without its comment and the spaces behind it.
    pub text: &'a str,
    pub tokens: Vec<Token<'a>>,
    /// Behind `#unroll`: the loader counts this loop.
    pub unrolled: bool,
}

/// Names whose `<` opens type arguments.
const GENERIC: &[&str] = &["vec2", "vec3", "vec4", "array", "bitcast", "ptr", "var"];

/// Signs of more than one character, longest first.
const SIGNS: &[&str] = &[
    "<<=", ">>=", "&&", "||", "==", "!=", "<=", ">=", "<<", ">>", "+=", "-=", "*=", "/=", "%=",
    "++", "--", "->",
];

/// Splits code without comments into tokens.
pub fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(first) = code[at..].chars().next() {
        let rest = &code[at..];
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (kind, length) = if first.is_ascii_digit() {
            let length = rest.find(|c: char| !word(c) && c != '.').unwrap_or(rest.len());
            // The sign of an exponent, as in 1e-30.
            let exponent = !rest.starts_with("0x")
                && rest[..length].ends_with('e')
                && rest[length..].starts_with('-');
            let behind = rest.get(length + 1..).unwrap_or("");
            let digits = behind.find(|c: char| !word(c)).unwrap_or(behind.len());
            (Kind::Number, if exponent { length + 1 + digits } else { length })
        } else if word(first) {
            let length = rest.find(|c: char| !word(c)).unwrap_or(rest.len());
            (Kind::Name, length + type_arguments(&rest[..length], &rest[length..]))
        } else if first.is_whitespace() {
            at += first.len_utf8();
            continue;
        } else {
            let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
            (Kind::Sign, sign.map_or(first.len_utf8(), |sign| sign.len()))
        };
        found.push(Token { kind, text: &rest[..length], from: at, to: at + length });
        at += length;
    }
    found
}

/// Length of `<..>` behind a generic name, else 0.
fn type_arguments(name: &str, rest: &str) -> usize {
    if !GENERIC.contains(&name) || !rest.starts_with('<') {
        return 0;
    }
    let mut depth = 0usize;
    for (at, c) in rest.char_indices() {
        match c {
            '<' => depth += 1,
            '>' if depth == 1 => return at + 1,
            '>' => depth -= 1,
            _ => {}
        }
    }
    0
}

/// The lines that compute something: no comments, declarations, headers of functions, or directives but `#ifdef`.
pub fn lines(text: &str) -> Vec<Line<'_>> {
    let mut found = Vec::new();
    let mut in_struct = false;
    let mut unrolled = false;
    for (index, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or("").trim_end();
        let tokens = tokens(code);
        let starts_struct = code.starts_with("struct ");
        if !in_struct && !starts_struct && computes(&tokens) {
            found.push(Line { number: index + 1, text: code, tokens, unrolled });
        }
        in_struct = (in_struct || starts_struct) && !code.contains('}');
        unrolled = code.trim() == "#unroll";
    }
    found
}

fn computes(tokens: &[Token<'_>]) -> bool {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text);
    match text(0) {
        "" | "}" | ")" | "@" | "alias" | "const" | "fn" | "switch" => false,
        "#" => text(1) == "ifdef",
        "case" | "default" => true,
        // `name: type`, a parameter or field; `var name: type;`, which has no value yet.
        _ if text(1) == ":" => false,
        first if first.starts_with("var") => tokens.iter().any(|token| token.text == "="),
        _ => true,
    }
}

/// The arguments of a call, from the token of its opening bracket: byte ranges, and the index of the closing one.
pub fn arguments(tokens: &[Token<'_>], open: usize) -> Option<(Vec<(usize, usize)>, usize)> {
    let mut depth = 0usize;
    let mut from = tokens.get(open)?.to;
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text {
            "(" | "[" => depth += 1,
            "," if depth == 1 => {
                found.push((from, token.from));
                from = token.to;
            }
            ")" | "]" if depth == 1 => {
                found.push((from, token.from));
                return Some((found, at));
            }
            ")" | "]" => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(code: &str) -> Vec<&str> {
        tokens(code).into_iter().map(|token| token.text).collect()
    }

    #[test]
    fn tokens_of_wgsl() {
        assert_eq!(
            words("a[i] += 0xffu<<2u;"),
            ["a", "[", "i", "]", "+=", "0xffu", "<<", "2u", ";"]
        );
        assert_eq!(words("select(-1e-30, 3e38, x>=y)")[..4], ["select", "(", "-", "1e-30"]);
        assert_eq!(
            words("bitcast<vec4<u32>>(x) < 1.5"),
            ["bitcast<vec4<u32>>", "(", "x", ")", "<", "1.5"]
        );
        assert_eq!(words("if a < b && c > d {")[2], "<");
        assert_eq!(words("x = 1e"), ["x", "=", "1e"]);
        let place = tokens("  a <= b")[1];
        assert_eq!((place.from, place.to, place.kind), (4, 6, Kind::Sign));
    }

    #[test]
    fn only_what_computes() {
        let text = "\
// comment
struct Params {
  a: u32, b: u32,
}
@group(0) @binding(0) var<storage, read> x: array<u32>; // [N]
const A = 1u;
fn f(
  a: u32,
) -> u32 {
  #unroll
  for (var i = 0u; i < A; i++) {
    var y: array<u32, 2>;
#ifdef FLAG
    y[i] = 1u; // comment
#endif
  }
  switch a {
    case 0u: { return 1u; }
  }
  var z = x[a];
}
";
        let found: Vec<_> = lines(text).iter().map(|l| (l.number, l.unrolled)).collect();
        assert_eq!(found, [(11, true), (13, false), (14, false), (18, false), (20, false)]);
        assert_eq!(lines(text)[2].text, "    y[i] = 1u;");
    }

    #[test]
    fn arguments_of_calls() {
        let code = "f(a, g(b, c)[1], d)";
        let tokens = tokens(code);
        let (found, close) = arguments(&tokens, 1).unwrap();
        let texts: Vec<_> = found.iter().map(|&(from, to)| code[from..to].trim()).collect();
        assert_eq!(texts, ["a", "g(b, c)[1]", "d"]);
        assert_eq!(close, tokens.len() - 1);
        assert!(arguments(&tokens[..4], 1).is_none());
    }
}
