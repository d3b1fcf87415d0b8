// Where an invocation works, in kernels that multiply rows of pieces: it owns ROWS rows of one piece and a
// vec4 of columns. With subgroups a workgroup is EXCHANGE lanes that own neighbouring columns of the same
// rows, and each loads a share of the rows for all of them.

// ROWS rows of one piece.
struct Place {
  plane: u32,
  // Number of the piece's first token, counting those of all planes.
  start: u32,
  length: u32,
  // First row within the piece.
  row: u32,
  piece: u32,
}

fn place(item: u32) -> Place {
  let piece_item = item / params.tiles;
  let row = ROWS * (item - piece_item * params.tiles);
  let plane = piece_item / params.pieces;
  let piece = params.piece + piece_item - plane * params.pieces;
  let first = select(params.lead + (piece - 1u) * params.chunk, 0u, piece == 0u);
  let length = min(select(params.chunk, params.lead, piece == 0u), params.tokens - first);
  return Place(plane, plane * params.tokens + first, length, row, piece);
}
