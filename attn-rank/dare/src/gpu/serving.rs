//! Serving: a user's history stays on the device.
//!
//! Kept is a row for each behaviour, the embeddings of its item and category in the tables that search, and its
//! ids. Slots count from the end of the history, so a new behaviour shifts all of them; their part of the
//! score, `tau[slot]`, is the same for all candidates and lies beside the rows. Nothing that is kept is ever
//! written again.

use std::path::Path;

use attn_core::{ArrayFile, Error};
use attn_wgpu::{DType, Gpu, Result, Tensor, embedding, ops, softmax};
use ndarray::{Array1, Ix1};

use super::batch::{Ids, check_ids};
use super::kernels::{KEPT, RECALL, Run, TAU, TILE};
use super::search::Tiles;
use super::tables::Stage;
use super::{Dare, Tables};

/// A user's behaviours on a device. Cloning shares what is kept: behaviours that are added to one clone are
/// not seen by the other, but take the same places, so that only one of them may go on.
#[derive(Debug, Clone)]
pub struct History {
    tables: Tables,
    rows: [usize; 3],
    /// `[capacity, 4 chunks]`, f32 or f16.
    stored: Tensor,
    /// u32 `[capacity, 2]`.
    ids: Tensor,
    /// f32 `[slots]`.
    tau: Tensor,
    length: usize,
}

/// What [`Dare::recall`] computes for the candidates of one request.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Recalled {
    /// Of the head, f32 `[C, features]`.
    pub features: Tensor,
    /// Which behaviours were kept, i32 `[C, K]`, counted from the first one that was searched, the highest score
    /// first; -1 in unused places.
    pub index: Tensor,
    /// Their scores, f32 `[C, K]`.
    pub scores: Tensor,
    /// Their weights, f32 `[C, K]`.
    pub weights: Tensor,
}

/// Behaviours that a new history has room for.
const ROOM: usize = 256;
const KIND: &str = "dare history";

impl History {
    /// Behaviours so far.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is no behaviour.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Bytes on the device beside the tables, of the room that there is.
    pub fn bytes(&self) -> usize {
        let size = |tensor: &Tensor| tensor.len() * tensor.dtype().bytes();
        size(&self.stored) + size(&self.ids) + size(&self.tau)
    }

    /// Whether rows are kept in half precision.
    pub fn is_half(&self) -> bool {
        self.stored.dtype() == DType::F16
    }

    /// Behaviours that a search sees: the newest, as many as there are slots for.
    pub fn searched(&self) -> usize {
        self.length.min(self.rows[2] - 1)
    }

    /// Writes the ids as a safetensors file; rows follow from the tables. Blocks until the device is done.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be written; errors of the device.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let ids: Vec<u32> = self.ids.narrow(0, 0, self.length)?.to_vec()?;
        let column = |at: usize| -> Array1<f64> {
            ids.chunks_exact(2).map(|pair| f64::from(pair[at])).collect()
        };
        let half = Array1::from_elem(1, f64::from(u8::from(self.is_half())));
        let file = ArrayFile::new(KIND)
            .with("item", column(0).view())
            .with("category", column(1).view())
            .with("half", half.view());
        Ok(file.write(path)?)
    }
}

impl Dare {
    /// An empty history over tables, with rows in f32, or with `half` in f16.
    ///
    /// # Errors
    /// [`Error`] for tables that do not fit; [`Error::Config`] for a search by category, which has no serving
    /// form; errors of the device.
    pub fn history(&self, tables: &Tables, half: bool) -> Result<History> {
        if self.by_category() {
            return Err(Error::config("search", "by scores", "by category").into());
        }
        let rows = tables.check(self.gpu(), &self.config)?;
        let stage = Stage::new(&tables.attention, self.config.attention)?;
        let tau = Tensor::uninit(&self.gpu, &[rows[2]], DType::F32)?;
        let time = &stage.tables[2];
        let run = Run {
            source: &TAU,
            flags: &[],
            tensors: &[time, &tau],
            count: rows[2],
            params: &[
                (time.binding().1 / 4) as u32,
                stage.chunks[2] as u32,
                (self.config.scales()[1] as f32).to_bits(),
            ],
            steps: stage.chunks[2],
        };
        run.record(&self.gpu)?;
        let (stored, ids) = room(&self.gpu, &stage, ROOM, half)?;
        Ok(History { tables: tables.clone(), rows, stored, ids, tau, length: 0 })
    }

