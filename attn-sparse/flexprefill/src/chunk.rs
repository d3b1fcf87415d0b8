//! Where the queries of a call lie among the blocks of a sequence.

use std::ops::Range;

use attn_core::{AttentionShape, Error, Result};

/// M queries at the end of N keys. Rows of blocks are counted from the one that the first query is in;
/// where it is not the first of its block, that row is short.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chunk {
    block: usize,
    queries: usize,
    keys: usize,
}

impl Chunk {
    /// Checks that there are not more queries than keys.
    pub fn new(shape: &AttentionShape, block: usize) -> Result<Chunk> {
        let AttentionShape { queries, keys, .. } = *shape;
        if queries > keys {
            let expected = format!("at most as many queries as keys, {keys}");
            return Err(Error::shape("q", expected, &shape.q()));
        }
        Ok(Chunk { block, queries, keys })
    }

    /// Tokens of a block, b.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Blocks of keys, nb.
    pub fn blocks(&self) -> usize {
        self.keys.div_ceil(self.block)
    }

    /// Block of the first query.
    pub fn first(&self) -> usize {
        (self.keys - self.queries) / self.block
    }

    /// Blocks that queries are in.
    pub fn rows(&self) -> usize {
        if self.queries == 0 { 0 } else { self.blocks() - self.first() }
    }

    /// Queries in front of the first bound between blocks, if the first query is inside of a block and
    /// there are queries behind the bound.
    pub fn lead(&self) -> usize {
        let before = (self.keys - self.queries) % self.block;
        let lead = if before == 0 { 0 } else { self.block - before };
        if lead < self.queries { lead } else { 0 }
    }

    /// Queries of a row of blocks.
    pub fn queries_of(&self, row: usize) -> Range<usize> {
        let before = self.keys - self.queries;
        let start = (self.first() + row) * self.block;
        start.max(before) - before..(start + self.block).min(self.keys) - before
    }

    /// Pairs of a query and a key up to its own: in a row of blocks of which `blocks` are on, its own
    /// among them, and in the whole row.
    pub fn pairs(&self, row: usize, blocks: usize) -> [u64; 2] {
        let start = (self.first() + row) * self.block;
        let queries = self.queries_of(row);
        let count = queries.len() as u64;
        // Keys from the start of the own block up to the query's own.
        let before = self.keys - self.queries;
        let own: u64 = queries.map(|query| (before + query - start + 1) as u64).sum();
        let others = (blocks.saturating_sub(1) * self.block) as u64;
        [own + count * others, own + count * start as u64]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(queries: usize, keys: usize) -> Chunk {
        let shape =
            AttentionShape::from_shapes(&[1, 1, queries, 4], &[1, 1, keys, 4], &[1, 1, keys, 4]);
        Chunk::new(&shape.unwrap(), 8).unwrap()
    }

    #[test]
    fn places() {
        for (queries, keys, expected) in [
            (0, 0, [0, 0, 0, 0]),
            (0, 12, [2, 1, 0, 0]),
            (16, 16, [2, 0, 2, 0]),
            (21, 21, [3, 0, 3, 0]),
            (13, 29, [4, 2, 2, 0]),
            (12, 29, [4, 2, 2, 7]),
            (7, 29, [4, 2, 2, 2]),
            (5, 29, [4, 3, 1, 0]),
            // Inside of one block.
            (3, 22, [3, 2, 1, 0]),
            (3, 24, [3, 2, 1, 0]),
        ] {
            let chunk = chunk(queries, keys);
            let got = [chunk.blocks(), chunk.first(), chunk.rows(), chunk.lead()];
            assert_eq!(got, expected, "{queries} of {keys}");
        }
    }

    #[test]
    fn pairs_are_those_of_single_queries() {
        for (queries, keys) in [(29, 29), (12, 29), (3, 22), (16, 24)] {
            let chunk = chunk(queries, keys);
            let mut all = [0, 0];
            for row in 0..chunk.rows() {
                let own = chunk.first() + row;
                let inside = (keys - queries..keys).filter(|query| query / 8 == own);
                let pairs = |blocks: usize| -> u64 {
                    inside.clone().map(|query| (8 * (blocks - 1) + query % 8 + 1) as u64).sum()
                };
                assert_eq!(chunk.pairs(row, 1), [pairs(1), pairs(own + 1)]);
                let [some, whole] = chunk.pairs(row, own + 1);
                assert_eq!(some, whole);
                all = [all[0] + some, all[1] + whole];
            }
            let causal: u64 = (keys - queries..keys).map(|query| query as u64 + 1).sum();
            assert_eq!(all, [causal, causal]);
        }
    }
}
