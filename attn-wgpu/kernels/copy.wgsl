// Strided copy of 32-bit words, up to four dimensions; `pack` is the same with a target whose last
// dimension is longer: the rest is filled with zeros.
// A workgroup owns WORKGROUP * ITEMS neighbouring words of the target; no workgroup memory.

struct Params {
  // Extents of the target.
  extent_0: u32, extent_1: u32, extent_2: u32, extent_3: u32,
  // Extent of the source's last dimension.
  source_extent_3: u32,
  source_offset: u32,
  source_0: u32, source_1: u32, source_2: u32, source_3: u32,
  // WORKGROUP as a number whose digits count to the extents.
  step_0: u32, step_1: u32, step_2: u32, step_3: u32,
  target_offset: u32,
  target_0: u32, target_1: u32, target_2: u32, target_3: u32,
}

@group(0) @binding(0) var<storage, read> source_words: array<u32>; // strided [e0, e1, e2, source e3]
@group(0) @binding(1) var<storage, read_write> target_words: array<u32>; // strided [e0, e1, e2, e3]

#import "linear"
#import "copy_places"

@compute @workgroup_size(WORKGROUP)
fn copy(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let count = params.extent_0 * params.extent_1 * params.extent_2 * params.extent_3;
  let first = linear_group(group, counts) * (WORKGROUP * ITEMS) + lane;
  var place = place_of(first);
  #unroll
  for (var i = 0u; i < ITEMS; i++) {
    if first + i * WORKGROUP < count {
      let at = params.source_offset + place.x * params.source_0 + place.y * params.source_1
        + place.z * params.source_2 + place.w * params.source_3;
      let inside = place.w < params.source_extent_3;
      let word = source_words[select(0u, at, inside)];
      target_words[params.target_offset + place.x * params.target_0 + place.y * params.target_1
        + place.z * params.target_2 + place.w * params.target_3] = select(0u, word, inside);
    }
    place = step_on(place);
  }
}
