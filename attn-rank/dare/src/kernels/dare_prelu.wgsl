// PReLU with one slope: x where it is positive, slope * x elsewhere; with BACKWARD the derivative dy * 1 or
// dy * slope. An invocation owns one element. No workgroup memory; needs up to four storage buffers.

struct Params {
  count: u32,
}

@group(0) @binding(0) var<storage, read> x: array<f32>; // [rows, width]
@group(0) @binding(1) var<storage, read> slope: array<f32>; // [1]
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [rows, width]
#ifdef BACKWARD
@group(0) @binding(3) var<storage, read> dy: array<f32>; // [rows, width]
#endif

#import "linear"

@compute @workgroup_size(WORKGROUP)
fn dare_prelu(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= params.count {
    return;
  }
  let own = x[index];
#ifdef BACKWARD
  out[index] = dy[index] * select(slope[0], 1.0, own > 0.0);
#else
  out[index] = own * select(slope[0], 1.0, own > 0.0);
#endif
}
