// Features of a head: the candidate v, the pooled history h, and with PRODUCT v * h, side by side.
// An invocation owns one element of a request's v. No workgroup memory; needs three storage buffers.

struct Params {
  count: u32,
  item_width: u32, category_width: u32, time_width: u32,
  // Words of a row of v and h, and of the features.
  stride: u32, out_stride: u32,
}

@group(0) @binding(0) var<storage, read> v: array<f32>; // [rows, stride]
@group(0) @binding(1) var<storage, read> h: array<f32>; // [rows, stride]
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [rows, out_stride]

#import "linear"
#import "place"

@compute @workgroup_size(WORKGROUP)
fn dare_features(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= params.count {
    return;
  }
  let width = params.item_width + params.category_width + params.time_width;
  let row = index / width;
  let column = index - row * width;
  let at = row * params.stride + place_of(column);
  let own = v[at];
  let pooled = h[at];
  let out_at = row * params.out_stride + column;
  out[out_at] = own;
  out[out_at + width] = pooled;
#ifdef PRODUCT
  out[out_at + 2u * width] = own * pooled;
#endif
}
