  // Parameters of the kernels of one side of linear attention in blocks. Places are in chunks of four.
  // Key heads on the upper side, else query heads; query heads of a key head.
  entries: u32, heads: u32, group: u32, first_head: u32,
  tokens: u32, block: u32, row_tiles: u32, column_tiles: u32,
  // Rows of A, and of X and the result, in chunks of four.
  depth4: u32, width4: u32,
  // The bits of NaN, which WGSL has no constant for.
  nan: u32,
  // 1 for the triangle p >= r.
  upper: u32,
  a: Place, b: Place, x: Place, states: Place, out: Place,
