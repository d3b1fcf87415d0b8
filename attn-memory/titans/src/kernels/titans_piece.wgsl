// Where an invocation works, in kernels that work on pieces: it owns a tile of four rows of one piece,
// and a vec4 of columns. No memory is touched here.

const TILE = 4u;

// A tile of four rows of one piece, and a vec4 of columns.
struct Place {
  plane: u32,
  // Number of the piece's first token, counting those of all planes.
  start: u32,
  length: u32,
  // First row within the piece.
  row: u32,
  column: u32,
  piece: u32,
}

fn place(index: u32) -> Place {
  let row_item = index / params.chunks;
  let column = index - row_item * params.chunks;
  let piece_item = row_item / params.tiles;
  let row = TILE * (row_item - piece_item * params.tiles);
  let plane = piece_item / params.pieces;
  let piece = params.piece + piece_item - plane * params.pieces;
  let first = select(params.lead + (piece - 1u) * params.chunk, 0u, piece == 0u);
  let length = min(select(params.chunk, params.lead, piece == 0u), params.tokens - first);
  return Place(plane, plane * params.tokens + first, length, row, column, piece);
}
