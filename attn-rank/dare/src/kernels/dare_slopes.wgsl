// Derivatives by scores, through a softmax: ds_j = w_j (dw_j - sum_i w_i dw_i).
// An invocation owns one behaviour. No workgroup memory; needs four storage buffers.

struct Params {
  count: u32,
  // Behaviours of a request.
  length: u32,
}

@group(0) @binding(0) var<storage, read> weights: array<f32>; // [rows, length]
@group(0) @binding(1) var<storage, read> dw: array<f32>; // [rows, length]
@group(0) @binding(2) var<storage, read> means: array<f32>; // [rows]
@group(0) @binding(3) var<storage, read_write> ds: array<f32>; // [rows, length]

#import "linear"

@compute @workgroup_size(WORKGROUP)
fn dare_slopes(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= params.count {
    return;
  }
  ds[index] = weights[index] * (dw[index] - means[index / params.length]);
}
