  // Parameters of the products with packed weights. Places of a, residual and out are counted in chunks
  // of four elements: start, outer batch, inner batch, row.
  rows: u32,
  // Rows of the weights.
  columns: u32,
  // Steps of 32 values of the depth.
  blocks: u32,
  batches: u32,
  // Batch entries in the inner one of two batch dimensions.
  inner: u32,
  row_tiles: u32,
  column_tiles: u32,
  bias_start: u32,
  a: vec4<u32>,
  residual: vec4<u32>,
  out: vec4<u32>,
  // Start, and what a group of four columns takes.
  codes_start: u32,
  codes_stride: u32,
  scales_start: u32,
  scales_stride: u32,
