//! What the tests of small kernels share.

use attn_wgpu::{DType, Tensor};
use half::{bf16, f16};
use proptest::prelude::*;

use super::download;

/// Types that floats are stored in.
pub fn floats() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)]
}

/// The values as a storage type holds them.
pub fn round(data: &[f32], dtype: DType) -> Vec<f32> {
    let round = |&x: &f32| match dtype {
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::BF16 => bf16::from_f32(x).to_f32(),
        _ => x,
    };
    data.iter().map(round).collect()
}

/// The elements' bits.
pub fn bits(tensor: &Tensor) -> Vec<u32> {
    download(tensor).unwrap().iter().map(|x| x.to_bits()).collect()
}

/// Holds a result to bounds relative to each element and to 1, widened by half a unit of the storage
/// type.
pub fn close(
    what: &str,
    got: &Tensor,
    want: &[f64],
    relative: f64,
    absolute: f64,
) -> Result<(), TestCaseError> {
    let got_values = download(got).unwrap();
    prop_assert_eq!(got_values.len(), want.len(), "{}", what);
    let (unit, smallest) = match got.dtype() {
        DType::F16 => (0.5f64.powi(11), 0.5f64.powi(25)),
        DType::BF16 => (0.5f64.powi(8), 0.0),
        _ => (0.0, 0.0),
    };
    for (i, (&got, &want)) in got_values.iter().zip(want).enumerate() {
        let bound = (relative + unit) * want.abs() + absolute + smallest;
        let error = (f64::from(got) - want).abs();
        prop_assert!(error <= bound, "{} {}: {} instead of {}", what, i, got, want);
    }
    Ok(())
}
