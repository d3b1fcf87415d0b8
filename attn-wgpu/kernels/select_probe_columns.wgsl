// Mean over some queries of the probability of each key of a slab: exp2(logit * log2(e) - lse), 0
// where a query does not see the key.
//
// An invocation owns four neighbouring keys of a head. No workgroup memory; needs three storage
// buffers.

struct Params {
  count: u32,
  chunks: u32, extent_1: u32, queries: u32,
  // vec4s.
  x: Place,
  keys: u32,
  // The last key of the slab that query 0 sees.
  first: i32,
  // Words: the result, and from one head to the next.
  out_start: u32, out_stride: u32,
  share: f32,
}

#import "row_place"

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>; // strided [batch, heads, queries, keys]
@group(0) @binding(1) var<storage, read> lse: array<f32>; // [batch, heads, queries], in base 2
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // strided [batch, heads, keys]

const LOG2_E = 1.4426950408889634;

fn one(index: u32) {
  let plane = index / params.chunks;
  let chunk = index - plane * params.chunks;
  let numbers = numbers_of(plane, params.extent_1, 1u);
  let keys = vec4<i32>(i32(4u * chunk)) + vec4<i32>(0, 1, 2, 3);
  let at = at_place(numbers, params.x) + chunk;
  let stride = params.x.stride_2;
  let lse_at = plane * params.queries;
  // The first query that sees the first of these keys.
  let begin = u32(max(keys.x - params.first, 0));
  var sums = vec4<f32>(0.0);
  for (var query = begin; query < params.queries; query++) {
    let visible = keys <= vec4<i32>(i32(query) + params.first);
    let power = x[at + query * stride] * LOG2_E - lse[lse_at + query];
    sums += select(vec4<f32>(0.0), exp2(max(power, vec4<f32>(-200.0))), visible);
  }
  sums *= params.share;
  let out_at = params.out_start + plane * params.out_stride + 4u * chunk;
  #unroll
  for (var j = 0u; j < 4u; j++) {
    if 4u * chunk + j < params.keys {
      out[out_at + j] = sums[j];
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "each"
