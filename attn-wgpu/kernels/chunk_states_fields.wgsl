  // Parameters of the kernels of states of linear attention in blocks: extents first, then places. Places
  // are in chunks of four.
  entries: u32, heads: u32, group: u32, first_head: u32,
  tokens: u32, block: u32, row_tiles: u32, column_tiles: u32,
  // Rows of A and of B, in chunks of four.
  depth4: u32, width4: u32,
  // Whether there is a first state; it is 0 otherwise.
  has_first: u32,
  // 1 to go from the last block to the first.
  reversed: u32,
  a: Place, b: Place, first: Place, states: Place, end: Place,
