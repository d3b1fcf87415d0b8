// A chunk of a behaviour's embedding, of three tables side by side, each filled up to whole chunks. In: its
// ids, which must be in the tables, and the chunk. Out: four elements.
fn row_chunk(ids: vec4<u32>, c: u32) -> vec4<f32> {
  if c < params.item_chunks {
    return item_table[params.item_start + ids.x * params.item_chunks + c];
  }
  let second = c - params.item_chunks;
  if second < params.category_chunks {
    return category_table[params.category_start + ids.y * params.category_chunks + second];
  }
  return time_table[params.time_start + ids.z * params.time_chunks + second - params.category_chunks];
}
