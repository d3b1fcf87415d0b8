//! Orders in which elements are combined.

use attn_core::{Error, Result};

use super::element::Element;

/// How the prefixes of a sequence are computed. All orders give the same up to rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Order {
    /// One token after the other.
    #[default]
    Sequential,
    /// The paper's choice (Hillis and Steele): in step i every token takes in the one 2^i before it.
    Doubling,
    /// Tiles of so many tokens on their own, then the tiles' totals, then both together.
    Tiles(usize),
}

impl Order {
    pub(super) fn validate(self) -> Result<()> {
        match self {
            Order::Tiles(0) => {
                Err(Error::config("order", "tiles of at least 1 token", "tiles of 0"))
            }
            _ => Ok(()),
        }
    }

    /// Element t becomes the combination of elements 0 to t.
    pub(super) fn scan(self, elements: Vec<Element>) -> Vec<Element> {
        match self {
            Order::Sequential => sequential(elements),
            Order::Doubling => doubling(elements),
            Order::Tiles(tokens) => tiles(elements, tokens.max(1)),
        }
    }
}

fn sequential(mut elements: Vec<Element>) -> Vec<Element> {
    for t in 1..elements.len() {
        elements[t] = elements[t - 1].combine(&elements[t]);
    }
    elements
}

fn doubling(mut elements: Vec<Element>) -> Vec<Element> {
    let mut stride = 1;
    while stride < elements.len() {
        // From the end, so that every element is read before it changes.
        for t in (stride..elements.len()).rev() {
            elements[t] = elements[t - stride].combine(&elements[t]);
        }
        stride *= 2;
    }
    elements
}

fn tiles(elements: Vec<Element>, tokens: usize) -> Vec<Element> {
    let tiles: Vec<_> = elements.chunks(tokens).map(|tile| sequential(tile.to_vec())).collect();
    let totals = sequential(tiles.iter().filter_map(|tile| tile.last().cloned()).collect());
    let mut prefixes = Vec::new();
    for (index, tile) in tiles.into_iter().enumerate() {
        match index.checked_sub(1) {
            None => prefixes.extend(tile),
            Some(before) => {
                prefixes.extend(tile.iter().map(|element| totals[before].combine(element)));
            }
        }
    }
    prefixes
}
