// Normalised columns: hat = (x - mean) / sqrt(variance + eps), out = gain * hat + bias. With BACKWARD from
// derivatives dy: dx = gain / sqrt(variance + eps) * (dy - sum dy / rows - hat * sum (dy * hat) / rows).
// An invocation owns one element. No workgroup memory; needs up to seven storage buffers.

struct Params {
  count: u32, width: u32,
  // Words.
  x_start: u32, x_stride: u32,
  eps: f32,
  // 1 / rows.
  share: f32,
}

#ifdef BACKWARD
@group(0) @binding(0) var<storage, read> dy: array<f32>; // [rows, width]
@group(0) @binding(1) var<storage, read> hat: array<f32>; // [rows, width]
@group(0) @binding(2) var<storage, read> variance: array<f32>; // [width]
@group(0) @binding(3) var<storage, read> gain: array<f32>; // [width]
@group(0) @binding(4) var<storage, read> sums: array<f32>; // [width], of dy
@group(0) @binding(5) var<storage, read> products: array<f32>; // [width], of dy * hat
@group(0) @binding(6) var<storage, read_write> dx: array<f32>; // [rows, width]
#else
@group(0) @binding(0) var<storage, read> x: array<f32>; // strided [rows, width]
@group(0) @binding(1) var<storage, read> mean: array<f32>; // [width]
@group(0) @binding(2) var<storage, read> variance: array<f32>; // [width]
@group(0) @binding(3) var<storage, read> gain: array<f32>; // [width]
@group(0) @binding(4) var<storage, read> bias: array<f32>; // [width]
@group(0) @binding(5) var<storage, read_write> hat: array<f32>; // [rows, width]
@group(0) @binding(6) var<storage, read_write> out: array<f32>; // [rows, width]
#endif

#import "linear"

@compute @workgroup_size(WORKGROUP)
fn dare_norm(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let given = params;
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= given.count {
    return;
  }
  let row = index / given.width;
  let column = index - row * given.width;
  let root = 1.0 / sqrt(variance[column] + given.eps);
#ifdef BACKWARD
#ifdef FIXED
  // The statistics do not depend on the rows.
  dx[index] = gain[column] * root * dy[index];
#else
  let around = dy[index] - given.share * fma(hat[index], products[column], sums[column]);
  dx[index] = gain[column] * root * around;
#endif
#else
  let own = (x[given.x_start + row * given.x_stride + column] - mean[column]) * root;
  hat[index] = own;
  out[index] = fma(gain[column], own, bias[column]);
#endif
}
