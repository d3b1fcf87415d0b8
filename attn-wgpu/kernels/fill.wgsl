// Writes one 32-bit word over a whole range.
// A workgroup owns WORKGROUP * ITEMS neighbouring words; no workgroup memory.

struct Params {
  word: u32,
  count: u32,
}

@group(0) @binding(0) var<storage, read_write> target_words: array<u32>; // [count]

#import "linear"

@compute @workgroup_size(WORKGROUP)
fn fill(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let first = linear_group(group, counts) * (WORKGROUP * ITEMS) + lane;
  for (var i = 0u; i < ITEMS; i++) {
    let index = first + i * WORKGROUP;
    if index < params.count {
      target_words[index] = params.word;
    }
  }
}