    /// Adds behaviours, the oldest first. What is kept is not written again, but for a copy whenever the room
    /// doubles.
    ///
    /// # Errors
    /// [`Error`] for lists of two lengths, an id that a table does not have, or item 0, which is padding; the
    /// history is then unchanged. Errors of the device.
    pub fn append(&self, history: &mut History, item: &[u32], category: &[u32]) -> Result<()> {
        if item.len() != category.len() {
            let expected = format!("[{}]", item.len());
            return Err(Error::shape("category", expected, &[category.len()]).into());
        }
        let outside =
            |arg, ids: &[u32], rows: usize| match ids.iter().find(|&&id| id as usize >= rows) {
                Some(id) => Err(Error::data(arg, format!("ids below {rows}"), id)),
                None => Ok(()),
            };
        outside("item", item, history.rows[0])?;
        outside("category", category, history.rows[1])?;
        if item.contains(&0) {
            return Err(Error::data("item", "ids above 0, which is padding", 0).into());
        }
        if item.is_empty() {
            return Ok(());
        }
        let stage = Stage::new(&history.tables.attention, self.config.attention)?;
        let length = history.length + item.len();
        if length > history.ids.shape()[0] {
            let most = length.next_power_of_two();
            let (stored, ids) = room(&self.gpu, &stage, most, history.is_half())?;
            if history.length > 0 {
                let old = |tensor: &Tensor| tensor.narrow(0, 0, history.length);
                ops::copy(&old(&history.stored)?, &old(&stored)?)?;
                ops::copy(&old(&history.ids)?, &old(&ids)?)?;
            }
            (history.stored, history.ids) = (stored, ids);
        }
        let ids: Vec<u32> = item.iter().zip(category).flat_map(|(&i, &c)| [i, c]).collect();
        let ids = Tensor::from_slice(&self.gpu, &ids, &[item.len(), 2])?;
        ops::copy(&ids, &history.ids.narrow(0, history.length, item.len())?)?;
        let target = history.stored.narrow(0, history.length, item.len())?;
        // Rows of the tables as kernels take them are whole chunks, so that halves begin at whole words.
        for (table, ids) in [item, category].into_iter().enumerate() {
            let numbers = Tensor::from_slice(&self.gpu, ids, &[ids.len()])?;
            let (start, width) =
                (4 * stage.chunks[..table].iter().sum::<usize>(), stage.chunks[table]);
            let out = target.narrow(1, start, 4 * width)?;
            embedding::gather_rows_into(&stage.tables[table], &numbers, 1.0, &out)?;
        }
        history.length = length;
        Ok(())
    }

    /// A history from a file that [`History::save`] wrote.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be read or holds something else; those of [`Dare::history`] and
    /// [`Dare::append`].
    pub fn load_history(&self, tables: &Tables, path: impl AsRef<Path>) -> Result<History> {
        let path = path.as_ref();
        let file = ArrayFile::read(path, KIND)?;
        let ids = |name: &str| -> Result<Vec<u32>> {
            let numbers = file.get::<Ix1>(name)?;
            let id = |&x: &f64| {
                let whole = x >= 0.0 && x <= f64::from(u32::MAX) && x.fract() == 0.0;
                whole.then_some(x as u32).ok_or_else(|| Error::file(path, format!("{name} {x}")))
            };
            Ok(numbers.iter().map(id).collect::<attn_core::Result<_>>()?)
        };
        let half = file.get::<Ix1>("half")?.first().is_some_and(|half| *half != 0.0);
        let mut history = self.history(tables, half)?;
        self.append(&mut history, &ids("item")?, &ids("category")?)?;
        Ok(history)
    }

    /// Searches one history for C candidates, u32 or i32 `[C]` each, and pools what each finds: what
    /// [`Dare::forward`] gives for requests that have this history without padding, of as many behaviours as
    /// there are slots for at most. There are no auxiliary features.
    ///
    /// # Errors
    /// [`Error`] for shapes, types or devices that do not fit; errors of the device.
    pub fn recall(&self, history: &History, item: &Tensor, category: &Tensor) -> Result<Recalled> {
        let gpu = &self.gpu;
        let count = item.len();
        check_ids("item", item, &[count], gpu)?;
        check_ids("category", category, &[count], gpu)?;
        history.tables.check(gpu, &self.config)?;
        let attention = Stage::new(&history.tables.attention, self.config.attention)?;
        let representation =
            Stage::new(&history.tables.representation, self.config.representation)?;
        let ids = Ids { item, category, time: None };
        let candidates = self.pack_candidates(&ids, history.rows)?;
        let q = self.rows(&attention, &candidates)?;
        let v = self.rows(&representation, &candidates)?;
        let (searched, chunks) = (history.searched(), attention.chunks[0] + attention.chunks[1]);
        let first = history.length - searched;
        let found = if count * searched == 0 {
            self.nothing(count)?
        } else {
            // The part of q that meets the rows, row behind row.
            let semantic = q.narrow(1, 0, 4 * chunks)?.contiguous()?;
            self.tiles(&Tiles {
                source: &RECALL,
                flags: &[("HALF", history.is_half())],
                read: &[&history.stored, &history.tau, &semantic],
                behind: &[],
                rows: count,
                count: searched,
                span: TILE,
                params: &[first as u32, chunks as u32, (self.config.scales()[0] as f32).to_bits()],
                work: 8.0 * chunks as f64 + 40.0,
            })?
        };
        let keep = self.config.keep;
        let kept = Tensor::uninit(gpu, &[count, keep, 4], DType::U32)?;
        let run = Run {
            source: &KEPT,
            flags: &[("STORED", true)],
            tensors: &[&found.numbers, &history.ids, &kept],
            count: count * keep,
            params: &[keep as u32, searched as u32, first as u32],
            steps: 1,
        };
        run.record(gpu)?;
        let weights = softmax::softmax(&found.keys)?;
        let path = self.pool(&representation, kept, weights)?;
        let features = Tensor::uninit(gpu, &[count, self.config.features()], DType::F32)?;
        self.features(&representation, &v, &path.h, &features)?;
        Ok(Recalled { features, index: found.numbers, scores: found.keys, weights: path.weights })
    }
}

/// Rows and ids of so many behaviours.
fn room(gpu: &Gpu, stage: &Stage, behaviours: usize, half: bool) -> Result<(Tensor, Tensor)> {
    let width = 4 * (stage.chunks[0] + stage.chunks[1]);
    let dtype = if half { DType::F16 } else { DType::F32 };
    let stored = Tensor::uninit(gpu, &[behaviours, width], dtype)?;
    Ok((stored, Tensor::uninit(gpu, &[behaviours, 2], DType::U32)?))
}
