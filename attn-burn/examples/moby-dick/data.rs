//! The text as burn's data sets and batches.

use std::sync::Arc;

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataloader::{DataLoader, DataLoaderBuilder};
use burn::data::dataset::InMemDataset;
use burn::tensor::{Device, Int, Tensor, TensorData};

/// Chapters 1 to 13, in the public domain.
const TEXT: &str = include_str!("../data/moby-dick.txt");

/// Bytes that the model sees at once.
pub const CONTEXT: usize = 256;
const BATCH: usize = 4;

/// A piece of text with one byte more than the model sees.
type Piece = Vec<u8>;

/// Bytes and those that come next, `[batch, CONTEXT]`.
#[derive(Debug, Clone)]
pub struct Batch {
    pub bytes: Tensor<2, Int>,
    pub next: Tensor<2, Int>,
}

#[derive(Debug)]
struct Pieces;

impl Batcher<Piece, Batch> for Pieces {
    fn batch(&self, items: Vec<Piece>, device: &Device) -> Batch {
        let part = |from: usize| {
            let bytes = items.iter().flat_map(|item| &item[from..from + CONTEXT]);
            let numbers: Vec<i32> = bytes.map(|&byte| i32::from(byte)).collect();
            Tensor::from_data(TensorData::new(numbers, [items.len(), CONTEXT]), device)
        };
        Batch { bytes: part(0), next: part(1) }
    }
}

/// Pieces to learn from, and those held back: the last of ten parts.
pub fn parts() -> (Vec<Piece>, Vec<Piece>) {
    let (train, held_back) = TEXT.as_bytes().split_at(TEXT.len() / 10 * 9);
    let pieces = |text: &[u8], step: usize| -> Vec<Piece> {
        text.windows(CONTEXT + 1).step_by(step).map(<[u8]>::to_vec).collect()
    };
    (pieces(train, CONTEXT / 4), pieces(held_back, CONTEXT))
}

/// Batches, shuffled where there is a seed.
pub fn loader(
    pieces: Vec<Piece>,
    seed: Option<u64>,
    device: &Device,
) -> Arc<dyn DataLoader<Batch>> {
    let builder = DataLoaderBuilder::new(Pieces).batch_size(BATCH).set_device(device.clone());
    let builder = match seed {
        Some(seed) => builder.shuffle(seed),
        None => builder,
    };
    builder.build(InMemDataset::new(pieces))
}
