// Which lane of which tile an invocation is, in kernels whose invocations are one lane of one tile of tokens
// each: lanes beside each other first, then tiles, then heads and batch entries.
struct Item {
  batch: u32, head: u32, tile: u32, lane: u32,
  is_one: bool,
}

fn item_of(index: u32, lanes: u32, tiles: u32, heads: u32, planes: u32) -> Item {
  let row = index / lanes;
  let plane = row / tiles;
  let batch = plane / heads;
  return Item(batch, plane - batch * heads, row - plane * tiles, index - row * lanes, plane < planes);
}

fn at_head(place: Place, batch: u32, head: u32) -> u32 {
  return place.start + batch * place.stride_0 + head * place.stride_1;
}
