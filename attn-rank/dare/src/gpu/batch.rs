//! Candidates and histories on a device.

use attn_core::Error;
use attn_wgpu::{DType, Element, Gpu, Result, Tensor};
use ndarray::{ArrayView, Dimension};

use super::Dare;
use super::kernels::{PACK, Run};
use super::tables::{Tables, check_device};
use crate::reference;

/// A candidate and a history for each of B requests, as ids on a device: u32 or i32 alike. Cloning shares
/// them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Batch {
    /// Candidates' items `[B]`.
    pub item: Tensor,
    /// Candidates' categories `[B]`.
    pub category: Tensor,
    /// Items of the histories `[B, N]`, the oldest first; 0 is padding where there is no mask.
    pub history_item: Tensor,
    /// Categories of the histories `[B, N]`.
    pub history_category: Tensor,
    /// Candidates' time slots `[B]`. Default: 0.
    pub time: Option<Tensor>,
    /// Time slots of the histories `[B, N]`. Default: N for the first place and 1 for the last.
    pub history_time: Option<Tensor>,
    /// Which behaviours count `[B, N]`: not 0. Default: those whose item is not 0.
    pub mask: Option<Tensor>,
}

impl Batch {
    /// Candidates `[B]` and histories `[B, N]`, padded with items of 0, slots by place.
    pub fn new(
        item: Tensor,
        category: Tensor,
        history_item: Tensor,
        history_category: Tensor,
    ) -> Self {
        Batch {
            item,
            category,
            history_item,
            history_category,
            time: None,
            history_time: None,
            mask: None,
        }
    }

    /// The same with time slots of the candidates `[B]` and the histories `[B, N]`.
    pub fn with_times(self, time: Tensor, history_time: Tensor) -> Self {
        Batch { time: Some(time), history_time: Some(history_time), ..self }
    }

    /// The same with a mask `[B, N]`: behaviours where it is 0 do not count, all others do, whatever their
    /// item.
    pub fn with_mask(self, mask: Tensor) -> Self {
        Batch { mask: Some(mask), ..self }
    }

    /// Copies a batch from the host, after a check of all ids against the tables.
    ///
    /// # Errors
    /// [`Error`] for shapes that do not fit together or an id that a table does not have; errors of the
    /// device.
    pub fn upload(gpu: &Gpu, batch: &reference::Batch, tables: &Tables) -> Result<Batch> {
        let own = &tables.attention;
        let rows = [&own.item, &own.category, &own.time]
            .map(|table| table.shape().first().copied().unwrap_or(0));
        batch.check(rows)?;
        let mask = batch.mask.as_ref().map(|mask| mask.mapv(u32::from));
        Ok(Batch {
            item: up(gpu, batch.item.view())?,
            category: up(gpu, batch.category.view())?,
            history_item: up(gpu, batch.history_item.view())?,
            history_category: up(gpu, batch.history_category.view())?,
            time: batch.time.as_ref().map(|time| up(gpu, time.view())).transpose()?,
            history_time: batch.history_time.as_ref().map(|t| up(gpu, t.view())).transpose()?,
            mask: mask.map(|mask| up(gpu, mask.view())).transpose()?,
        })
    }

    /// Requests, B.
    pub fn requests(&self) -> usize {
        self.item.len()
    }

    /// B and N.
    pub(super) fn check(&self, gpu: &Gpu) -> Result<(usize, usize)> {
        let &[requests] = self.item.shape() else {
            return Err(Error::shape("item", "[B]", self.item.shape()).into());
        };
        let &[rows, length] = self.history_item.shape() else {
            let expected = "[B, N]";
            return Err(Error::shape("history_item", expected, self.history_item.shape()).into());
        };
        if rows != requests {
            let expected = format!("[{requests}, N]");
            return Err(Error::shape("history_item", expected, self.history_item.shape()).into());
        }
        let one: &[usize] = &[requests];
        let many: &[usize] = &[requests, length];
        let tensors = [
            ("item", Some(&self.item), one),
            ("category", Some(&self.category), one),
            ("time", self.time.as_ref(), one),
            ("history_item", Some(&self.history_item), many),
            ("history_category", Some(&self.history_category), many),
            ("history_time", self.history_time.as_ref(), many),
            ("mask", self.mask.as_ref(), many),
        ];
        for (arg, tensor, shape) in tensors {
            if let Some(tensor) = tensor {
                check_ids(arg, tensor, shape, gpu)?;
            }
        }
        Ok((requests, length))
    }
}

