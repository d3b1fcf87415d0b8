//! What a benchmark needs to know of a mechanism (feature `bench`), and the probes that its speed
//! is compared with. Nothing here takes the time: the caller chooses clock and repetitions.

use attn_core::AttentionShape;
use attn_core::dense::{self, Config};
use attn_core::ndarray::Array4;
use attn_core::testing::{HostArrays, HostInputs};

use crate::attention::{Attention, Inputs, Variant};
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernel::{Call, Constants, KernelSource};
use crate::ops::{self, SNIPPETS};
use crate::tensor::{DType, Tensor};

/// A mechanism that benchmarks can run: one registry line a paper.
pub trait Mechanism: Send + Sync {
    /// Name in tables and reports.
    fn name(&self) -> &'static str;

    /// Uploads the inputs and compiles what is needed.
    ///
    /// # Errors
    /// Those of the device, and of inputs that the mechanism does not take.
    fn prepare(&self, gpu: &Gpu, inputs: &HostInputs, config: &Config)
    -> Result<Box<dyn Prepared>>;

    /// The outputs of the queries `rows` in f64, `[batch, heads, rows, dim_v]`.
    ///
    /// # Errors
    /// Those of inputs that the mechanism does not take.
    fn reference(
        &self,
        inputs: &HostArrays,
        config: &Config,
        rows: &[usize],
    ) -> attn_core::Result<Array4<f64>>;

    /// Floating-point operations of one run.
    fn flops(&self, shape: &AttentionShape, config: &Config) -> f64;

    /// Bytes that one run has to move at least: inputs read once, outputs written once.
    fn bytes(&self, shape: &AttentionShape, config: &Config) -> f64;
}

/// A mechanism with its inputs on a device.
pub trait Prepared {
    /// Records one run and returns its output `[batch, heads, queries, dim_v]`.
    ///
    /// # Errors
    /// Those of the device.
    fn record(&self) -> Result<Tensor>;

    /// The variant that runs, as kernel labels spell it.
    fn variant(&self) -> String;
}

/// Dense attention, the baseline of all others.
#[derive(Debug, Clone, Copy, Default)]
pub struct DenseAttention;

struct PreparedDense {
    attention: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Mechanism for DenseAttention {
    fn name(&self) -> &'static str {
        "dense"
    }

    fn prepare(
        &self,
        gpu: &Gpu,
        inputs: &HostInputs,
        config: &Config,
    ) -> Result<Box<dyn Prepared>> {
        let shape = inputs.shape;
        Ok(Box::new(PreparedDense {
            attention: Attention::new(gpu, config.clone())?,
            q: Tensor::from_slice(gpu, &inputs.q, &shape.q())?,
            k: Tensor::from_slice(gpu, &inputs.k, &shape.k())?,
            v: Tensor::from_slice(gpu, &inputs.v, &shape.v())?,
        }))
    }

    fn reference(
        &self,
        inputs: &HostArrays,
        config: &Config,
        rows: &[usize],
    ) -> attn_core::Result<Array4<f64>> {
        Ok(dense::forward_rows(inputs.view(), config, rows)?.out)
    }

    fn flops(&self, shape: &AttentionShape, config: &Config) -> f64 {
        shape.flops(&config.mask)
    }

    fn bytes(&self, shape: &AttentionShape, _config: &Config) -> f64 {
        let elements = |shape: [usize; 4]| shape.into_iter().product::<usize>();
        let qkv = elements(shape.q()) + elements(shape.k()) + elements(shape.v());
        let lse = shape.batch * shape.heads * shape.queries;
        4.0 * (qkv + elements(shape.out()) + lse) as f64
    }
}

impl Prepared for PreparedDense {
    fn record(&self) -> Result<Tensor> {
        let (q, k, v) = (&self.q, &self.k, &self.v);
        Ok(self.attention.forward(Inputs { q, k, v })?.out)
    }

    fn variant(&self) -> String {
        let [_, _, queries, dim_qk] = [0, 1, 2, 3].map(|d| self.q.shape()[d]);
        let capabilities = self.q.gpu().capabilities();
        Variant::choose(dim_qk, self.v.shape()[3], queries, capabilities).to_string()
    }
}

