// Strided gather of 16-bit elements, up to four dimensions, into a contiguous target whose last
// dimension may be longer: the rest is filled with zeros.
// An invocation owns ITEMS words of the target, two elements each; no workgroup memory.

struct Params {
  // Extents of the target.
  extent_0: u32, extent_1: u32, extent_2: u32, extent_3: u32,
  // Extent of the source's last dimension.
  source_extent_3: u32,
  // In elements.
  source_offset: u32,
  source_0: u32, source_1: u32, source_2: u32, source_3: u32,
  // Twice WORKGROUP as a number whose digits count to the extents.
  step_0: u32, step_1: u32, step_2: u32, step_3: u32,
  // In words.
  target_offset: u32,
}

@group(0) @binding(0) var<storage, read> source_words: array<u32>; // strided [e0, e1, e2, source e3]
@group(0) @binding(1) var<storage, read_write> target_words: array<u32>; // [e0, e1, e2, e3]

#import "linear"
#import "copy_places"

fn element(place: vec4<u32>) -> u32 {
  let at = params.source_offset + place.x * params.source_0 + place.y * params.source_1
    + place.z * params.source_2 + place.w * params.source_3;
  let inside = place.w < params.source_extent_3 && place.x < params.extent_0;
  let word = source_words[select(0u, at / 2u, inside)];
  return select(0u, (word >> (at % 2u * 16u)) & 0xffffu, inside);
}

@compute @workgroup_size(WORKGROUP)
fn copy_half(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let count = params.extent_0 * params.extent_1 * params.extent_2 * params.extent_3;
  let first = linear_group(group, counts) * (WORKGROUP * ITEMS) + lane;
  var place = place_of(first * 2u);
  #unroll
  for (var i = 0u; i < ITEMS; i++) {
    let word = first + i * WORKGROUP;
    if word * 2u < count {
      let second = carried(place + vec4<u32>(0u, 0u, 0u, 1u));
      target_words[params.target_offset + word] = element(place) | (element(second) << 16u);
    }
    place = step_on(place);
  }
}
