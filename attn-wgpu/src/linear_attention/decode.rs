//! The next token of each sequence.

use super::call::{Call, check_state, is_empty};
use super::{Inputs, LinearAttention};
use crate::capabilities::{Capabilities, DeviceKind};
use crate::error::Result;
use crate::kernel::{Call as Dispatch, Constants, KernelSource};
use crate::rows::{Place, SNIPPETS, bind, check_device, check_form, storage};
use crate::target::Target;
use crate::tensor::{DType, Tensor};

pub(super) const DECODE: KernelSource = KernelSource {
    name: "linear_decode",
    text: include_str!("../../kernels/linear_decode.wgsl"),
    imports: SNIPPETS,
};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    entries: u32,
    heads: u32,
    group: u32,
    first_head: u32,
    powers: u32,
    depth4: u32,
    width4: u32,
    column_tiles: u32,
    places: [Place; 5],
}

/// Chunks of columns of a workgroup, and lanes of a chunk.
fn lanes(capabilities: &Capabilities) -> [u32; 2] {
    match capabilities.kind {
        DeviceKind::Cpu => [8, 1],
        _ => [16, 8],
    }
}

pub(super) fn constants(dtype: DType, capabilities: &Capabilities) -> Constants {
    let [columns, parts] = lanes(capabilities);
    let constants = Constants::new().int("COLUMNS", columns).int("PARTS", parts);
    storage(constants.flag("SHARED", parts > 1), dtype, None)
}

impl LinearAttention {
    /// Records the next tokens of each sequence: `out` gets their outputs, and the state `kv`
    /// `[batch, heads, dim_qk, dim_v]` goes on in place. `inputs.kv` must be absent.
    ///
    /// One token costs a pass over the state, whatever went before; several are a short block.
    ///
    /// # Errors
    /// As [`LinearAttention::forward_into`], and [`attn_core::Error::Config`] for a state among the
    /// inputs.
    pub fn decode_into(&self, inputs: Inputs<'_>, kv: &Tensor, out: &Tensor) -> Result<()> {
        if inputs.kv.is_some() {
            let expected = "none: it is the one that goes on";
            return Err(attn_core::Error::config("inputs.kv", expected, "some").into());
        }
        let call = Call::new(&self.gpu, self.slopes.len(), inputs)?;
        check_state("kv", &self.gpu, kv, &call.shape)?;
        check_device("out", out, &self.gpu)?;
        check_form("out", out, &call.shape.out(), call.dtype())?;
        let [depth4, width4] = call.dims4();
        let in_place = kv.is_contiguous()
            && call.shape.dim_qk == 4 * depth4
            && call.shape.dim_v == 4 * width4
            && kv.buffer().1.is_multiple_of(4);
        if call.shape.queries != 1 || is_empty(&call.shape) || !in_place || !self.fits(kv) {
            return self.forward_into(inputs.with_state(kv), out, kv);
        }
        let target = Target::of("out", out, &[])?;
        self.token(&call, kv, &target.written)?;
        target.finish()?;
        Ok(())
    }

    fn fits(&self, kv: &Tensor) -> bool {
        kv.binding().0.bytes <= self.gpu.capabilities().max_binding_bytes
    }

    fn token(&self, call: &Call, kv: &Tensor, out: &Tensor) -> Result<()> {
        let shape = &call.shape;
        let capabilities = self.gpu.capabilities();
        let [depth4, width4] = call.dims4();
        let column_tiles = width4.div_ceil(lanes(capabilities)[0] as usize);
        let state = kv.reshape(&[shape.batch, shape.heads, 1, call.state_len()])?;
        let bound = [&call.q, &call.k, &call.v, &state, out].map(bind);
        let places = bound.each_ref().map(|(_, place)| *place);
        let [q, k, v, state, out] = bound.map(|(binding, _)| binding);
        let params = Params {
            entries: (shape.batch * shape.heads) as u32,
            heads: shape.heads as u32,
            group: shape.group() as u32,
            first_head: 0,
            powers: (self.block + 1) as u32,
            depth4: depth4 as u32,
            width4: width4 as u32,
            column_tiles: column_tiles as u32,
            places,
        };
        let kernel = self.gpu.kernel(&DECODE, constants(call.dtype(), capabilities))?;
        let dispatch = Dispatch {
            bindings: &[q, k, v, self.powers.binding().0, state, out],
            params: bytemuck::bytes_of(&params),
            groups: (shape.batch * shape.heads * column_tiles) as u64,
            work: 6.0 * kv.len() as f64,
        };
        kernel.dispatch(&self.gpu, &dispatch)
    }
}
