//! Rules for kernels.

use super::Finding;

/// A kernel starts with what one workgroup owns and what goes in and out: two lines of comment at least.
pub fn header(path: &str, text: &str) -> Vec<Finding> {
    if !path.ends_with(".wgsl") {
        return Vec::new();
    }
    let comment = |line: &&str| line.trim_start().starts_with("//");
    if text.lines().take_while(comment).count() >= 2 {
        return Vec::new();
    }
    let message = "the file does not start with a comment of two lines: what a workgroup owns, what goes in and out";
    vec![Finding::new(path, 1, message)]
}

/// Each binding has its shape in a comment on its line or the line before, as in `// [B, Hkv, Nk, D]`.
/// A uniform is a struct, which has no shape.
pub fn binding_shapes(path: &str, text: &str) -> Vec<Finding> {
    if !path.ends_with(".wgsl") {
        return Vec::new();
    }
    let lines: Vec<(&str, &str)> = text.lines().map(split).collect();
    let mut found = Vec::new();
    for (i, (code, comment)) in lines.iter().enumerate() {
        if !code.contains("@binding") {
            continue;
        }
        let next = lines.get(i + 1).copied().unwrap_or_default();
        // The declaration may stand on the line after its attributes.
        let declared_here = code.contains("var<");
        let declaration = if declared_here { *code } else { next.0 };
        let before = if i == 0 { "" } else { lines[i - 1].1 };
        let after = if declared_here { "" } else { next.1 };
        let shape = |comment: &str| {
            let open = comment.find('[');
            open.is_some_and(|open| comment[open..].contains(']'))
        };
        let has_shape = shape(comment) || shape(before) || shape(after);
        if !has_shape && !declaration.contains("var<uniform>") {
            let message = "binding without its shape in a comment, such as [B, H, N, D]";
            found.push(Finding::new(path, i + 1, message));
        }
    }
    found
}

/// What a kernel never contains, with the reason. Compared without spaces, except for whole words.
const FORBIDDEN: &[(&str, &str)] = &[
    ("atomic<f32>", "float atomics make results depend on timing"),
    ("enable subgroups", "naga refuses it; subgroup operations work without"),
    ("override", "constants come from the prelude, so that variants are named"),
];

/// No construct that the house does without.
pub fn forbidden(path: &str, text: &str) -> Vec<Finding> {
    if !path.ends_with(".wgsl") {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let code = split(line).0;
        let packed: String = code.split_whitespace().collect();
        let spaced = code.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        let spaced: Vec<_> = spaced.filter(|word| !word.is_empty()).collect();
        let spaced = format!(" {} ", spaced.join(" "));
        for (needle, why) in FORBIDDEN {
            if packed.contains("<f32>") && packed.contains(needle)
                || spaced.contains(&format!(" {needle} "))
            {
                found.push(Finding::new(path, i + 1, format!("`{needle}`: {why}")));
            }
        }
    }
    found
}

/// A line's code and its comment.
fn split(line: &str) -> (&str, &str) {
    match line.find("//") {
        Some(at) => line.split_at(at),
        None => (line, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
// Adds two tensors. One workgroup owns 256 elements.
// in: a, b; out: c

@group(0) @binding(0) var<storage, read> a: array<f32>; // [N]
// [N]
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2)
var<storage, read_write> c: array<f32>; // [N]
@group(0) @binding(3) var<uniform> params: Params;
// override, in words; never an atomic<f32>
const overrides = 1u;
var<workgroup> n: atomic<u32>;
";

    #[test]
    fn good_kernel_passes() {
        for rule in [header, binding_shapes, forbidden] {
            assert!(rule("a.wgsl", GOOD).is_empty());
            assert!(rule("a.rs", "@binding(0) override x").is_empty());
        }
    }

    #[test]
    fn short_headers() {
        assert_eq!(header("a.wgsl", "// one line\nfn f() {}\n").len(), 1);
        assert_eq!(header("a.wgsl", "").len(), 1);
    }

    #[test]
    fn bindings_without_shape() {
        let text = "@group(0) @binding(0) var<storage> a: array<f32>; // input\n\
                    @group(0) @binding(1) var<storage> b: array<f32, 4>; // [4]\n\
                    \n\
                    @binding(2) @group(0) var<storage> c: array<f32>;\n";
        let lines: Vec<_> = binding_shapes("a.wgsl", text).iter().map(|f| f.line).collect();
        assert_eq!(lines, [1, 4]);
    }

    #[test]
    fn forbidden_constructs() {
        let text =
            "enable subgroups;\n@id(1) override ROWS: u32 = 4;\nvar<workgroup> x: atomic< f32 >;\n";
        let lines: Vec<_> = forbidden("a.wgsl", text).iter().map(|f| f.line).collect();
        assert_eq!(lines, [1, 2, 3]);
    }
}
