// Adds to the mean over some queries of the probability at each distance what a slab of keys has of
// it: exp2(logit * log2(e) - lse) where query i sees key i + first - distance of the slab.
//
// An invocation owns four neighbouring distances of a head, as loads are what costs time. No workgroup
// memory; needs three storage buffers.

struct Params {
  count: u32,
  // Invocations of a head, the first distance that the slab touches, and heads.
  chunks: u32, lowest: u32, extent_1: u32,
  // Words.
  x: Place,
  queries: u32, keys: u32, distances: u32,
  // The last key of the slab that query 0 sees.
  first: i32,
  out_start: u32,
  share: f32,
}

#import "row_place"

@group(0) @binding(0) var<storage, read> x: array<f32>; // strided [batch, heads, queries, keys]
@group(0) @binding(1) var<storage, read> lse: array<f32>; // [batch, heads, queries], in base 2
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [batch, heads, distances]

const LOG2_E = 1.4426950408889634;

fn one(index: u32) {
  let plane = index / params.chunks;
  let distance = params.lowest + 4u * (index - plane * params.chunks);
  let at = at_place(numbers_of(plane, params.extent_1, 1u), params.x);
  let lse_at = plane * params.queries;
  let last = i32(params.keys) - 1;
  let stride = params.x.stride_2;
  // Query i stands at this distance from key i + shift of the slab.
  let shift = params.first - i32(distance);
  let begin = u32(max(-shift, 0));
  let end = u32(clamp(last + 4 - shift, 0, i32(params.queries)));
  var sums = vec4<f32>(0.0);
  for (var query = begin; query < end; query++) {
    let keys = vec4<i32>(i32(query) + shift) - vec4<i32>(0, 1, 2, 3);
    let places = vec4<u32>(at + query * stride) + vec4<u32>(clamp(keys, vec4<i32>(0), vec4<i32>(last)));
    let logits = vec4<f32>(x[places.x], x[places.y], x[places.z], x[places.w]);
    let power = logits * LOG2_E - lse[lse_at + query];
    let inside = (keys >= vec4<i32>(0)) & (keys <= vec4<i32>(last));
    sums += select(vec4<f32>(0.0), exp2(max(power, vec4<f32>(-200.0))), inside);
  }
  sums *= params.share;
  let out_at = params.out_start + plane * params.distances;
  #unroll
  for (var j = 0u; j < 4u; j++) {
    if distance + j < params.distances {
      out[out_at + distance + j] += sums[j];
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "each"
