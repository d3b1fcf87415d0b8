// Derivatives of features: dh = dx_h + v dx_p and dv = dx_v + h dx_p, the latter added to what is there with
// ACCUMULATE. Elements that fill up chunks stay 0.
// An invocation owns one element of a request's v. No workgroup memory; needs five storage buffers.

struct Params {
  count: u32,
  item_width: u32, category_width: u32, time_width: u32,
  // Words of a row of v and h, and of the features.
  stride: u32, dx_stride: u32, dx_start: u32,
}

@group(0) @binding(0) var<storage, read> dx: array<f32>; // [rows, dx_stride]
@group(0) @binding(1) var<storage, read> v: array<f32>; // [rows, stride]
@group(0) @binding(2) var<storage, read> h: array<f32>; // [rows, stride]
@group(0) @binding(3) var<storage, read_write> dh: array<f32>; // [rows, stride]
@group(0) @binding(4) var<storage, read_write> dv: array<f32>; // [rows, stride]

#import "linear"
#import "place"

@compute @workgroup_size(WORKGROUP)
fn dare_features_back(
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
  let dx_at = params.dx_start + row * params.dx_stride + column;
  var by_v = dx[dx_at];
  var by_h = dx[dx_at + width];
#ifdef PRODUCT
  let by_product = dx[dx_at + 2u * width];
  by_v = fma(h[at], by_product, by_v);
  by_h = fma(v[at], by_product, by_h);
#endif
  dh[at] = by_h;
#ifdef ACCUMULATE
  dv[at] += by_v;
#else
  dv[at] = by_v;
#endif
}
