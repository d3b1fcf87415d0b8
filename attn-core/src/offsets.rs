//! Offsets of packed documents.

use crate::rows::reach;
use crate::{Error, Lengths, Result};

/// Index of the document that holds `position`; empty documents hold nothing.
pub(crate) fn document(cu: &[usize], position: i64) -> Option<usize> {
    let position = usize::try_from(position).ok()?;
    let after = cu.partition_point(|&offset| offset <= position);
    (after > 0 && after < cu.len()).then(|| after - 1)
}

/// The first document that is not empty (0 if there is none).
pub(crate) fn first_document(cu: &[usize]) -> usize {
    document(cu, 0).unwrap_or(0)
}

/// The last document that is not empty (0 if there is none).
pub(crate) fn last_document(cu: &[usize]) -> usize {
    cu.last().and_then(|&end| document(cu, reach(end) - 1)).unwrap_or(0)
}

/// Lengths of document `d`.
pub(crate) fn document_lengths(cu_q: &[usize], cu_k: &[usize], d: usize) -> Lengths {
    let len = |cu: &[usize]| match (cu.get(d), cu.get(d + 1)) {
        (Some(start), Some(end)) => end.saturating_sub(*start),
        _ => 0,
    };
    Lengths::new(len(cu_q), len(cu_k))
}

/// Refuses what are not the offsets of documents in `length` tokens.
pub(crate) fn check_offsets(arg: &'static str, cu: &[usize], length: usize) -> Result<()> {
    let expected = || format!("offsets that start at 0, never fall, and end at {length}");
    match (cu.first(), cu.last()) {
        (Some(0), Some(&last)) if last == length => {}
        (Some(0), Some(last)) => {
            return Err(Error::data(arg, expected(), format!("last offset {last}")));
        }
        (Some(first), _) => {
            return Err(Error::data(arg, expected(), format!("first offset {first}")));
        }
        _ => return Err(Error::data(arg, expected(), "no offset")),
    }
    if let Some(at) = cu.windows(2).position(|pair| pair[0] > pair[1]) {
        return Err(Error::data(arg, expected(), format!("{} after {}", cu[at + 1], cu[at])));
    }
    Ok(())
}
