//! Loading of WGSL kernels: expansion, compilation, caching, dispatch.
//!
//! A kernel is a plain WGSL file. The loader
//! * puts a prelude of named constants and type aliases in front (`const ROWS = 8u;`),
//! * replaces `#import "name"` by the named snippet,
//! * keeps or drops the lines between `#ifdef FLAG`, `#else` and `#endif`,
//! * repeats the body of a loop behind the line `#unroll`, with the loop variable as a constant:
//!   the loop must be written `for (var i = 0u; i < COUNT; i++) {`, COUNT a product of numbers
//!   and constants that are such products themselves,
//! * declares the variable `params` if the file has a `struct Params`: as immediate data where the
//!   device has that, else as a slice of a uniform buffer.
//!
//! Why `#unroll`: wgpu's run-time checks count the iterations of every loop and clamp every dynamic
//! index, which keeps drivers from unrolling, and so from holding small arrays in registers (15
//! times slower on a software driver). Constant indices need no check.
//!
//! Bindings are those of group 0, storage buffers only. Compiled kernels are cached by file and
//! constants.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use wgpu::naga;

use crate::bind_groups::Range;
use crate::dispatch::fold;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::guard::lock;
use crate::pool::Storage;
use crate::stream::{Command, Dispatch, Groups, PARAMS_SLOT, Params};
use crate::tensor::{DType, Tensor};

/// A WGSL file with the snippets it may import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelSource {
    /// Name in errors and profiles.
    pub name: &'static str,
    /// The text.
    pub text: &'static str,
    /// Snippets by the name that `#import` uses.
    pub imports: &'static [(&'static str, &'static str)],
}

/// Named constants, aliases and flags of one variant of a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Constants {
    lines: Vec<(String, String)>,
    flags: Vec<String>,
    snippets: Vec<(String, String)>,
}

impl Constants {
    /// No constant.
    pub fn new() -> Self {
        Constants::default()
    }

    /// Adds `const name = value;` of type u32.
    pub fn int(mut self, name: &str, value: u32) -> Self {
        self.lines.push((name.into(), format!("const {name} = {value}u;")));
        self
    }

    /// Adds a snippet for `#import` that is not known before run time.
    pub fn snippet(mut self, name: &str, text: String) -> Self {
        self.snippets.push((name.into(), text));
        self
    }

    /// Adds `alias name = type_name;`.
    pub fn alias(mut self, name: &str, type_name: &str) -> Self {
        self.lines.push((name.into(), format!("alias {name} = {type_name};")));
        self
    }

    /// Sets `flag` for `#ifdef`, if `on`.
    pub fn flag(mut self, flag: &str, on: bool) -> Self {
        if on {
            self.flags.push(flag.into());
        }
        self
    }
}

/// A range of a buffer that a kernel reads or writes.
#[derive(Clone)]
pub struct Binding {
    pub(crate) storage: Arc<Storage>,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

impl Binding {
    /// Whether both are ranges of one buffer that are not disjoint.
    pub(crate) fn meets(&self, other: &Binding) -> bool {
        self.storage.buffer == other.storage.buffer
            && self.offset < other.offset + other.bytes
            && other.offset < self.offset + self.bytes
    }
}

/// One dispatch of a kernel.
pub struct Call<'a> {
    /// One for each `@binding` of group 0, in order.
    pub bindings: &'a [Binding],
    /// Contents of the kernel's `Params`.
    pub params: &'a [u8],
    /// Number of workgroups. They are folded into up to three dimensions; kernels rebuild the
    /// linear number from `workgroup_id` and `num_workgroups`, and return if it is too large.
    pub groups: u64,
    /// Estimated floating-point operations, for the work cap.
    pub work: f64,
}

/// A compiled kernel. Cheap to clone.
#[derive(Clone)]
pub struct Kernel {
    inner: Arc<KernelInner>,
}

