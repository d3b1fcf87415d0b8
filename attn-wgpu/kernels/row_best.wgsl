// The largest key of a row, and the lowest element that has it; all lanes of the row get them.
// Must be called by all lanes of a workgroup alike.
struct Best {
  key: u32,
  element: u32,
}

fn row_best(at: u32, in_row: u32) -> Best {
  let chunks = (width + 3u) / 4u;
  var top = vec4<u32>(0u);
  var top_chunk = vec4<u32>(in_row);
  for (var c = in_row; c < chunks; c += LANES) {
    let keys = chunk_keys(at, c);
    let better = keys > top;
    top = select(top, keys, better);
    top_chunk = select(top_chunk, vec4<u32>(c), better);
  }
  let elements = 4u * top_chunk + vec4<u32>(0u, 1u, 2u, 3u);
  let key = max_row(max(max(top.x, top.y), max(top.z, top.w)));
  // The lowest number is the largest complement.
  let found = select(vec4<u32>(0u), ~elements, top == vec4<u32>(key));
  return Best(key, ~max_row(max(max(found.x, found.y), max(found.z, found.w))));
}
