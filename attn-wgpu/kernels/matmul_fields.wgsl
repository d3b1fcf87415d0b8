  // Parameters of all matmul kernels. Places are counted in chunks of four elements: start, outer
  // batch, inner batch, and what is not contiguous.
  rows: u32,
  // Columns of b, and depth, in elements.
  columns: u32,
  depth: u32,
  batches: u32,
  // Batch entries in the inner one of two batch dimensions.
  inner: u32,
  row_tiles: u32,
  column_tiles: u32,
  bias_start: u32,
  a: vec4<u32>,
  b: vec4<u32>,
  residual: vec4<u32>,
  out: vec4<u32>,
  sums: vec4<u32>,
