// The part of scores that slots have: tau[slot] = scale * <row of slot 0, row of slot>, as a candidate's slot
// is 0 always. An invocation owns one slot. No workgroup memory; needs two storage buffers.

struct Params {
  count: u32,
  // vec4s.
  time_start: u32, time_chunks: u32,
  scale: f32,
}

@group(0) @binding(0) var<storage, read> time_table: array<vec4<f32>>; // [slots, time_chunks]
@group(0) @binding(1) var<storage, read_write> tau: array<f32>; // [slots]

#import "linear"

@compute @workgroup_size(WORKGROUP)
fn dare_tau(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let given = params;
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= given.count {
    return;
  }
  var sum = vec4<f32>(0.0);
  for (var c = 0u; c < given.time_chunks; c++) {
    let own = time_table[given.time_start + c] * given.scale;
    sum = fma(own, time_table[given.time_start + index * given.time_chunks + c], sum);
  }
  tau[index] = (sum.x + sum.y) + (sum.z + sum.w);
}