struct KernelInner {
    label: Arc<str>,
    source: KernelSource,
    module: naga::Module,
    /// Access of binding 0, 1, .. as written.
    writable: Vec<bool>,
    params_bytes: u64,
    /// Whether it asks for the lengths of its bindings.
    reads_lengths: bool,
    /// By the set of read-only bindings that are bound as read-write (bit mask).
    pipelines: Mutex<HashMap<u32, Pipeline>>,
}

#[derive(Clone)]
struct Pipeline {
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroupLayout,
    params: Option<wgpu::BindGroupLayout>,
}

#[derive(Default)]
pub(crate) struct KernelCache {
    kernels: Mutex<HashMap<(&'static str, Constants), Kernel>>,
}

impl KernelCache {
    pub(crate) fn pipelines(&self) -> usize {
        lock(&self.kernels).values().map(|kernel| lock(&kernel.inner.pipelines).len()).sum()
    }
}

impl Gpu {
    /// The kernel `source` with `constants`, compiled on first use.
    ///
    /// # Errors
    /// [`Error::Kernel`] with the compiler's message, [`Error::Limit`] if it needs more workgroup
    /// memory than the device has.
    pub fn kernel(&self, source: &KernelSource, constants: Constants) -> Result<Kernel> {
        let mut kernels = lock(&self.kernels().kernels);
        let key = (source.name, constants);
        match kernels.get(&key) {
            Some(kernel) if kernel.inner.source == *source => return Ok(kernel.clone()),
            _ => {}
        }
        let kernel = Kernel::load(self, source, &key.1)?;
        kernels.insert(key, kernel.clone());
        Ok(kernel)
    }
}

impl Kernel {
    fn load(gpu: &Gpu, source: &KernelSource, constants: &Constants) -> Result<Kernel> {
        let immediates = gpu.capabilities().immediate_bytes;
        let label = label(source.name, constants);
        let failed = |reason: String| Error::Kernel { kernel: label.clone(), reason };
        let parse = |immediate: bool| -> Result<(String, naga::Module)> {
            let text = expand(source, constants, immediate).map_err(failed)?;
            let module = naga::front::wgsl::parse_str(&text)
                .map_err(|error| failed(error.emit_to_string(&text)))?;
            Ok((text, module))
        };
        let (text, mut module) = parse(immediates > 0)?;
        let mut params_bytes = params_size(&module);
        if params_bytes > u64::from(immediates) && immediates > 0 {
            module = parse(false)?.1;
            params_bytes = params_size(&module);
        }
        if params_bytes > PARAMS_SLOT {
            return Err(failed(format!(
                "Params has {params_bytes} bytes, at most {PARAMS_SLOT} fit"
            )));
        }
        let needed = workgroup_bytes(&module);
        let available = u64::from(gpu.capabilities().max_workgroup_bytes);
        if needed > available {
            let limit = "maxComputeWorkgroupStorageSize";
            return Err(Error::Limit {
                what: format!("kernel `{label}`"),
                limit,
                needed,
                available,
            });
        }
        let writable = bindings(&module).map_err(failed)?;
        let inner = KernelInner {
            label: label.into(),
            source: *source,
            module,
            writable,
            params_bytes,
            reads_lengths: text.contains("arrayLength("),
            pipelines: Mutex::default(),
        };
        Ok(Kernel { inner: Arc::new(inner) })
    }

    /// Name with the constants of the variant.
    pub fn label(&self) -> &str {
        &self.inner.label
    }

    /// Records one dispatch.
    ///
    /// # Errors
    /// [`Error::Kernel`] if bindings or parameters do not fit the kernel, [`Error::Limit`] if a
    /// binding is too large for the device.
    pub fn dispatch(&self, gpu: &Gpu, call: &Call<'_>) -> Result<()> {
        let Some(groups) = fold(call.groups, gpu.capabilities().max_workgroups) else {
            return Err(Error::Limit {
                what: format!("kernel `{}`", self.inner.label),
                limit: "maxComputeWorkgroupsPerDimension",
                needed: call.groups,
                available: u64::from(gpu.capabilities().max_workgroups),
            });
        };
        self.record(gpu, call, Groups::Known(groups))
    }

