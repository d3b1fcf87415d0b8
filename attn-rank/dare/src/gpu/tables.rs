//! Embedding tables on a device.

use std::path::Path;

use attn_core::Error;
use attn_wgpu::{DType, Gpu, Result, Tensor, ops};
use ndarray::Array2;

use crate::config::{Config, Widths};
use crate::reference;

/// The tables of one stage: a row for each item, category and time slot. Row 0 of items and categories is
/// padding; slot 0 is the candidate's. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Embeddings {
    /// f32 `[items, width]`.
    pub item: Tensor,
    /// f32 `[categories, width]`.
    pub category: Tensor,
    /// f32 `[slots, width]`, one slot more than a history is long.
    pub time: Tensor,
}

impl Embeddings {
    /// The three tables.
    pub fn new(item: Tensor, category: Tensor, time: Tensor) -> Self {
        Embeddings { item, category, time }
    }

    pub(super) fn all(&self) -> [&Tensor; 3] {
        [&self.item, &self.category, &self.time]
    }

    fn bytes(&self) -> usize {
        self.all().iter().map(|table| 4 * table.len()).sum()
    }
}

/// Both stages' tables: those that search and those that are pooled. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Tables {
    /// Eatt: what scores are made of.
    pub attention: Embeddings,
    /// Erep: what is pooled and classified.
    pub representation: Embeddings,
}

const NAMES: [[&str; 3]; 2] =
    [["att_item", "att_cat", "att_time"], ["rep_item", "rep_cat", "rep_time"]];

impl Tables {
    /// Tables of each stage: DARE.
    pub fn new(attention: Embeddings, representation: Embeddings) -> Self {
        Tables { attention, representation }
    }

    /// One set of tables for both stages: TWIN. Its gradient is [`Grads::tied`](crate::Grads::tied).
    pub fn tied(embeddings: Embeddings) -> Self {
        Tables { attention: embeddings.clone(), representation: embeddings }
    }

    /// Whether both stages read the same memory.
    pub fn is_tied(&self) -> bool {
        let mut pairs = self.attention.all().into_iter().zip(self.representation.all());
        pairs.all(|(a, b)| a.buffer() == b.buffer() && a.shape() == b.shape())
    }

    /// Bytes on the device: of both stages, or once where they are tied.
    pub fn bytes(&self) -> usize {
        let shared = if self.is_tied() { 0 } else { self.representation.bytes() };
        self.attention.bytes() + shared
    }

    /// Copies tables from the host, rounded to f32.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn upload(gpu: &Gpu, tables: &reference::Tables) -> Result<Tables> {
        let up = |table: &Array2<f64>| {
            Tensor::from_array(gpu, &table.mapv(|x| x as f32).view().into_dyn())
        };
        let stage = |own: &reference::Embeddings| {
            Ok::<_, attn_wgpu::Error>(Embeddings::new(
                up(&own.item)?,
                up(&own.category)?,
                up(&own.time)?,
            ))
        };
        let attention = stage(&tables.attention)?;
        match &tables.representation {
            None => Ok(Tables::tied(attention)),
            Some(own) => Ok(Tables::new(attention, stage(own)?)),
        }
    }

    /// Copies tables to the host. Blocks until the device is done.
    ///
    /// # Errors
    /// Errors of the device; [`Error::Shape`] for tables that are none.
    pub fn read(&self) -> Result<reference::Tables> {
        let stage = |own: &Embeddings, names: [&'static str; 3]| {
            let [item, category, time] = [0, 1, 2].map(|i| host(names[i], own.all()[i]));
            Ok::<_, attn_wgpu::Error>(reference::Embeddings {
                item: item?,
                category: category?,
                time: time?,
            })
        };
        let attention = stage(&self.attention, NAMES[0])?;
        let representation = match self.is_tied() {
            true => None,
            false => Some(stage(&self.representation, NAMES[1])?),
        };
        Ok(reference::Tables { attention, representation })
    }

    /// Writes a safetensors file, which [`reference::Tables::load`] reads, too.
    ///
    /// # Errors
    /// As [`Tables::read`], and [`Error::File`] where it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        Ok(self.read()?.save(path)?)
    }

    /// Reads what [`Tables::save`] or [`reference::Tables::save`] wrote, and files of anybody with the same
    /// names: `att_item`, `att_cat`, `att_time`, and `rep_item`, `rep_cat`, `rep_time` where they are not tied.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be read or lacks a table; errors of the device.
    pub fn load(gpu: &Gpu, path: impl AsRef<Path>) -> Result<Tables> {
        Tables::upload(gpu, &reference::Tables::load(path)?)
    }

    /// Checks types, shapes and devices against a configuration, and gives the rows of the three tables.
    pub(super) fn check(&self, gpu: &Gpu, config: &Config) -> Result<[usize; 3]> {
        let mut rows = [0; 3];
        let stages = [
            (&self.attention, config.attention, NAMES[0]),
            (&self.representation, config.representation, NAMES[1]),
        ];
        for (stage, (own, widths, names)) in stages.into_iter().enumerate() {
            for (i, (table, width)) in own.all().into_iter().zip(widths.all()).enumerate() {
                check_table(names[i], table, gpu)?;
                let &[count, columns] = table.shape() else {
                    let expected = format!("[rows, {width}]");
                    return Err(Error::shape(names[i], expected, table.shape()).into());
                };
                if columns != width || count == 0 || (stage == 1 && count != rows[i]) {
                    let rows =
                        if stage == 0 { "at least 1".to_string() } else { rows[i].to_string() };
                    let expected = format!("[{rows}, {width}]");
                    return Err(Error::shape(names[i], expected, table.shape()).into());
                }
                rows[i] = count;
            }
        }
        Ok(rows)
    }
}

