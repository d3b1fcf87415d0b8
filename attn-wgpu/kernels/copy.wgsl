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
  target_offset: u32,
  target_0: u32, target_1: u32, target_2: u32, target_3: u32,
}

@group(0) @binding(0) var<storage, read> source_words: array<u32>; // strided [e0, e1, e2, source e3]
@group(0) @binding(1) var<storage, read_write> target_words: array<u32>; // strided [e0, e1, e2, e3]

#import "linear"

@compute @workgroup_size(WORKGROUP)
fn copy(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let count = params.extent_0 * params.extent_1 * params.extent_2 * params.extent_3;
  let first = linear_group(group, counts) * (WORKGROUP * ITEMS) + lane;
  for (var i = 0u; i < ITEMS; i++) {
    let index = first + i * WORKGROUP;
    if index >= count {
      break;
    }
    let i3 = index % params.extent_3;
    let rest_2 = index / params.extent_3;
    let i2 = rest_2 % params.extent_2;
    let rest_1 = rest_2 / params.extent_2;
    let i1 = rest_1 % params.extent_1;
    let i0 = rest_1 / params.extent_1;
    let at = params.source_offset + i0 * params.source_0 + i1 * params.source_1
      + i2 * params.source_2 + i3 * params.source_3;
    var word = 0u;
    if i3 < params.source_extent_3 {
      word = source_words[at];
    }
    target_words[params.target_offset + i0 * params.target_0 + i1 * params.target_1
      + i2 * params.target_2 + i3 * params.target_3] = word;
  }
}
