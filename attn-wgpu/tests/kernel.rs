//! The kernel loader, as a user's own crate sees it.

mod common;

use attn_wgpu::{Call, Constants, Error, KernelSource, Tensor, expand};
use common::gpu;

const ADD: KernelSource = KernelSource {
    name: "add",
    text: r#"
struct Params { count: u32, factor: f32 }
@group(0) @binding(0) var<storage, read> x: array<f32>; // [count]
@group(0) @binding(1) var<storage, read_write> y: array<f32>; // [count]
#import "scaled"
@compute @workgroup_size(LANES)
fn add(@builtin(global_invocation_id) id: vec3<u32>) {
  if id.x < params.count {
#ifdef TWICE
    y[id.x] = scaled(x[id.x]) * 2.0;
#else
    y[id.x] = scaled(x[id.x]);
#endif
  }
}
"#,
    imports: &[("scaled", "fn scaled(x: f32) -> f32 { return x * params.factor; }")],
};

fn run(x: &Tensor, y: &Tensor, twice: bool) -> Result<(), Error> {
    let gpu = x.gpu();
    let kernel = gpu.kernel(&ADD, Constants::new().int("LANES", 8).flag("TWICE", twice))?;
    let params = [x.len() as u32, 3f32.to_bits()];
    kernel.dispatch(
        gpu,
        &Call {
            bindings: &[x.binding().0, y.binding().0],
            params: bytemuck::cast_slice(&params),
            groups: x.len().div_ceil(8) as u64,
            work: 0.0,
        },
    )
}

#[test]
fn a_users_kernel_with_imports_flags_and_parameters() {
    for off in [None, Some("immediates")] {
        let builder = off.into_iter().fold(attn_wgpu::Gpu::builder(), |b, name| b.disable(name));
        let Some(gpu) = common::open(builder) else { return };
        let x = Tensor::from_slice(&gpu, &[1f32, 2.0, 3.0], &[3]).unwrap();
        let y = Tensor::full(&gpu, &[3], 0f32).unwrap();
        run(&x, &y, false).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [3.0, 6.0, 9.0]);
        run(&x, &y, true).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [6.0, 12.0, 18.0]);
        // More dispatches with parameters than the parameter ring has slots.
        for _ in 0..1000 {
            run(&x, &y, false).unwrap();
        }
        assert_eq!(y.to_vec::<f32>().unwrap(), [3.0, 6.0, 9.0]);
        let pipelines = gpu.pipelines();
        run(&x, &y, false).unwrap();
        assert_eq!(gpu.pipelines(), pipelines);
    }
}

