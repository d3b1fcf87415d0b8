// Parameters of kernels that work on pieces of `chunk` tokens, the first one of `lead`: on all of them,
// or on one. Each invocation owns a tile of four rows and a vec4 of columns (titans_piece.wgsl).
  count: u32,
  tokens: u32,
  // First piece and number of pieces.
  piece: u32, pieces: u32,
  chunk: u32, lead: u32,
  // Pieces of the call.
  all: u32,
  // Tiles of four rows in a piece.
  tiles: u32,
  // vec4s of what is multiplied and of what comes out.
  depth: u32, chunks: u32,
