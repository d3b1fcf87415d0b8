//! Which tokens each centroid takes, on a device.

use attn_core::plan::SparsePlan;
use attn_wgpu::matmul::{Epilogue, matmul_into};
use attn_wgpu::select::{Chosen, Wanted, counting_sort, popcount_rows, top_k_rows};
use attn_wgpu::{DType, Result, Tensor};
use ndarray::Array3;

use super::Extents;
use super::kernels::{Each, NEAREST, NUMBER};
use crate::{Config, reference};

/// Behind the members of a centroid that has fewer than `window`, and the centroid of padding.
pub(super) const NONE: u32 = u32::MAX;

/// Which tokens each centroid takes. Cheap to clone.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Routes {
    /// Queries of each centroid, rising, u32 `[batch, heads, clusters, min(window, tokens)]`;
    /// `u32::MAX` behind the last one, which only padding makes possible.
    pub queries: Tensor,
    /// Keys of each centroid, as the queries.
    pub keys: Tensor,
    /// The centroids of queries and of keys.
    assigned: [Assigned; 2],
    pub(super) extents: Extents,
    /// Whether keys are the queries.
    pub(super) shared: bool,
    /// Whether a token sees only itself and earlier ones.
    causal: bool,
    /// Whether there may be padding.
    pub(super) padded: bool,
    /// The row of each slot of the queries among all tokens, `[slots]`.
    pub(super) rows: Tensor,
    /// Slots of each of these rows.
    pub(super) slots: Slots,
}

/// The centroid of largest score of each token. Only training asks for it, so it is found then, except
/// where padding has to be told apart for the choice of tokens.
#[derive(Debug, Clone)]
enum Assigned {
    Found(Tensor),
    Scores(Tensor),
}

/// The way from a row back to its slots.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    /// Slots of row `r` are `order[offsets[r] .. offsets[r + 1]]`, rising; `[rows + 1]`.
    pub(super) offsets: Tensor,
    /// `[slots]`.
    pub(super) order: Tensor,
}

impl Slots {
    /// Of slots that hold the numbers of `count` rows, or `NONE`.
    pub(super) fn new(rows: &Tensor, count: usize) -> Result<Slots> {
        let sorted = counting_sort(rows, count)?;
        Ok(Slots { offsets: sorted.offsets, order: sorted.order })
    }
}

/// Numbers below `width` in each of `planes` planes as numbers in all of them, `[numbers]`.
pub(super) fn numbered(given: &Tensor, planes: usize, width: usize) -> Result<Tensor> {
    let count = given.len();
    let out = Tensor::uninit(given.gpu(), &[count], DType::U32)?;
    let each = count.checked_div(planes).unwrap_or(0);
    let run = Each {
        source: &NUMBER,
        flags: &[],
        tensors: &[given, &out],
        count,
        params: &[each as u32, width as u32],
        steps: 1,
        work: 4,
    };
    run.record(given.gpu())?;
    Ok(out)
}

impl Routes {
    /// Steps 3 and 4 for normalised rows `[batch, heads, tokens, dim]`.
    pub(super) fn new(
        normed: [&Tensor; 2],
        valid: Option<&Tensor>,
        means: &Tensor,
        extents: Extents,
        config: &Config,
    ) -> Result<Routes> {
        let (window, causal) = (config.window, config.causal);
        let [q, k] = normed;
        let shared = std::ptr::eq(q, k);
        let (queries, by_query) = side(q, valid, means, &extents, window)?;
        let (keys, by_key) = match shared {
            true => (queries.clone(), by_query.clone()),
            false => side(k, valid, means, &extents, window)?,
        };
        let rows = numbered(&queries, extents.planes(), extents.tokens)?;
        let slots = Slots::new(&rows, extents.planes() * extents.tokens)?;
        let padded = valid.is_some();
        Ok(Routes {
            queries,
            keys,
            assigned: [by_query, by_key],
            extents,
            shared,
            causal,
            padded,
            rows,
            slots,
        })
    }

    /// The centroid of largest score of each query, u32 `[batch, heads, tokens]`; `u32::MAX` for
    /// padding.
    ///
    /// # Errors
    /// Those of the device.
    pub fn assigned_q(&self) -> Result<Tensor> {
        self.assigned[0].found(&self.extents)
    }

    /// Of each key.
    ///
    /// # Errors
    /// Those of the device.
    pub fn assigned_k(&self) -> Result<Tensor> {
        self.assigned[1].found(&self.extents)
    }

    /// The row of each slot of the keys.
    pub(super) fn key_rows(&self) -> Result<Tensor> {
        match self.shared {
            true => Ok(self.rows.clone()),
            false => numbered(&self.keys, self.extents.planes(), self.extents.tokens),
        }
    }

    /// Tokens that a centroid takes.
    pub(super) fn width(&self) -> usize {
        self.queries.shape()[3]
    }