    /// Records one dispatch whose number of workgroups the device reads when it gets there: three
    /// words `x, y, z` at the beginning of `args`, a tensor of u32 on a buffer with the usage
    /// `INDIRECT` ([`Tensor::indirect`](crate::Tensor::indirect) makes one). `call.groups` is an upper
    /// bound; where it is 0, nothing is recorded.
    ///
    /// # Errors
    /// As [`Kernel::dispatch`], and [`attn_core::Error::Data`] for arguments on another buffer.
    pub fn dispatch_indirect(&self, gpu: &Gpu, call: &Call<'_>, args: &Tensor) -> Result<()> {
        let (buffer, start) = args.buffer();
        let usable = buffer.usage().contains(wgpu::BufferUsages::INDIRECT);
        if !usable || args.len() < 3 || args.dtype() != DType::U32 || !args.is_contiguous() {
            let expected = "three words on a buffer with the usage INDIRECT";
            let got = format!("{:?} with {:?}", args.shape(), buffer.usage());
            return Err(attn_core::Error::data("args", expected, got).into());
        }
        self.record(gpu, call, Groups::Indirect(buffer.clone(), start as u64 * 4))
    }

    fn record(&self, gpu: &Gpu, call: &Call<'_>, groups: Groups) -> Result<()> {
        let inner = &*self.inner;
        let failed = |reason: String| Error::Kernel { kernel: inner.label.to_string(), reason };
        if call.bindings.len() != inner.writable.len() {
            let (want, got) = (inner.writable.len(), call.bindings.len());
            return Err(failed(format!("{got} bindings given, {want} declared")));
        }
        if call.params.len() as u64 != inner.params_bytes {
            let (want, got) = (inner.params_bytes, call.params.len());
            return Err(failed(format!("{got} bytes of parameters given, {want} declared")));
        }
        for binding in call.bindings {
            let available = gpu.capabilities().max_binding_bytes;
            if binding.bytes > available {
                return Err(Error::Limit {
                    what: format!("a binding of kernel `{}`", inner.label),
                    limit: "maxStorageBufferBindingSize",
                    needed: binding.bytes,
                    available,
                });
            }
        }
        if call.groups == 0 {
            return Ok(());
        }
        let shared = shared_with_written(&inner.writable, call.bindings).map_err(failed)?;
        let pipeline = self.pipeline(gpu, shared)?;
        let ranges = ranges(gpu, call.bindings, inner.reads_lengths);
        gpu.record(call.work, |stream| {
            if let Some(layout) = &pipeline.params {
                gpu.guarded(&inner.label, || stream.ring(gpu.device(), layout))?;
            }
            let bind_group = gpu.bind_group(&inner.label, &pipeline.bindings, &ranges, stream)?;
            let params = match (&pipeline.params, call.params) {
                (_, []) => Params::None,
                (None, bytes) => Params::Immediate(bytes.to_vec()),
                (Some(_), bytes) => Params::Ring(stream.place_params(bytes)),
            };
            for binding in call.bindings {
                binding.storage.used_in.store(stream.batch, Ordering::Relaxed);
            }
            stream.push(Command::Dispatch(Dispatch {
                label: Arc::clone(&inner.label),
                pipeline: pipeline.pipeline.clone(),
                bind_group,
                params,
                groups,
                work: call.work,
            }));
            Ok(())
        })
    }

