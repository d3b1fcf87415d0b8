// Strided gather, up to four dimensions, into a contiguous target whose rows are whole chunks of four
// elements, of 4 bytes or of 2 (HALF). Rows may be longer than the source's: the rest is filled with
// zeros. Chunk is vec4<u32>, or vec2<u32> for halves.
//
// An invocation owns ITEMS chunks, WORKGROUP apart; no workgroup memory.

struct Params {
  // Extents of the target, the last in chunks.
  extent_0: u32, extent_1: u32, extent_2: u32, extent_3: u32,
  // Elements: extent of the source's last dimension, its start and strides.
  source_extent_3: u32,
  source_offset: u32,
  source_0: u32, source_1: u32, source_2: u32, source_3: u32,
  // WORKGROUP as a number whose digits count to the extents.
  step_0: u32, step_1: u32, step_2: u32, step_3: u32,
  // In chunks.
  target_offset: u32,
}

@group(0) @binding(0) var<storage, read> source_words: array<u32>; // strided [e0, e1, e2, source e3]
@group(0) @binding(1) var<storage, read_write> target_chunks: array<Chunk>; // [e0, e1, e2, e3]

#import "linear"
#import "copy_places"

fn element(start: u32, column: u32) -> u32 {
  let inside = column < params.source_extent_3;
  let at = select(params.source_offset, start + column * params.source_3, inside);
#ifdef HALF
  let word = (source_words[at / 2u] >> (at % 2u * 16u)) & 0xffffu;
#else
  let word = source_words[at];
#endif
  return select(0u, word, inside);
}

@compute @workgroup_size(WORKGROUP)
fn copy_chunks(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let count = params.extent_0 * params.extent_1 * params.extent_2 * params.extent_3;
  let first = linear_group(group, counts) * (WORKGROUP * ITEMS) + lane;
  var place = place_of(first);
  for (var i = 0u; i < ITEMS; i++) {
    let index = first + i * WORKGROUP;
    if index < count {
      let start = params.source_offset + place.x * params.source_0 + place.y * params.source_1
        + place.z * params.source_2;
      let column = place.w * 4u;
      let elements = vec4<u32>(element(start, column), element(start, column + 1u),
        element(start, column + 2u), element(start, column + 3u));
#ifdef HALF
      target_chunks[params.target_offset + index] =
        elements.xz | (elements.yw << vec2<u32>(16u));
#else
      target_chunks[params.target_offset + index] = elements;
#endif
    }
    place = step_on(place);
  }
}