fn host(arg: &'static str, table: &Tensor) -> Result<Array2<f64>> {
    let array = table.to_array::<f32>()?.mapv(f64::from);
    let misfit = |_| attn_core::Error::shape(arg, "[rows, width]", table.shape());
    Ok(array.into_dimensionality().map_err(misfit)?)
}

pub(super) fn check_table(arg: &'static str, table: &Tensor, gpu: &Gpu) -> Result<()> {
    if table.dtype() != DType::F32 {
        let (expected, got) = ("f32".into(), table.dtype().name().into());
        return Err(Error::Dtype { arg, expected, got }.into());
    }
    check_device(arg, table, gpu)
}

pub(super) fn check_device(arg: &'static str, tensor: &Tensor, gpu: &Gpu) -> Result<()> {
    if tensor.gpu().is_same(gpu) {
        return Ok(());
    }
    let got = "a tensor of another Gpu";
    Err(Error::config(arg, &gpu.adapter().name, got).into())
}

/// Tables as kernels address them: contiguous rows of whole chunks.
#[derive(Debug, Clone)]
pub(super) struct Stage {
    pub(super) tables: [Tensor; 3],
    pub(super) widths: Widths,
    /// Chunks of a row of each.
    pub(super) chunks: [usize; 3],
}

impl Stage {
    pub(super) fn new(own: &Embeddings, widths: Widths) -> Result<Stage> {
        let [item, category, time] = own.all().map(chunked);
        let chunks = widths.all().map(|width| width.div_ceil(4));
        Ok(Stage { tables: [item?, category?, time?], widths, chunks })
    }

    /// Chunks of a whole embedding.
    pub(super) fn width(&self) -> usize {
        self.chunks.iter().sum()
    }

    /// Where the tables begin in their bindings, in chunks, and the chunks of their rows.
    pub(super) fn params(&self) -> [u32; 6] {
        let [item, category, time] = self.tables.each_ref().map(|t| (t.binding().1 / 4) as u32);
        let chunks = self.chunks.map(|chunks| chunks as u32);
        [item, category, time, chunks[0], chunks[1], chunks[2]]
    }

    /// Where the columns of a table begin in an embedding of whole chunks, and how many they are.
    pub(super) fn columns(&self, table: usize) -> (usize, usize) {
        let start: usize = self.chunks[..table].iter().sum();
        (4 * start, self.widths.all()[table])
    }
}

/// The table itself where its rows are whole chunks, one behind the other, at whole chunks of memory; else a
/// copy filled up with zeros.
fn chunked(table: &Tensor) -> Result<Tensor> {
    let &[rows, width] = table.shape() else {
        return Err(Error::shape("table", "[rows, width]", table.shape()).into());
    };
    let whole = width.is_multiple_of(4) && table.buffer().1.is_multiple_of(4);
    if whole && table.is_contiguous() {
        return Ok(table.clone());
    }
    let copied = Tensor::uninit(table.gpu(), &[rows, width.next_multiple_of(4)], DType::F32)?;
    ops::copy(table, &copied)?;
    Ok(copied)
}
