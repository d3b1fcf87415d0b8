//! This crate's kernels, and how they are run.

use attn_wgpu::each::{self, Each, workgroup};
use attn_wgpu::{
    Capabilities, Constants, DeviceKind, Gpu, KernelSource, Result, Tensor, kernel_sources, ops,
};

use crate::Activation;

kernel_sources! {
    ops::SNIPPETS;
    SHARES = "titans_shares",
    PAIRS = "titans_pairs",
    NETWORK = "titans_network",
    BACK = "titans_back",
    READ = "titans_read",
    PACK = "titans_pack",
    TOKEN = "titans_token",
    UPDATE = "titans_update",
    CONV = "titans_conv",
    GATE = "titans_gate",
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
    DOTS = "titans_dots",
    GATES_COLUMNS = "titans_gates_columns",
    GATES_ROWS = "titans_gates_rows",
}

/// Snippets of this crate.
const OWN: [(&str, &str); 10] = [
    ("titans_fields", include_str!("../kernels/titans_fields.wgsl")),
    ("titans_own", include_str!("../kernels/titans_own.wgsl")),
    ("titans_piece", include_str!("../kernels/titans_piece.wgsl")),
    ("titans_held", include_str!("../kernels/titans_held.wgsl")),
    ("titans_later", include_str!("../kernels/titans_later.wgsl")),
    ("titans_products", include_str!("../kernels/titans_products.wgsl")),
    ("titans_rows", include_str!("../kernels/titans_rows.wgsl")),
    ("titans_shrink", include_str!("../kernels/titans_shrink.wgsl")),
    ("titans_slope", include_str!("../kernels/titans_slope.wgsl")),
    ("titans_tiles", include_str!("../kernels/titans_tiles.wgsl")),
];

/// How kernels that multiply rows split their work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tiles {
    /// Rows of an invocation.
    rows: u32,
    /// Lanes of a subgroup that share the loads of rows; 1 without subgroups.
    exchange: u32,
}

impl Tiles {
    /// For this many rows.
    ///
    /// Software drivers: an access of memory costs as much as many multiply-adds, so rows are many and stay in
    /// registers, which needs lanes that exchange values.
    pub(super) fn of(capabilities: &Capabilities, rows: usize) -> Tiles {
        let exchange = match (capabilities.kind, capabilities.subgroups) {
            (DeviceKind::Cpu, Some(subgroups)) if subgroups.min >= 8 => 8,
            (DeviceKind::Cpu, Some(subgroups)) if subgroups.min >= 4 => 4,
            _ => return Tiles { rows: 4, exchange: 1 },
        };
        let rows = match rows {
            ..=8 => 8,
            9..=16 => 16,
            _ => 32,
        };
        Tiles { rows, exchange }
    }

    /// Tiles of so many rows.
    pub(super) fn count(&self, rows: usize) -> usize {
        rows.div_ceil(self.rows as usize)
    }

    fn constants(&self, constants: Constants) -> Constants {
        constants
            .int("ROWS", self.rows)
            .int("EXCHANGE", self.exchange)
            .int("HELD", self.rows / self.exchange)
            .flag("SUBGROUP", self.exchange > 1)
    }
}

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
        let workgroup = workgroup(gpu.capabilities()) as usize;
        let constants = constants(gpu.capabilities(), self.activation);
        let work = self.work as f64 * self.count as f64;
        self.dispatch(gpu, constants, self.count.div_ceil(workgroup), work)
    }

    /// Records it with `count` tiles of rows by all `columns`, counted in groups of four; `work` is that of a
    /// row and such a group.
    pub(super) fn tiled(&self, gpu: &Gpu, tiles: Tiles, columns: usize) -> Result<()> {
        let groups = match tiles.exchange {
            1 => (self.count * columns).div_ceil(workgroup(gpu.capabilities()) as usize),
            lanes => self.count * columns.div_ceil(lanes as usize),
        };
        let work = self.work as f64 * (tiles.rows as usize * self.count * columns) as f64;
        self.dispatch(gpu, tiled(gpu.capabilities(), tiles, self.activation), groups, work)
    }

    fn dispatch(&self, gpu: &Gpu, constants: Constants, groups: usize, work: f64) -> Result<()> {
        let run = Each {
            source: self.source,
            flags: &[],
            tensors: self.tensors,
            count: self.count,
            params: self.params,
            steps: self.steps,
            work: self.work,
        };
        run.record_as(gpu, constants, groups, work)
    }
}

fn constants(capabilities: &Capabilities, activation: Option<Activation>) -> Constants {
    with_snippets(each::constants(capabilities, &[]), activation)
}

fn tiled(capabilities: &Capabilities, tiles: Tiles, activation: Option<Activation>) -> Constants {
    let lanes = if tiles.exchange > 1 { tiles.exchange } else { workgroup(capabilities) };
    with_snippets(tiles.constants(Constants::new().int("WORKGROUP", lanes)), activation)
}

/// With this crate's snippets and the activation, `None` being the last layer's.
pub(super) fn with_snippets(constants: Constants, activation: Option<Activation>) -> Constants {
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
    let plain: [(KernelSource, &[Option<Activation>]); 13] = [
        (CONV, &both[..1]),
        (GATE, &[None]),
        (SHARES, &[None]),
        (PACK, &[None]),
        (BOUND, &[None]),
        (ACTIVE, &both),
        (TAIL, &[None]),
        (STATE_DOTS, &[None]),
        (BOUND_BACK, &[None]),
        (DOT, &[None]),
        (DOTS, &[None]),
        (GATES_COLUMNS, &[None]),
        (GATES_ROWS, &[None]),
    ];
    let products: [(KernelSource, &[Option<Activation>], usize); 15] = [
        (PAIRS, &[None], 32),
        (NETWORK, &[None, both[0], both[1]], 32),
        (BACK, &both, 32),
        (READ, &[None, both[0], both[1]], 32),
        (UPDATE, &[None], 16),
        (PAIRS_BACK, &[None], 16),
        (BOTH_BACK, &[None], 16),
        (READ_BACK, &[None, both[0], both[1]], 16),
        (STORE_BACK, &[None], 16),
        (ERROR_BACK, &[None], 16),
        (UPDATE_BACK, &[None], 16),
        (CURVE, &both, 16),
        (RESIDUAL, &[None], 16),
        (ROWS_BACK, &[None, both[0], both[1]], 16),
        (OUTER, &[None], 16),
    ];
    let entry = |source: KernelSource, constants, name: String| {
        attn_wgpu::catalogue::Entry::new(source, constants, name)
    };
    let name = |activation: Option<Activation>| {
        activation.map_or("last".into(), |activation| format!("{activation:?}"))
    };
    let mut all = Vec::new();
    for activation in [None, both[0], both[1]] {
        let name = activation.map_or("one layer".into(), |activation| format!("{activation:?}"));
        all.push(entry(
            TOKEN,
            super::decode::constants(capabilities, activation, super::decode::LEAST_ROOM),
            name,
        ));
    }
    for (source, activations) in plain {
        all.extend(activations.iter().map(|&activation| {
            entry(source, constants(capabilities, activation), name(activation))
        }));
    }
    for (source, activations, most) in products {
        let mut sizes: Vec<Tiles> =
            [8, 16, 32].map(|rows: usize| Tiles::of(capabilities, rows.min(most))).into();
        sizes.dedup();
        for tiles in &sizes {
            all.extend(activations.iter().map(|&activation| {
                let name = format!("{}, {} rows", name(activation), tiles.rows);
                entry(source, tiled(capabilities, *tiles, activation), name)
            }));
        }
    }
    all
}