pub(super) fn check_ids(
    arg: &'static str,
    tensor: &Tensor,
    shape: &[usize],
    gpu: &Gpu,
) -> Result<()> {
    if !matches!(tensor.dtype(), DType::U32 | DType::I32) {
        let (expected, got) = ("u32 or i32".into(), tensor.dtype().name().into());
        return Err(Error::Dtype { arg, expected, got }.into());
    }
    check_device(arg, tensor, gpu)?;
    if tensor.shape() != shape {
        return Err(Error::shape(arg, format!("{shape:?}"), tensor.shape()).into());
    }
    Ok(())
}

fn up<T: Element, D: Dimension>(gpu: &Gpu, array: ArrayView<'_, T, D>) -> Result<Tensor> {
    Tensor::from_array(gpu, &array.into_dyn())
}

/// Ids side by side, u32: `[B, 4]` and `[B, N, 4]`.
pub(super) struct Packed {
    pub(super) candidates: Tensor,
    pub(super) history: Tensor,
}

/// Ids to be packed, of one shape.
pub(super) struct Ids<'a> {
    pub(super) item: &'a Tensor,
    pub(super) category: &'a Tensor,
    pub(super) time: Option<&'a Tensor>,
}

impl Dare {
    pub(super) fn pack(&self, batch: &Batch, rows: [usize; 3]) -> Result<Packed> {
        let ids = Ids { item: &batch.item, category: &batch.category, time: batch.time.as_ref() };
        let candidates = self.pack_candidates(&ids, rows)?;
        let (requests, length) = (batch.requests(), batch.history_item.shape()[1]);
        let history = Tensor::uninit(&self.gpu, &[requests, length, 4], DType::U32)?;
        let whole = |tensor: &Tensor| tensor.contiguous();
        let (item, category) = (whole(&batch.history_item)?, whole(&batch.history_category)?);
        let time = batch.history_time.as_ref().map(whole).transpose()?;
        let mask = batch.mask.as_ref().map(whole).transpose()?;
        let wanted = whole(&batch.category)?;
        let start = |tensor: Option<&Tensor>| tensor.map_or(0, |tensor| tensor.binding().1 as u32);
        let run = Run {
            source: &PACK,
            flags: &[("TIME", time.is_some()), ("MASK", mask.is_some())],
            tensors: &[
                &item,
                &category,
                time.as_ref().unwrap_or(&item),
                mask.as_ref().unwrap_or(&item),
                &wanted,
                &history,
            ],
            count: requests * length,
            params: &[
                length as u32,
                rows[0] as u32,
                rows[1] as u32,
                rows[2] as u32,
                start(Some(&item)),
                start(Some(&category)),
                start(time.as_ref()),
                start(mask.as_ref()),
                start(Some(&wanted)),
            ],
            steps: 1,
        };
        run.record(&self.gpu)?;
        Ok(Packed { candidates, history })
    }

    /// u32 `[rows, 4]`.
    pub(super) fn pack_candidates(&self, ids: &Ids<'_>, rows: [usize; 3]) -> Result<Tensor> {
        let (item, category) = (ids.item.contiguous()?, ids.category.contiguous()?);
        let time = ids.time.map(Tensor::contiguous).transpose()?;
        let out = Tensor::uninit(&self.gpu, &[item.len(), 4], DType::U32)?;
        let start = |tensor: Option<&Tensor>| tensor.map_or(0, |tensor| tensor.binding().1 as u32);
        let run = Run {
            source: &PACK,
            flags: &[("CANDIDATES", true), ("TIME", time.is_some())],
            tensors: &[&item, &category, time.as_ref().unwrap_or(&item), &item, &item, &out],
            count: item.len(),
            params: &[
                1,
                rows[0] as u32,
                rows[1] as u32,
                rows[2] as u32,
                start(Some(&item)),
                start(Some(&category)),
                start(time.as_ref()),
                0,
                0,
            ],
            steps: 1,
        };
        run.record(&self.gpu)?;
        Ok(out)
    }
}
