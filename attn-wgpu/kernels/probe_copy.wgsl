// Speed of reading and writing memory in order.
// A workgroup owns WORKGROUP * ITEMS neighbouring vec4s; no workgroup memory.

struct Params {
  count: u32,
}

@group(0) @binding(0) var<storage, read> source: array<vec4<f32>>; // [count]
@group(0) @binding(1) var<storage, read_write> copied: array<vec4<f32>>; // [count]

#import "linear"

@compute @workgroup_size(WORKGROUP)
fn probe_copy(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let first = linear_group(group, counts) * (WORKGROUP * ITEMS) + lane;
  #unroll
  for (var i = 0u; i < ITEMS; i++) {
    let index = first + i * WORKGROUP;
    if index < params.count {
      copied[index] = source[index];
    }
  }
}
