//! Products of rows.

use super::{bound, check_numbers, check_rows, group_of, numbers};
use crate::error::Result;
use crate::kernel::{Call, Constants, KernelSource};
use crate::rows::{self, Extents, Place, Sharing};
use crate::tensor::{DType, Tensor};

pub(crate) const DOT: KernelSource = KernelSource {
    name: "row_dot",
    text: include_str!("../../kernels/row_dot.wgsl"),
    imports: rows::SNIPPETS,
};

/// Loops over a row.
pub(crate) const PASSES: usize = 1;

/// `factor sum (x + shift) (y + shift)` over the last dimension of rows.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct RowDot<'a> {
    /// `[batch, heads_x, tokens, width]`, f32 or a half type; `heads_x` divides the number of heads.
    pub x: &'a Tensor,
    /// `[batch, heads_y, tokens, width]`, f32 or a half type. Extents of 1 in the batch and the tokens of
    /// either are repeated.
    pub y: &'a Tensor,
    /// Of the result. Default: 1.
    pub factor: f32,
    /// Added to every element. Default: 0.
    pub shift: f32,
    /// Which rows count, u32 `[batch, tokens]`, and the result of the others. Default: all.
    pub valid: Option<(&'a Tensor, f32)>,
}

impl<'a> RowDot<'a> {
    /// The plain products.
    pub fn new(x: &'a Tensor, y: &'a Tensor) -> Self {
        RowDot { x, y, factor: 1.0, shift: 0.0, valid: None }
    }

    /// With a factor of the result.
    pub fn with_factor(self, factor: f32) -> Self {
        RowDot { factor, ..self }
    }

    /// With something added to every element.
    pub fn with_shift(self, shift: f32) -> Self {
        RowDot { shift, ..self }
    }

    /// With `masked` for rows where `valid` u32 `[batch, tokens]` is 0. Their elements do not matter.
    pub fn with_valid(self, valid: Option<&'a Tensor>, masked: f32) -> Self {
        RowDot { valid: valid.map(|valid| (valid, masked)), ..self }
    }

    fn shape(&self) -> Result<[usize; 3]> {
        let gpu = self.x.gpu();
        let [batch_x, heads_x, tokens_x, width] = check_rows("x", self.x, gpu)?;
        let [batch_y, heads_y, tokens_y, width_y] = check_rows("y", self.y, gpu)?;
        let heads = heads_x.max(heads_y);
        group_of("x", heads_x, heads, self.x.shape())?;
        group_of("y", heads_y, heads, self.y.shape())?;
        let extent =
            |x: usize, y: usize| (x == y || x == 1 || y == 1).then_some(if x == 1 { y } else { x });
        match (extent(batch_x, batch_y), extent(tokens_x, tokens_y)) {
            (Some(batch), Some(tokens)) if width == width_y => {
                if let Some((valid, _)) = self.valid {
                    rows::check_device("valid", valid, gpu)?;
                    rows::check_form("valid", valid, &[batch, tokens], DType::U32)?;
                }
                Ok([batch, heads, tokens])
            }
            _ => {
                let expected = format!("extents as x {:?}, or 1", self.x.shape());
                Err(attn_core::Error::shape("y", expected, self.y.shape()).into())
            }
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    extents: Extents,
    x: Place,
    y: Place,
    out: Place,
    group_x: u32,
    group_y: u32,
    factor: f32,
    shift: f32,
    valid: Place,
    masked: f32,
}

/// The products of rows with rows, f32 `[batch, heads, tokens]`.
///
/// # Errors
/// [`attn_core::Error`] for shapes or types that do not fit; errors of the device.
pub fn row_dot(call: RowDot<'_>) -> Result<Tensor> {
    let shape = call.shape()?;
    let out = Tensor::uninit(call.x.gpu(), &shape, DType::F32)?;
    row_dot_into(call, &out)?;
    Ok(out)
}

/// [`row_dot`] into a caller's f32 `[batch, heads, tokens]`, with any strides. It must not overlap the
/// inputs.
///
/// # Errors
/// As [`row_dot`], and [`attn_core::Error`] for a target of another shape or type.
pub fn row_dot_into(call: RowDot<'_>, out: &Tensor) -> Result<()> {
    let [batch, heads, tokens] = call.shape()?;
    let (gpu, width) = (call.x.gpu(), call.x.shape()[3]);
    check_numbers("out", out, &[batch, heads, tokens], gpu)?;
    if out.is_empty() {
        return Ok(());
    }
    let sharing = Sharing::new(width, PASSES, gpu.capabilities());
    sharing.check("row_dot", width, PASSES, gpu)?;
    let constants = constants(&sharing, [call.x.dtype(), call.y.dtype()], call.valid.is_some());
    let kernel = gpu.kernel(&DOT, constants)?;
    let spread = |x: &Tensor| -> Result<Tensor> {
        let x = rows::source(x)?;
        let (heads, width) = (x.shape()[1], x.shape()[3]);
        x.expand(&[batch, heads, tokens, width])
    };
    let (x, y, out) = (spread(call.x)?, spread(call.y)?, numbers(out));
    let groups = [&x, &y].map(|x| heads / x.shape()[1]);
    let mut tensors = vec![&out, &x, &y];
    let valid = call.valid.map(|(valid, _)| {
        let strides = valid.strides();
        valid.with_layout(&[batch, heads, tokens, 1], &[strides[0], 0, strides[1], 1])
    });
    tensors.extend(&valid);
    rows::windows(&tensors, super::splittable(groups[0].max(groups[1])), &mut |windows| {
        let [out, x, y, valid @ ..] = windows else { return Ok(()) };
        let (x_binding, x_place) = bound(x, 4);
        let (y_binding, y_place) = bound(y, 4);
        let (out_binding, out_place) = bound(out, 1);
        let mut bindings = vec![x_binding, y_binding, out_binding];
        let mut valid_place = [0; 4];
        if let [valid] = valid {
            let (binding, place) = bound(valid, 1);
            bindings.push(binding);
            valid_place = place;
        }
        let params = Params {
            extents: Extents::of(out, width),
            x: x_place,
            y: y_place,
            out: out_place,
            group_x: groups[0] as u32,
            group_y: groups[1] as u32,
            factor: call.factor,
            shift: call.shift,
            valid: valid_place,
            masked: call.valid.map_or(0.0, |(_, masked)| masked),
        };
        let groups = sharing.groups(params.extents.rows);
        let (params, work) = (bytemuck::bytes_of(&params), 4.0 * (out.len() * width) as f64);
        kernel.dispatch(gpu, &Call { bindings: &bindings, params, groups, work })
    })
}

pub(crate) fn constants(sharing: &Sharing, [x, y]: [DType; 2], valid: bool) -> Constants {
    rows::storage(sharing.constants(), x, Some(y)).flag("VALID", valid)
}
