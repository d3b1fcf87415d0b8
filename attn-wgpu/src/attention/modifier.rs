//! A caller's modifier as a WGSL snippet: checked, with errors that point into the caller's text.

use attn_core::{Modifier, ModifierKind, ModifierParam};
use wgpu::naga;

use crate::error::{Error, Result};

const ARGUMENTS: &str = "score: f32, batch: u32, head: u32, position: i32, key: i32";

/// The parameters' values, in the order in which the snippet reads them.
pub(super) fn words(modifier: &Modifier) -> Vec<u32> {
    let values = modifier.params().iter().flat_map(|(_, param)| match param {
        ModifierParam::Scalar(value) => std::slice::from_ref(value),
        // An empty table reads 0.
        ModifierParam::Table(values) if values.is_empty() => &[0.0],
        ModifierParam::Table(values) => values.as_slice(),
    });
    values.map(|value| value.to_bits()).collect()
}

/// Functions `modify` and, where there is a derivative, `modify_slope`; reads `table`.
pub(super) fn snippet(modifier: &Modifier) -> String {
    let (tables, scalars) = declarations(modifier);
    let result = match modifier.kind() {
        ModifierKind::Score => "f32",
        ModifierKind::Mask => "bool",
    };
    let body = modifier.body();
    let mut text = format!("{tables}fn modify({ARGUMENTS}) -> {result} {{\n{scalars}{body}\n}}\n");
    if let Some(slope) = modifier.derivative() {
        text += &format!("fn modify_slope({ARGUMENTS}) -> f32 {{\n{scalars}{slope}\n}}\n");
    }
    text
}

/// Declarations of tables, as functions, and of scalars, as the first lines of a body.
fn declarations(modifier: &Modifier) -> (String, String) {
    let (mut tables, mut scalars, mut at) = (String::new(), String::new(), 0);
    for (name, param) in modifier.params() {
        match param {
            ModifierParam::Scalar(_) => {
                scalars += &format!("let {name} = bitcast<f32>(table[{at}u]);\n");
                at += 1;
            }
            ModifierParam::Table(values) => {
                let last = values.len().saturating_sub(1);
                tables += &format!(
                    "fn {name}(i: i32) -> f32 {{ return bitcast<f32>(table[{at}u + u32(clamp(i, 0, {last}))]); }}\n"
                );
                at += values.len().max(1);
            }
        }
    }
    (tables, scalars)
}

/// Compiles the bodies alone.
///
/// # Errors
/// [`attn_core::Error::Config`] for parameters that cannot be ones, [`Error::Kernel`] with line and
/// column of the body for WGSL that does not compile.
pub(super) fn validate(modifier: &Modifier) -> Result<()> {
    modifier.validate()?;
    let (tables, scalars) = declarations(modifier);
    let result = match modifier.kind() {
        ModifierKind::Score => "f32",
        ModifierKind::Mask => "bool",
    };
    let bodies = [(Some(modifier.body()), result), (modifier.derivative(), "f32")];
    for (body, result) in bodies {
        let Some(body) = body else { continue };
        let head = format!(
            "@group(0) @binding(0) var<storage, read> table: array<u32>;\n{tables}fn modify({ARGUMENTS}) -> {result} {{\n{scalars}"
        );
        let text = format!("{head}{body}\n}}\n");
        let failed = |line: Option<u32>, column: u32, message: &str| {
            let first = head.lines().count() as u32;
            let place = match line.and_then(|line| line.checked_sub(first)) {
                Some(line) => format!("line {}, column {column}: ", line.max(1)),
                None => String::new(),
            };
            let kernel = format!("modifier `{}`", modifier.name());
            Error::Kernel { kernel, reason: format!("{place}{message}") }
        };
        let module = naga::front::wgsl::parse_str(&text).map_err(|error| {
            let location = error.location(&text);
            let column = location.as_ref().map_or(0, |l| l.line_position);
            failed(location.map(|l| l.line_number), column, &error.to_string())
        })?;
        let flags = naga::valid::ValidationFlags::all();
        let mut validator = naga::valid::Validator::new(flags, naga::valid::Capabilities::empty());
        validator.validate(&module).map_err(|error| {
            let location = error.location(&text);
            let column = location.as_ref().map_or(0, |l| l.line_position);
            let message = causes(error.as_inner());
            failed(location.map(|l| l.line_number), column, &message)
        })?;
    }
    Ok(())
}

/// An error and what caused it, in one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}
