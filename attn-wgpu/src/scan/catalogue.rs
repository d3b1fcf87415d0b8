//! The kernels that scan, in the variants that devices get.

use super::columns::{self, COLUMNS};
use super::constants;
use super::dots::{self, DOT};
use super::recurrence::{self, RECURRENCE};
use super::softmax::{self, SOFTMAX};
use crate::capabilities::Capabilities;
use crate::rows::Sharing;
use crate::rows::catalogue::Variant;
use crate::tensor::DType;

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const BOTH: [bool; 2] = [false, true];

/// Every variant of every kernel.
pub(crate) fn variants(capabilities: &Capabilities) -> Vec<Variant> {
    let mut list = Vec::new();
    let constants = || constants(capabilities);
    for dtype in TYPES {
        for bits in 0..16u8 {
            let bit = |n: u8| bits >> n & 1 == 1;
            let (totals, base) = (bit(0), bit(3));
            if totals && base {
                continue;
            }
            let form =
                recurrence::Form { dtype, totals, coefficients: bit(1), reversed: bit(2), base };
            list.push((RECURRENCE, form.constants(constants()), format!("{form:?}")));
        }
        for weights in BOTH {
            let words = format!("{}, weights {weights}", dtype.name());
            list.push((COLUMNS, columns::flags(weights, dtype, constants()), words));
        }
        for out in [None, Some(DType::F32), Some(DType::F16), Some(DType::BF16)] {
            for base in BOTH {
                let form = softmax::Form { v: dtype, out, base };
                list.push((SOFTMAX, form.constants(constants()), format!("{form:?}")));
            }
        }
    }
    for (first, other) in BOTH.into_iter().flat_map(|first| BOTH.map(|other| (first, other))) {
        let words = format!("first {first}, coefficients {other}");
        let totals = recurrence::totals_constants(other, first, constants());
        list.push((recurrence::TOTALS, totals, words));
        let words = format!("first {first}, last {other}");
        list.push((softmax::TOTALS, softmax::totals_constants(first, other, constants()), words));
    }
    dots(&mut list, capabilities);
    list
}

/// Types are combined for the sharing of common widths.
fn dots(list: &mut Vec<Variant>, capabilities: &Capabilities) {
    let common = Sharing::new(64, dots::PASSES, capabilities);
    let mut seen = Vec::new();
    for bits in 0..=24 {
        let sharing = Sharing::new(1 << bits, dots::PASSES, capabilities);
        if seen.contains(&sharing) {
            continue;
        }
        seen.push(sharing);
        let types: &[DType] = if sharing == common { &TYPES } else { &TYPES[..1] };
        for (&x, &y) in types.iter().flat_map(|x| types.iter().map(move |y| (x, y))) {
            for valid in BOTH {
                let words =
                    format!("{} lanes, {} {}, valid {valid}", sharing.lanes, x.name(), y.name());
                list.push((DOT, dots::constants(&sharing, [x, y], valid), words));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::scan::{
        Columns, Recurrence, RowDot, column_sums, recurrence as scan, row_dot, softmax_fold,
        softmax_scan,
    };
    use crate::{Gpu, Result, Tensor, testing};

    /// Calls that need every kernel.
    fn calls(gpu: &Gpu) -> Result<()> {
        for tokens in [3, 70] {
            for dtype in [DType::F32, DType::F16] {
                let x = Tensor::zeros(gpu, &[1, 2, tokens, 64], dtype)?;
                let a = Tensor::zeros(gpu, &[1, 2, tokens], DType::F32)?;
                let first = Tensor::zeros(gpu, &[1, 2, 64], DType::F32)?;
                let valid = Tensor::zeros(gpu, &[1, tokens], DType::U32)?;
                for first in [None, Some(&first)] {
                    scan(Recurrence::new(&x).with_first(first))?;
                    scan(Recurrence::new(&x).with_first(first).with_coefficients(&a).reversed())?;
                }
                column_sums(Columns::new(&x))?;
                column_sums(Columns::new(&x).with_weights(&a))?;
                row_dot(RowDot::new(&x, &x))?;
                row_dot(RowDot::new(&x, &x).with_valid(Some(&valid), 0.0))?;
                let state = softmax_scan(&a, &x, None, dtype)?.last;
                softmax_scan(&a, &x, Some(&state), DType::BF16)?;
                softmax_fold(&a, &x, Some(&state))?;
            }
        }
        Ok(())
    }

    #[test]
    fn what_runs_is_listed() {
        let Some(gpu) = testing::open() else { return };
        let ((), profile) = gpu.profile(|| calls(&gpu)).unwrap();
        let ran: HashSet<String> = profile.kernels.into_iter().map(|time| time.kernel).collect();
        let label = |(source, constants, _): Variant| {
            gpu.kernel(&source, constants).unwrap().label().to_string()
        };
        let listed: HashSet<String> = variants(gpu.capabilities()).into_iter().map(label).collect();
        let ours = |label: &&String| label.starts_with("scan_") || label.starts_with("row_dot");
        let ours: Vec<_> = ran.iter().filter(ours).collect();
        assert!(ours.len() > 10, "{ran:?}");
        for label in ours {
            assert!(listed.contains(label), "{label} runs and is not listed");
        }
    }
}
