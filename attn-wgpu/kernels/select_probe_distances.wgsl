// Adds to the mean over some queries of the probability at each distance what a slab of keys has of
// it: exp2(logit * log2(e) - lse) where query i sees key i + first - distance of the slab.
//
// An invocation owns a distance of a head. No workgroup memory; needs three storage buffers.

struct Params {
  count: u32,
  // Distances that the slab touches, the first of them, and all.
  touched: u32, lowest: u32, extent_1: u32,
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
  let plane = index / params.touched;
  let distance = params.lowest + index - plane * params.touched;
  let at = at_place(numbers_of(plane, params.extent_1, 1u), params.x);
  // Query i stands at this distance from key i + shift of the slab.
  let shift = params.first - i32(distance);
  let begin = u32(max(-shift, 0));
  let end = u32(clamp(i32(params.keys) - shift, 0, i32(params.queries)));
  let step = params.x.stride_2 + 1u;
  var from_row = at + u32(max(shift, 0)) + begin * params.x.stride_2;
  let lse_at = plane * params.queries;
  var sum = 0.0;
  for (var query = begin; query < end; query++) {
    let power = x[from_row] * LOG2_E - lse[lse_at + query];
    sum += exp2(clamp(power, -200.0, 1.0));
    from_row += step;
  }
  out[params.out_start + plane * params.distances + distance] += sum * params.share;
}

#import "each"