    /// The pipeline in which the read-only bindings of the mask `shared` are read-write.
    fn pipeline(&self, gpu: &Gpu, shared: u32) -> Result<Pipeline> {
        let inner = &*self.inner;
        let mut pipelines = lock(&inner.pipelines);
        if let Some(pipeline) = pipelines.get(&shared) {
            return Ok(pipeline.clone());
        }
        let mut module = inner.module.clone();
        for (_, variable) in module.global_variables.iter_mut() {
            if let (Some(binding), naga::AddressSpace::Storage { access }) =
                (&variable.binding, &mut variable.space)
                && binding.group == 0
                && shared >> binding.binding & 1 == 1
            {
                *access |= naga::StorageAccess::STORE;
            }
        }
        let by_ring = module
            .global_variables
            .iter()
            .any(|(_, variable)| variable.space == naga::AddressSpace::Uniform);
        let pipeline = gpu.guarded(&inner.label, || {
            let device = gpu.device();
            let entry = |binding, ty, has_dynamic_offset| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None },
                count: None,
            };
            let entries: Vec<_> = (0u32..)
                .zip(&inner.writable)
                .map(|(number, &writable)| {
                    let read_only = !writable && shared >> number & 1 == 0;
                    entry(number, wgpu::BufferBindingType::Storage { read_only }, false)
                })
                .collect();
            let layout = |entries: &[wgpu::BindGroupLayoutEntry]| {
                device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                    label: Some(&inner.label),
                    entries,
                })
            };
            let bindings = layout(&entries);
            let params =
                by_ring.then(|| layout(&[entry(0, wgpu::BufferBindingType::Uniform, true)]));
            let groups: Vec<_> = std::iter::once(&bindings).chain(&params).map(Some).collect();
            let immediate_size = if by_ring { 0 } else { inner.params_bytes as u32 };
            let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(&inner.label),
                bind_group_layouts: &groups,
                immediate_size,
            });
            let shader = device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(&inner.label),
                source: wgpu::ShaderSource::Naga(std::borrow::Cow::Owned(module)),
            });
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&inner.label),
                layout: Some(&pipeline_layout),
                module: &shader,
                entry_point: None,
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &[],
                    // Kernels write workgroup memory before they read it. Clearing it costs time,
                    // and some drivers miscompile it.
                    zero_initialize_workgroup_memory: false,
                },
                cache: None,
            });
            Pipeline { pipeline, bindings, params }
        })?;
        pipelines.insert(shared, pipeline.clone());
        Ok(pipeline)
    }
}

/// What is bound. A range whose buffer no other binding of the dispatch shares is taken up to the
/// buffer's end where that fits into a binding: a tensor that grows within its buffer, as the keys
/// of a cache do, then needs one bind group for all its lengths.
///
/// With `exact`, the kernel asks for the lengths of its bindings, and they stay as they are.
fn ranges(gpu: &Gpu, bindings: &[Binding], exact: bool) -> Vec<Range> {
    let alone = |binding: &Binding| {
        let same = |other: &&Binding| other.storage.buffer == binding.storage.buffer;
        bindings.iter().filter(same).count() == 1
    };
    let range = |binding: &Binding| {
        let buffer = &binding.storage.buffer;
        let rest = (buffer.size() - binding.offset.min(buffer.size())) / 4 * 4;
        let whole = !exact && alone(binding) && rest <= gpu.capabilities().max_binding_bytes;
        let bytes = if whole { rest.max(binding.bytes) } else { binding.bytes };
        Range { storage: Arc::clone(&binding.storage), offset: binding.offset, bytes }
    };
    bindings.iter().map(range).collect()
}

/// Read-only bindings whose buffer is also written by the same dispatch, as a bit mask. wgpu
/// treats a written buffer as exclusive as a whole, so these have to be bound as read-write, which
/// is legal as long as the ranges are disjoint.
fn shared_with_written(writable: &[bool], bindings: &[Binding]) -> Result<u32, String> {
    let mut shared = 0;
    for (a, read) in bindings.iter().enumerate() {
        for (b, written) in bindings.iter().enumerate() {
            let same = a != b && writable[b] && read.storage.buffer == written.storage.buffer;
            if !same {
                continue;
            }
            if read.meets(written) {
                return Err(format!("bindings {a} and {b} overlap, and {b} is written"));
            }
            if !writable[a] {
                shared |= 1 << a;
            }
        }
    }
    Ok(shared)
}

