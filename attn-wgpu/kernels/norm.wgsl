// Normalisation of rows: out = x / rms(x) * (weight_offset + weight), or with LAYER
// (x - mean) / deviation * weight + bias; with ADD, x + delta is stored and then normalised.
//
// LANES lanes share a row, WORKGROUP / LANES rows a workgroup; workgroup memory for partial sums
// where a row has more lanes than a subgroup. Needs up to five storage buffers.

struct Params {
  rows: u32, width: u32, extent_1: u32, extent_2: u32,
  // vec4s.
  x: Place, delta: Place, sum: Place, out: Place,
  weight_start: u32, bias_start: u32,
  eps: f32, weight_offset: f32,
}

#import "halves"
#import "source"
#import "target"
#import "row_place"
#import "linear"
#import "row_reduce"

@group(0) @binding(0) var<storage, read> x: array<Source>; // strided [e0, e1, e2, width]
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>; // [width]
@group(0) @binding(2) var<storage, read_write> out: array<Target>; // strided [e0, e1, e2, width]
#ifdef LAYER
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>; // [width]
#endif
#ifdef ADD
@group(0) @binding(3) var<storage, read> delta: array<Source>; // strided [e0, e1, e2, width]
@group(0) @binding(4) var<storage, read_write> sum: array<Source>; // strided [e0, e1, e2, width]
#endif

#import "row_root"

@compute @workgroup_size(WORKGROUP)
fn norm(
#import "arguments"
) {
#import "row_item"
  let chunks = (width + 3u) / 4u;
  let weight_start = params.weight_start;
  let weight_offset = params.weight_offset;
#ifdef LAYER
  let bias_start = params.bias_start;
#endif
  let x_at = at_place(numbers, params.x);
  let out_at = at_place(numbers, params.out);
#ifdef ADD
  let delta_at = at_place(numbers, params.delta);
  let sum_at = at_place(numbers, params.sum);
#endif

  var mean = 0.0;
#ifdef LAYER
  var total = vec4<f32>(0.0);
  for (var c = in_row; c < chunks; c += LANES) {
    total += unpack_source(x[x_at + c]) / f32(width);
  }
  mean = horizontal(add_row(total));
#endif

  var plain = vec4<f32>(0.0);
  var small = vec4<f32>(0.0);
  for (var c = in_row; c < chunks; c += LANES) {
#ifdef ADD
    let stored = pack_source(unpack_source(x[x_at + c]) + unpack_source(delta[delta_at + c]));
    if is_row {
      sum[sum_at + c] = stored;
    }
    let value = unpack_source(stored);
#else
#ifdef LAYER
    // Elements behind the width are 0, and would differ from the mean.
    let elements = 4u * c + vec4<u32>(0u, 1u, 2u, 3u);
    let deviation = unpack_source(x[x_at + c]) - mean;
    let value = select(vec4<f32>(0.0), deviation, elements < vec4<u32>(width));
#else
    let value = unpack_source(x[x_at + c]);
#endif
#endif
    plain = fma(value, value, plain);
    let scaled = value * SMALL;
    small = fma(scaled, scaled, small);
  }
  let factor = inverse_root(add_row(vec4<f32>(horizontal(plain), horizontal(small), 0.0, 0.0)));

  if !is_row {
    return;
  }
  for (var c = in_row; c < chunks; c += LANES) {
#ifdef ADD
    let value = unpack_source(sum[sum_at + c]);
#else
    let value = unpack_source(x[x_at + c]) - mean;
#endif
    let scale = weight[weight_start + c] + weight_offset;
#ifdef LAYER
    out[out_at + c] = pack_target(fma(value * factor, scale, bias[bias_start + c]));
#else
    out[out_at + c] = pack_target(value * factor * scale);
#endif
  }
}