/// Input and output in one buffer: bound as read-write where they are apart, refused where not.
#[test]
fn tensors_that_share_a_buffer() {
    let Some(gpu) = gpu() else { return };
    let both = Tensor::full(&gpu, &[1024], 1f32).unwrap();
    let (x, y) = (both.narrow(0, 0, 64).unwrap(), both.narrow(0, 512, 64).unwrap());
    run(&x, &y, false).unwrap();
    assert_eq!(y.to_vec::<f32>().unwrap(), [3.0; 64]);
    assert_eq!(x.to_vec::<f32>().unwrap(), [1.0; 64]);
    let overlapping = both.narrow(0, 32, 64).unwrap();
    match run(&x, &overlapping, false) {
        Err(Error::Kernel { reason, .. }) => assert!(reason.contains("overlap"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn attention_on_tensors_that_share_a_buffer() {
    use attn_wgpu::attention::{Attention, Inputs};
    let Some(gpu) = gpu() else { return };
    let inputs = common::normal(common::shape([1, 2, 2, 32, 32, 16, 16]), 3);
    let count = 2 * 32 * 16;
    let page = Tensor::from_slice(
        &gpu,
        &[inputs.q.clone(), inputs.k.clone(), inputs.v.clone(), vec![0.0; count]].concat(),
        &[4, 1, 2, 32, 16],
    )
    .unwrap();
    let part = |i: usize| page.narrow(0, i, 1).unwrap().reshape(&[1, 2, 32, 16]).unwrap();
    let config = common::masked(attn_core::Mask::Causal);
    let (q, k, v, out) = (part(0), part(1), part(2), part(3));
    let attention = Attention::new(&gpu, config.clone()).unwrap();
    attention.forward_into(Inputs::new(&q, &k, &v), &out, None).unwrap();
    let want = common::attend(&gpu, &inputs, &config).unwrap();
    assert_eq!(out.to_vec::<f32>().unwrap(), want.out);
}

/// Errors carry the compiler's message and leave the device healthy.
#[test]
fn bad_kernels_are_errors() {
    let Some(gpu) = gpu() else { return };
    let load = |text: &'static str| {
        let source = KernelSource { name: "bad", text, imports: &[] };
        gpu.kernel(&source, Constants::new().int("N", 3)).map(|_| ())
    };
    let cases = [
        ("fn main( {", "expected"),
        ("#include <x>", "bad:1: unknown directive #include"),
        ("#ifdef X", "#ifdef without #endif"),
        ("#endif", "bad:1: #endif without #ifdef"),
        ("#else", "bad:1: #else without #ifdef"),
        ("#import \"nothing\"", "no snippet \"nothing\""),
        ("#unroll\nfor (var i = 0u; i < M; i++) {\n}", "cannot count"),
        ("#unroll\nfor (var i = 1u; i < 4; i++) {\n}", "cannot count"),
        ("#unroll\nfor (var i = 0u; i < N; i++) {", "does not end"),
        ("@group(0) @binding(2) var<storage, read> x: array<f32>;", "numbered 0, 1, 2"),
    ];
    for (text, part) in cases {
        match load(text) {
            Err(Error::Kernel { kernel, reason }) => {
                assert!(kernel.starts_with("bad"), "{kernel}");
                assert!(reason.contains(part), "{reason:?} lacks {part:?}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    // wgpu does not check workgroup memory; the loader does.
    let huge =
        "var<workgroup> w: array<f32, 100000>; @compute @workgroup_size(1) fn f() { w[0] = 1.0; }";
    match load(huge) {
        Err(Error::Limit { needed, .. }) => assert_eq!(needed, 400_000),
        other => panic!("{other:?}"),
    }
    let x = Tensor::full(&gpu, &[3], 1f32).unwrap();
    run(&x, &Tensor::full(&gpu, &[3], 0f32).unwrap(), false).unwrap();
}

#[test]
fn wrong_calls_are_errors() {
    let Some(gpu) = gpu() else { return };
    let x = Tensor::full(&gpu, &[3], 1f32).unwrap();
    let kernel = gpu.kernel(&ADD, Constants::new().int("LANES", 8)).unwrap();
    let one = [x.binding().0];
    let call = Call { bindings: &one, params: &[0; 8], groups: 1, work: 0.0 };
    assert!(matches!(kernel.dispatch(&gpu, &call), Err(Error::Kernel { .. })));
    let y = Tensor::full(&gpu, &[3], 1f32).unwrap();
    let two = [x.binding().0, y.binding().0];
    let call = Call { bindings: &two, params: &[0; 4], groups: 1, work: 0.0 };
    assert!(matches!(kernel.dispatch(&gpu, &call), Err(Error::Kernel { .. })));
    let call = Call { bindings: &two, params: &[0; 8], groups: u64::MAX, work: 0.0 };
    assert!(matches!(kernel.dispatch(&gpu, &call), Err(Error::Limit { .. })));
    gpu.sync().unwrap();
}

#[test]
fn expansion() {
    let source = KernelSource {
        name: "x",
        text: "#unroll\nfor (var r = 0u; r < ROWS * 2; r++) {\n  a[r] = 0;\n}\n#ifdef F\nyes\n#ifdef G\nboth\n#endif\n#else\nno\n#endif",
        imports: &[],
    };
    let text = |flags: &[&str]| {
        let constants = Constants::new().int("ROWS", 1).alias("Scalar", "f32");
        let constants = flags.iter().fold(constants, |c, flag| c.flag(flag, true));
        expand(&source, &constants, true).unwrap()
    };
    let head = "const ROWS = 1u;\nalias Scalar = f32;\n\
                { const r = 0u;\n  a[r] = 0;\n}\n{ const r = 1u;\n  a[r] = 0;\n}\n";
    assert_eq!(text(&[]), format!("{head}no\n"));
    assert_eq!(text(&["F"]), format!("{head}yes\n"));
    assert_eq!(text(&["F", "G"]), format!("{head}yes\nboth\n"));
    assert_eq!(text(&["G"]), format!("{head}no\n"));
}

const COUNT_GROUPS: KernelSource = KernelSource {
    name: "count_groups",
    text: r#"
@group(0) @binding(0) var<storage, read_write> count: array<atomic<u32>>; // [1]
@compute @workgroup_size(1)
fn count_groups() {
  atomicAdd(&count[0], 1u);
}
"#,
    imports: &[],
};

/// The device decides how many workgroups there are; here after a copy of the numbers.
#[test]
fn dispatches_of_as_many_workgroups_as_a_tensor_says() {
    let Some(gpu) = gpu() else { return };
    let args = Tensor::indirect(&gpu, 8).unwrap();
    let kernel = gpu.kernel(&COUNT_GROUPS, Constants::new()).unwrap();
    let count = Tensor::full(&gpu, &[1], 0u32).unwrap();
    let call = |groups| Call { bindings: &[], params: &[], groups, work: 0.0 };
    let bindings = [count.binding().0];
    for (at, numbers) in [(0, [3u32, 1, 1]), (4, [2, 5, 1]), (4, [0, 1, 1])] {
        let given = args.narrow(0, at, 3).unwrap();
        let numbers = Tensor::from_slice(&gpu, &numbers, &[3]).unwrap();
        attn_wgpu::ops::copy(&numbers, &given).unwrap();
        let call = Call { bindings: &bindings, ..call(10) };
        kernel.dispatch_indirect(&gpu, &call, &given).unwrap();
    }
    assert_eq!(count.to_vec::<u32>().unwrap(), [13]);
    // With an upper bound of 0 nothing is recorded.
    let none = Call { bindings: &bindings, ..call(0) };
    kernel.dispatch_indirect(&gpu, &none, &args.narrow(0, 0, 3).unwrap()).unwrap();
    assert_eq!(count.to_vec::<u32>().unwrap(), [13]);
    let plain = Tensor::full(&gpu, &[3], 1u32).unwrap();
    let short = args.narrow(0, 0, 2).unwrap();
    for wrong in [&plain, &short] {
        let call = Call { bindings: &bindings, ..call(1) };
        let message = kernel.dispatch_indirect(&gpu, &call, wrong).unwrap_err().to_string();
        assert!(message.contains("args"), "{message}");
    }
}
