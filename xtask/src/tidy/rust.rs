//! Rules for Rust code.

use super::Finding;
use super::lexer::{Line, has_word, lines};

const DEBUG: [&str; 6] = ["dbg!", "todo!", "unimplemented!", "println!", "eprintln!", "print!"];

/// Methods are told by their dot and parenthesis, macros by their mark.
const PANICS: [&str; 4] = [".unwrap()", ".expect(", "panic!", "unreachable!"];

/// How far above its reason may stand.
const REASON_LINES: usize = 3;

/// Code that ships in a library: not tests, examples, benches, programs, nor test support.
fn is_library(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    let Some(src) = parts.iter().position(|part| *part == "src") else {
        return false;
    };
    let inside = &parts[src + 1..];
    let first = inside.first().copied().unwrap_or_default();
    let program = first == "bin" || inside == ["main.rs"];
    let support = inside.iter().any(|p| ["testing", "testing.rs", "tests", "tests.rs"].contains(p));
    path.ends_with(".rs") && parts[0] != "xtask" && !program && !support
}

fn library_lines(path: &str, text: &str) -> Vec<Line> {
    if !is_library(path) {
        return Vec::new();
    }
    lines(text).into_iter().filter(|line| !line.test).collect()
}

/// A library prints nothing and leaves nothing undone.
pub fn debug_leftovers(path: &str, text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    for line in library_lines(path, text) {
        for word in DEBUG.iter().filter(|word| has_word(&line.code, word)) {
            let message = format!("`{word}` in a library");
            found.push(Finding::new(path, line.number, message));
        }
    }
    found
}

/// A library returns errors.
pub fn panics(path: &str, text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    for line in library_lines(path, text) {
        for needle in PANICS {
            let hit = if needle.starts_with('.') {
                line.code.contains(needle)
            } else {
                has_word(&line.code, needle)
            };
            if hit {
                let message = format!("`{needle}` in a library: return an error");
                found.push(Finding::new(path, line.number, message));
            }
        }
    }
    found
}

/// A test that nobody runs is no test.
pub fn ignored_tests(path: &str, text: &str) -> Vec<Finding> {
    if !path.ends_with(".rs") {
        return Vec::new();
    }
    let mut found = Vec::new();
    for line in lines(text) {
        let packed: String = line.code.split_whitespace().collect();
        let plain = packed.contains("#[ignore]") || packed.contains("#[ignore=");
        let conditional = packed.contains("#[cfg_attr") && has_word(&packed, "ignore");
        if plain || conditional {
            let message = "ignored test: skip at run time and print the reason";
            found.push(Finding::new(path, line.number, message));
        }
    }
    found
}

/// Each `unsafe` says why it is sound.
pub fn unsafe_reasons(path: &str, text: &str) -> Vec<Finding> {
    if !path.ends_with(".rs") {
        return Vec::new();
    }
    let raw: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for line in lines(text) {
        let at = line.number - 1;
        let near = &raw[at.saturating_sub(REASON_LINES)..=at];
        let reason = near.iter().any(|l| l.contains("// SAFETY:"));
        if has_word(&line.code, "unsafe") && !reason {
            let message = "`unsafe` without a `// SAFETY:` comment above";
            found.push(Finding::new(path, line.number, message));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIB: &str = "attn-x/src/lib.rs";

    fn found(rule: super::super::Rule, path: &str, text: &str) -> Vec<usize> {
        rule(path, text).iter().map(|f| f.line).collect()
    }

    #[test]
    fn which_files_are_libraries() {
        for path in [LIB, "attn-linear/lightning/src/gpu.rs", "attn-x/src/a/b.rs"] {
            assert!(is_library(path), "{path}");
        }
        for path in [
            "xtask/src/test.rs",
            "attn-x/tests/golden.rs",
            "attn-x/examples/quickstart.rs",
            "attn-x/benches/x.rs",
            "attn-x/src/main.rs",
            "attn-x/src/bin/tool.rs",
            "attn-core/src/testing/mod.rs",
            "attn-core/src/testing.rs",
            "attn-x/src/kernels/a.wgsl",
        ] {
            assert!(!is_library(path), "{path}");
        }
    }

    #[test]
    fn leftovers() {
        let bad = "fn f() {\n    dbg!(1);\n    println!(\"x\");\n    todo!()\n}\n";
        assert_eq!(found(debug_leftovers, LIB, bad), [2, 3, 4]);
        assert!(found(debug_leftovers, "attn-x/tests/a.rs", bad).is_empty());
        let good = "/// println!(\"x\");\nfn f() { my_print!(1); g(\"todo!\"); }\n\
                    #[cfg(test)]\nmod tests { fn t() { println!(\"x\"); } }\n";
        assert!(found(debug_leftovers, LIB, good).is_empty());
    }

    #[test]
    fn panicking_code() {
        let bad = "fn f() {\n    x.unwrap();\n    x\n        .expect(\"y\");\n    unreachable!()\n}\n\
                   fn g() { panic!(\"z\") }\n";
        assert_eq!(found(panics, LIB, bad), [2, 4, 5, 7]);
        let good = "// x.unwrap()\nfn f() { x.unwrap_or(1); x.expect_err(\"\"); assert!(true); }\n\
                    mod testing { fn t() { x.unwrap(); } }\n";
        assert!(found(panics, LIB, good).is_empty());
    }

    #[test]
    fn ignored() {
        let bad = "#[test]\n#[ignore]\nfn a() {}\n#[ignore = \"slow\"]\nfn b() {}\n\
                   #[cfg_attr(windows, ignore)]\nfn c() {}\n";
        assert_eq!(found(ignored_tests, "attn-x/tests/a.rs", bad), [2, 4, 6]);
        let good = "// #[ignore]\n#[cfg_attr(windows, allow(dead_code))]\nfn ignore() {}\n";
        assert!(found(ignored_tests, "attn-x/tests/a.rs", good).is_empty());
    }

    #[test]
    fn unsafe_code() {
        let bad = "fn f() {\n    unsafe { g() }\n}\n";
        assert_eq!(found(unsafe_reasons, LIB, bad), [2]);
        let good = "#![deny(unsafe_code)]\n// SAFETY: g only reads.\n// It is small.\nlet x = unsafe { g() };\n";
        assert!(found(unsafe_reasons, LIB, good).is_empty());
        let far = "// SAFETY: g only reads.\n\n\n\nlet x = unsafe { g() };\n";
        assert_eq!(found(unsafe_reasons, LIB, far), [5]);
    }
}