fn label(name: &str, constants: &Constants) -> String {
    let mut label = name.to_string();
    for (constant, line) in &constants.lines {
        let value = line.split('=').nth(1).unwrap_or("").trim().trim_end_matches([';', 'u']);
        let _ = write!(label, " {}={value}", constant.to_lowercase());
    }
    for flag in &constants.flags {
        let _ = write!(label, " +{}", flag.to_lowercase());
    }
    label
}

/// The WGSL that is compiled: prelude, then the file with its directives carried out.
///
/// # Errors
/// A message naming the line of a directive that cannot be carried out.
pub fn expand(
    source: &KernelSource,
    constants: &Constants,
    immediate_params: bool,
) -> Result<String, String> {
    let mut text = String::new();
    for (_, line) in &constants.lines {
        text.push_str(line);
        text.push('\n');
    }
    if source.text.contains("struct Params") {
        text.push_str(if immediate_params {
            "var<immediate> params: Params;\n"
        } else {
            "@group(1) @binding(0) var<uniform> params: Params;\n"
        });
    }
    expand_text(source.name, source.text, source, constants, &mut text, 0)?;
    let lines: Vec<&str> = text.lines().collect();
    let mut unrolled = String::new();
    unroll(source.name, &lines, &products(&lines), &mut unrolled)?;
    Ok(unrolled)
}

/// Values of the lines `const NAME = a * b ..;` whose factors are numbers or such constants.
fn products<'a>(lines: &[&'a str]) -> HashMap<&'a str, u32> {
    let mut known = HashMap::new();
    for line in lines {
        let parts = line.strip_prefix("const ").and_then(|rest| rest.strip_suffix(';'));
        if let Some((name, expression)) = parts.and_then(|parts| parts.split_once(" = "))
            && let Some(value) = product(expression, &known)
        {
            known.insert(name, value);
        }
    }
    known
}

/// A product of numbers and known constants.
fn product(expression: &str, known: &HashMap<&str, u32>) -> Option<u32> {
    expression.split('*').map(str::trim).try_fold(1u32, |product, factor| {
        let number = || factor.trim_end_matches('u').parse().ok();
        product.checked_mul(known.get(factor).copied().or_else(number)?)
    })
}

/// Carries out `#unroll`, outer loops first.
fn unroll(
    name: &str,
    lines: &[&str],
    known: &HashMap<&str, u32>,
    output: &mut String,
) -> Result<(), String> {
    let mut rest = lines;
    while let Some((line, after)) = rest.split_first() {
        rest = after;
        if line.trim() != "#unroll" {
            output.push_str(line);
            output.push('\n');
            continue;
        }
        let (header, body) = rest.split_first().unwrap_or((&"", &[]));
        let (variable, count) = parse_loop(header, known)
            .ok_or_else(|| format!("{name}: #unroll cannot count {:?}", header.trim()))?;
        let mut depth = 1i64;
        let length = body
            .iter()
            .position(|line| {
                depth += line.matches('{').count() as i64 - line.matches('}').count() as i64;
                depth <= 0
            })
            .ok_or_else(|| format!("{name}: the loop {:?} does not end", header.trim()))?;
        for i in 0..count {
            let _ = writeln!(output, "{{ const {variable} = {i}u;");
            unroll(name, &body[..length], known, output)?;
            output.push_str("}\n");
        }
        rest = &body[length + 1..];
    }
    Ok(())
}

/// Variable and count of `for (var i = 0u; i < COUNT; i++) {`.
fn parse_loop<'a>(line: &'a str, known: &HashMap<&str, u32>) -> Option<(&'a str, u32)> {
    let inside = line.trim().strip_prefix("for (var ")?.strip_suffix("++) {")?;
    let mut parts = inside.split(';').map(str::trim);
    let variable = parts.next()?.strip_suffix("= 0u")?.trim();
    let count = parts.next()?.strip_prefix(variable)?.trim().strip_prefix('<')?;
    let same = parts.next()? == variable && parts.next().is_none();
    same.then_some((variable, product(count, known)?))
}

