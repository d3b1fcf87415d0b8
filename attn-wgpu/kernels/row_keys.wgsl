// In: where the row starts in `x`, and a chunk. Out: the keys of the chunk's elements; 0, as of NaN,
// behind the width.
fn chunk_keys(at: u32, chunk: u32) -> vec4<u32> {
  let elements = 4u * chunk + vec4<u32>(0u, 1u, 2u, 3u);
  let keys = keys_of(unpack_source(x[at + chunk]));
  return select(vec4<u32>(0u), keys, elements < vec4<u32>(width));
}
