// Coefficients of the recurrence of gradients: out_t = e^(lse_t - lse_(t + 1)), at most 1; 1 behind the last
// token, 0 where nothing counts yet. An invocation owns a token of a head. No workgroup memory; needs two
// storage buffers.

struct Params {
  count: u32, tokens: u32,
}

#import "linear"
#import "weight"

@group(0) @binding(0) var<storage, read> lse: array<f32>; // [batch, heads, tokens]
@group(0) @binding(1) var<storage, read_write> out: array<f32>; // [batch, heads, tokens]

@compute @workgroup_size(WORKGROUP)
fn aaren_decay(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= params.count {
    return;
  }
  let is_last = index % params.tokens + 1u == params.tokens;
  let next = lse[min(index + 1u, params.count - 1u)];
  let own = lse[index];
  out[index] = select(weight(own, next), select(1.0, 0.0, own <= EMPTY), is_last);
}