fn expand_text(
    name: &str,
    input: &str,
    source: &KernelSource,
    constants: &Constants,
    output: &mut String,
    depth: usize,
) -> Result<(), String> {
    if depth > 8 {
        return Err(format!("{name}: imports are nested too deeply"));
    }
    #[cfg(feature = "bench")]
    let input = crate::mutant::text(name, input)?;
    // For each open #ifdef: whether its current branch is kept.
    let mut branches: Vec<bool> = Vec::new();
    for (number, line) in (1..).zip(input.lines()) {
        let at = |message: &str| format!("{name}:{number}: {message}");
        let mut words = line.split_whitespace();
        match words.next() {
            Some("#ifdef") => {
                let flag = words.next().ok_or_else(|| at("#ifdef without a name"))?;
                branches.push(constants.flags.iter().any(|known| known == flag));
            }
            Some("#else") => match branches.last_mut() {
                Some(kept) => *kept = !*kept,
                None => return Err(at("#else without #ifdef")),
            },
            Some("#endif") => {
                branches.pop().ok_or_else(|| at("#endif without #ifdef"))?;
            }
            Some(directive)
                if directive.starts_with('#') && !["#import", "#unroll"].contains(&directive) =>
            {
                return Err(at(&format!("unknown directive {directive}")));
            }
            _ if branches.contains(&false) => {}
            Some("#import") => {
                let wanted = words.next().unwrap_or("").trim_matches('"');
                let known = source.imports.iter().find(|(known, _)| *known == wanted);
                let given = constants.snippets.iter().find(|(known, _)| known == wanted);
                let snippet = match (known, given) {
                    (Some((_, text)), _) => text,
                    (_, Some((_, text))) => text.as_str(),
                    _ => return Err(at(&format!("no snippet {wanted:?}"))),
                };
                expand_text(wanted, snippet, source, constants, output, depth + 1)?;
            }
            _ => {
                output.push_str(line);
                output.push('\n');
            }
        }
    }
    if branches.is_empty() { Ok(()) } else { Err(format!("{name}: #ifdef without #endif")) }
}

/// Access of the storage buffers of group 0 by binding number, which must be 0, 1, 2, ...
fn bindings(module: &naga::Module) -> Result<Vec<bool>, String> {
    let mut found = Vec::new();
    for (_, variable) in module.global_variables.iter() {
        if let (Some(binding), naga::AddressSpace::Storage { access }) =
            (&variable.binding, variable.space)
        {
            found.push((binding.binding, access.contains(naga::StorageAccess::STORE)));
        }
    }
    found.sort_unstable();
    if found.iter().zip(0..).any(|((number, _), expected)| *number != expected) {
        return Err("bindings of group 0 must be numbered 0, 1, 2, ..".into());
    }
    Ok(found.into_iter().map(|(_, writable)| writable).collect())
}

/// Bytes of the `params` variable, 0 without one.
fn params_size(module: &naga::Module) -> u64 {
    let mut variables = module.global_variables.iter();
    variables
        .find(|(_, variable)| variable.name.as_deref() == Some("params"))
        .map_or(0, |(_, variable)| u64::from(module.types[variable.ty].inner.size(module.to_ctx())))
}

/// Bytes of workgroup memory. wgpu does not check them against the limit.
fn workgroup_bytes(module: &naga::Module) -> u64 {
    let aligned = |bytes: u64| bytes.next_multiple_of(16);
    module
        .global_variables
        .iter()
        .filter(|(_, variable)| variable.space == naga::AddressSpace::WorkGroup)
        .map(|(_, variable)| {
            aligned(u64::from(module.types[variable.ty].inner.size(module.to_ctx())))
        })
        .sum()
}