    /// Copies the routes to the host. Waits for the device.
    ///
    /// # Errors
    /// Those of the device.
    pub fn read(&self) -> Result<reference::Routes> {
        let Extents { batch, heads, tokens, clusters, .. } = self.extents;
        let members = |tensor: &Tensor| -> Result<Vec<Vec<Vec<usize>>>> {
            let words = tensor.to_vec::<u32>()?;
            let width = self.width();
            let of = |list: usize| -> Vec<usize> {
                let list = &words[list * width..(list + 1) * width];
                list.iter().filter(|&&token| token != NONE).map(|&token| token as usize).collect()
            };
            let plane = |plane| (0..clusters).map(|c| of(plane * clusters + c)).collect();
            Ok((0..batch * heads).map(plane).collect())
        };
        let assigned = |tensor: &Tensor| -> Result<Array3<Option<usize>>> {
            let words = tensor.to_vec::<u32>()?;
            Ok(Array3::from_shape_fn((batch, heads, tokens), |(entry, head, token)| {
                let word = words[(entry * heads + head) * tokens + token];
                (word != NONE).then_some(word as usize)
            }))
        };
        let offsets = self.slots.offsets.to_vec::<u32>()?;
        let counts = Array3::from_shape_fn((batch, heads, tokens), |(entry, head, token)| {
            let row = (entry * heads + head) * tokens + token;
            (offsets[row + 1] - offsets[row]) as usize
        });
        Ok(reference::Routes {
            queries: members(&self.queries)?,
            keys: members(&self.keys)?,
            counts,
            assigned_q: assigned(&self.assigned_q()?)?,
            assigned_k: assigned(&self.assigned_k()?)?,
        })
    }

    /// The routes as a plan, for statistics: a group for each centroid, and the mean over the groups of
    /// a query. Waits for the device.
    ///
    /// # Errors
    /// Those of the device.
    pub fn plan(&self) -> Result<SparsePlan> {
        Ok(self.read()?.plan(self.causal)?)
    }
}

impl Assigned {
    fn found(&self, extents: &Extents) -> Result<Tensor> {
        match self {
            Assigned::Found(assigned) => Ok(assigned.clone()),
            Assigned::Scores(scores) => nearest(scores, None, extents),
        }
    }
}

/// Members of each centroid, and the centroid of each token, of one side.
fn side(
    x: &Tensor,
    valid: Option<&Tensor>,
    means: &Tensor,
    extents: &Extents,
    window: usize,
) -> Result<(Tensor, Assigned)> {
    let Extents { batch, heads, tokens, clusters, .. } = *extents;
    let all = scores(x, means, extents)?;
    let assigned = match valid {
        None => Assigned::Scores(all.clone()),
        // Scores of padding fall below all others.
        Some(_) => Assigned::Found(nearest(&all, valid, extents)?),
    };
    let width = window.min(tokens);
    let wanted = match valid {
        None => None,
        Some(valid) => {
            let counts = popcount_rows(valid)?.split(0, &[batch, 1, 1])?;
            Some(counts.expand(&[batch, heads, clusters])?.contiguous()?)
        }
    };
    let wanted = wanted.as_ref().map_or(Wanted::Same(width), Wanted::Each);
    let Chosen { indices, .. } = top_k_rows(&all.narrow(3, 0, tokens)?, wanted, width)?;
    Ok((indices, assigned))
}

/// Step 3: `[batch, heads, clusters, tokens]`, rows filled up to whole groups of four, behind the tokens
/// with anything.
pub(super) fn scores(x: &Tensor, means: &Tensor, extents: &Extents) -> Result<Tensor> {
    let Extents { batch, heads, tokens, clusters, .. } = *extents;
    let padded = [batch, heads, clusters, tokens.next_multiple_of(4)];
    let all = Tensor::uninit(x.gpu(), &padded, DType::F32)?;
    let means = means.split(0, &[1, heads])?;
    let target = all.narrow(3, 0, tokens)?;
    matmul_into(&means, &x.permute(&[0, 1, 3, 2])?, &Epilogue::new(), &target)?;
    Ok(all)
}

/// The centroid of each token; scores of padding fall below all others.
fn nearest(scores: &Tensor, valid: Option<&Tensor>, extents: &Extents) -> Result<Tensor> {
    let gpu = scores.gpu();
    let Extents { batch, heads, tokens, clusters, .. } = *extents;
    let assigned = Tensor::uninit(gpu, &[batch, heads, tokens], DType::U32)?;
    let chunks = tokens.div_ceil(4);
    let mut tensors = vec![scores, &assigned];
    tensors.extend(valid);
    let run = Each {
        source: &NEAREST,
        flags: if valid.is_some() { &["VALID"] } else { &[] },
        tensors: &tensors,
        count: batch * heads * chunks,
        params: &[
            chunks as u32,
            tokens as u32,
            clusters as u32,
            heads as u32,
            f32::NAN.to_bits(),
            f32::NEG_INFINITY.to_bits(),
        ],
        steps: clusters,
        work: 8 * clusters,
    };
    run.record(gpu)?;
    Ok(assigned)
}
