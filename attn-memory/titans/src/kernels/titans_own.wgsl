// At the start of `tile` in kernels that multiply rows of `depth` vec4s: the own column, the last token of the piece,
// and where the rows begin that the lane loads.
  let depth = params.depth;
  let chunks = params.chunks;
  let column = first_column + lane;
  let own = min(column, chunks - 1u);
  if at.row >= at.length {
    return;
  }
  let last = at.start + at.length - 1u;
  var rows: array<u32, HELD>;
  #unroll
  for (var j = 0u; j < HELD; j++) {
    rows[j] = min(at.start + at.row + j * EXCHANGE + lane, last) * depth;
  }