/// Independent fused multiply-adds in registers: the speed that no kernel exceeds.
pub struct FmaProbe {
    gpu: Gpu,
    sums: Tensor,
    workgroup: u32,
}

/// Accumulators of an invocation, and FMAs on each in one round: enough that neither the latency of
/// an FMA nor the loop around it counts.
const CHAINS: u32 = 16;
const STEPS: u32 = 4;
const ROUNDS: u32 = 512;

impl FmaProbe {
    const SOURCE: KernelSource = KernelSource {
        name: "probe_fma",
        text: include_str!("../kernels/probe_fma.wgsl"),
        imports: SNIPPETS,
    };

    /// A probe that keeps the whole device busy for some milliseconds.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(gpu: &Gpu) -> Result<FmaProbe> {
        let workgroup = ops::workgroup(gpu.capabilities());
        let invocations = match gpu.capabilities().kind {
            crate::DeviceKind::Cpu => 1 << 12,
            _ => 1 << 18,
        };
        let sums = Tensor::uninit(gpu, &[invocations], DType::F32)?;
        Ok(FmaProbe { gpu: gpu.clone(), sums, workgroup })
    }

    /// Records one run.
    ///
    /// # Errors
    /// Those of the device.
    pub fn record(&self) -> Result<()> {
        let constants = Constants::new()
            .int("WORKGROUP", self.workgroup)
            .int("CHAINS", CHAINS)
            .int("STEPS", STEPS);
        let kernel = self.gpu.kernel(&Self::SOURCE, constants)?;
        // Neither factor nor term may be a value that the compiler can do without.
        let params = [ROUNDS, 0.999f32.to_bits(), 0.001f32.to_bits()];
        kernel.dispatch(
            &self.gpu,
            &Call {
                bindings: &[self.sums.binding().0],
                params: bytemuck::cast_slice(&params),
                groups: (self.sums.len() / self.workgroup as usize) as u64,
                work: self.flops(),
            },
        )
    }

    /// Floating-point operations of one run: two an FMA.
    pub fn flops(&self) -> f64 {
        self.sums.len() as f64 * f64::from(CHAINS * STEPS * ROUNDS) * 4.0 * 2.0
    }
}

/// A copy of memory in order: the bandwidth that no kernel exceeds.
pub struct CopyProbe {
    source: Tensor,
    copied: Tensor,
}

impl CopyProbe {
    const SOURCE: KernelSource = KernelSource {
        name: "probe_copy",
        text: include_str!("../kernels/probe_copy.wgsl"),
        imports: SNIPPETS,
    };

    /// A copy of 64 MiB, or as much as one binding holds.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(gpu: &Gpu) -> Result<CopyProbe> {
        let bytes = gpu.capabilities().max_binding_bytes.min(64 << 20) as usize;
        let elements = bytes / 16 * 4;
        let source = Tensor::full(gpu, &[elements], 1f32)?;
        let copied = Tensor::uninit(gpu, &[elements], DType::F32)?;
        Ok(CopyProbe { source, copied })
    }

    /// Records one run.
    ///
    /// # Errors
    /// Those of the device.
    pub fn record(&self) -> Result<()> {
        let gpu = self.source.gpu();
        let (workgroup, items) = (ops::workgroup(gpu.capabilities()), 8);
        let constants = Constants::new().int("WORKGROUP", workgroup).int("ITEMS", items);
        let kernel = gpu.kernel(&Self::SOURCE, constants)?;
        let count = (self.source.len() / 4) as u32;
        kernel.dispatch(
            gpu,
            &Call {
                bindings: &[self.source.binding().0, self.copied.binding().0],
                params: bytemuck::bytes_of(&count),
                groups: u64::from(count.div_ceil(workgroup * items)),
                work: 0.0,
            },
        )
    }

    /// Bytes that one run reads and writes.
    pub fn bytes(&self) -> f64 {
        2.0 * 4.0 * self.source.len() as f64
    }
}
