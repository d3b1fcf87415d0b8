//! This crate's kernels, and how they are run.

use attn_wgpu::{
    Binding, Call, Capabilities, Constants, DeviceKind, Gpu, KernelSource, Result, Tensor, ops,
};

use crate::Activation;

macro_rules! kernels {
    ($($name:ident = $file:literal),* $(,)?) => {
        $(pub(super) const $name: KernelSource = KernelSource {
            name: $file,
            text: include_str!(concat!("../kernels/", $file, ".wgsl")),
            imports: ops::SNIPPETS,
        };)*
    };
}

kernels! {
    SHARES = "titans_shares",
    PAIRS = "titans_pairs",
    NETWORK = "titans_network",
    BACK = "titans_back",
    READ = "titans_read",
    UPDATE = "titans_update",
    BOUND = "titans_bound",
    ACTIVE = "titans_active",
    TAIL = "titans_tail",
    PAIRS_BACK = "titans_pairs_back",
    BOTH_BACK = "titans_both_back",
    READ_BACK = "titans_read_back",
    STORE_BACK = "titans_store_back",
    ERROR_BACK = "titans_error_back",
    UPDATE_BACK = "titans_update_back",
    STATE_DOTS = "titans_state_dots",
    BOUND_BACK = "titans_bound_back",
    CURVE = "titans_curve",
    RESIDUAL = "titans_residual",
    ROWS_BACK = "titans_rows_back",
    OUTER = "titans_outer",
    DOT = "titans_dot",
    GATES_COLUMNS = "titans_gates_columns",
    GATES_ROWS = "titans_gates_rows",
}

/// Snippets of this crate.
const OWN: [(&str, &str); 6] = [
    ("titans_each", include_str!("../kernels/titans_each.wgsl")),
    ("titans_fields", include_str!("../kernels/titans_fields.wgsl")),
    ("titans_piece", include_str!("../kernels/titans_piece.wgsl")),
    ("titans_slope", include_str!("../kernels/titans_slope.wgsl")),
    ("titans_shrink", include_str!("../kernels/titans_shrink.wgsl")),
    ("titans_by_rows", include_str!("../kernels/titans_by_rows.wgsl")),
];

/// One run of a kernel.
pub(super) struct Run<'a> {
    pub(super) source: &'a KernelSource,
    /// Between the layers of a memory; the last layer has none.
    pub(super) activation: Option<Activation>,
    /// What is bound, in order, each from the beginning of its binding on.
    pub(super) tensors: &'a [&'a Tensor],
    /// Invocations.
    pub(super) count: usize,
    /// Parameters behind the number of invocations.
    pub(super) params: &'a [u32],
    /// Steps of all loops of an invocation.
    pub(super) steps: usize,
    /// Operations of an invocation.
    pub(super) work: usize,
}

impl Run<'_> {
    /// Records it.
    pub(super) fn record(&self, gpu: &Gpu) -> Result<()> {
        let capabilities = gpu.capabilities();
        capabilities.check_steps(format!("`{}`", self.source.name), self.steps + 1)?;
        let count = u32::try_from(self.count).map_err(|_| {
            let expected = "fewer than 2^32 groups of four elements";
            attn_core::Error::config("tokens", expected, self.count)
        })?;
        let kernel = gpu.kernel(self.source, constants(capabilities, self.activation))?;
        let bindings: Vec<Binding> = self.tensors.iter().map(|tensor| tensor.binding().0).collect();
        let mut params = vec![count];
        params.extend(self.params);
        let call = Call {
            bindings: &bindings,
            params: bytemuck::cast_slice(&params),
            groups: u64::from(count).div_ceil(u64::from(workgroup(capabilities))),
            work: self.work as f64 * self.count as f64,
        };
        kernel.dispatch(gpu, &call)
    }
}

/// Invocations of a workgroup; they are independent.
fn workgroup(capabilities: &Capabilities) -> u32 {
    let wanted = if capabilities.kind == DeviceKind::Cpu { 16 } else { 64 };
    wanted.min(capabilities.max_workgroup_threads)
}

fn constants(capabilities: &Capabilities, activation: Option<Activation>) -> Constants {
    let constants = Constants::new().int("WORKGROUP", workgroup(capabilities));
    let snippet =
        |constants: Constants, (name, text): (&str, &str)| constants.snippet(name, text.to_owned());
    let constants = OWN.into_iter().fold(constants, snippet);
    let activation = match activation {
        None => return constants.flag("LAST", true),
        Some(Activation::Silu) => attn_wgpu::Activation::Silu,
        Some(Activation::Gelu) => attn_wgpu::Activation::Gelu,
    };
    activation.constants(constants)
}

/// This crate's kernels in the variants that a device gets, for tools that check them.
#[cfg(feature = "bench")]
pub fn kernels(capabilities: &Capabilities) -> Vec<attn_wgpu::catalogue::Entry> {
    let both = [Some(Activation::Silu), Some(Activation::Gelu)];
    let variants: [(KernelSource, &[Option<Activation>]); 24] = [
        (SHARES, &[None]),
        (PAIRS, &[None]),
        (NETWORK, &[None, both[0], both[1]]),
        (BACK, &both),
        (READ, &[None, both[0], both[1]]),
        (UPDATE, &[None]),
        (BOUND, &[None]),
        (ACTIVE, &both),
        (TAIL, &[None]),
        (PAIRS_BACK, &[None]),
        (BOTH_BACK, &[None]),
        (READ_BACK, &[None, both[0], both[1]]),
        (STORE_BACK, &[None]),
        (ERROR_BACK, &[None]),
        (UPDATE_BACK, &[None]),
        (STATE_DOTS, &[None]),
        (BOUND_BACK, &[None]),
        (CURVE, &both),
        (RESIDUAL, &[None]),
        (ROWS_BACK, &[None, both[0], both[1]]),
        (OUTER, &[None]),
        (DOT, &[None]),
        (GATES_COLUMNS, &[None]),
        (GATES_ROWS, &[None]),
    ];
    let entry = |source: KernelSource, activation: Option<Activation>| {
        let variant = activation.map_or("last".into(), |activation| format!("{activation:?}"));
        attn_wgpu::catalogue::Entry::new(source, constants(capabilities, activation), variant)
    };
    let all = variants.iter();
    all.flat_map(|&(source, of)| of.iter().map(move |&one| entry(source, one))).collect()
}
