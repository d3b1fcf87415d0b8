//! The matmul kernels in the variants that devices get: every number of rows in both layouts of `b`,
//! and for the largest tiles every choice of a call alone and all of them together.

use super::product::{Form, Sums, source};
use super::variant::{FEW_ROWS, Problem, Variant};
use crate::activation::Activation;
use crate::capabilities::{Capabilities, DeviceKind};
use crate::kernel::{Constants, KernelSource};
use crate::tensor::DType;

const PLAIN: Form = Form {
    a: DType::F32,
    b: DType::F32,
    out: DType::F32,
    bias: None,
    a_across: false,
    b_across: false,
    activation: Activation::None,
    residual: false,
    accumulate: false,
    elements: false,
    sums: Sums { go_on: false, keep: false },
};

type Toggle = (&'static str, fn(&mut Form));

const TOGGLES: [Toggle; 17] = [
    ("a f16", |form| form.a = DType::F16),
    ("a bf16", |form| form.a = DType::BF16),
    ("b f16", |form| form.b = DType::F16),
    ("b bf16", |form| form.b = DType::BF16),
    ("out f16", |form| form.out = DType::F16),
    ("bias", |form| form.bias = Some(DType::F32)),
    ("bias f16", |form| form.bias = Some(DType::F16)),
    ("bias bf16", |form| form.bias = Some(DType::BF16)),
    ("relu", |form| form.activation = Activation::Relu),
    ("silu", |form| form.activation = Activation::Silu),
    ("gelu", |form| form.activation = Activation::Gelu),
    ("gelu_tanh", |form| form.activation = Activation::GeluTanh),
    ("first sums", |form| form.sums.keep = true),
    ("last sums", |form| form.sums.go_on = true),
    ("residual", |form| form.residual = true),
    ("accumulating", |form| form.accumulate = true),
    ("out bf16", |form| form.out = DType::BF16),
];

/// Lists the kernels of a device. Tests run each kernel on any device, so every device gets them all.
pub(crate) fn list(
    capabilities: &Capabilities,
    mut add: impl FnMut(KernelSource, Constants, String),
) {
    let mut add = |variant: &Variant, form: &Form, words: &str| {
        add(source(variant), form.constants(variant), format!("{variant}, {words}"));
    };
    for kind in [DeviceKind::Cpu, DeviceKind::Discrete] {
        let device = Capabilities { kind, ..capabilities.clone() };
        for b_across in [false, true] {
            let variant = |rows| {
                let problem = Problem { rows, all_rows: rows, b_rows: b_across };
                Variant::of(&problem, &device)
            };
            let layout = if b_across { "b by rows" } else { "b by columns" };
            for rows in [1, 2, FEW_ROWS, 8, 16] {
                add(&variant(rows), &Form { b_across, ..PLAIN }, layout);
            }
            for rows in [FEW_ROWS, 1024] {
                forms(&variant(rows), &Form { b_across, ..PLAIN }, layout, &mut add);
            }
        }
    }
}

fn forms(
    variant: &Variant,
    base: &Form,
    layout: &str,
    add: &mut impl FnMut(&Variant, &Form, &str),
) {
    add(variant, base, layout);
    if variant.tile_extents()[0] > FEW_ROWS {
        add(variant, &Form { a_across: true, ..*base }, &format!("{layout}, a by columns"));
    }
    let elements = Form { elements: true, accumulate: true, ..*base };
    add(variant, &elements, &format!("{layout}, accumulating elements"));
    let mut all = *base;
    for (words, toggle) in TOGGLES {
        let mut form = *base;
        toggle(&mut form);
        add(variant, &form, &format!("{layout}, {words}"));
        toggle(&mut all);
    }
    // With both, the sums of a part in the middle of the depth are kept.
    all.sums.keep = false;
    add(variant, &all, &format!("{layout}, everything"));
}
