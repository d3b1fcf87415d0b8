// Normalisation of rows without weights, y = x r with r = 1 / sqrt(mean(x^2) + eps); with BACKWARD
// its vector-Jacobian product, dx = r (dy - y mean(y dy)).
//
// LANES lanes share a row, WORKGROUP / LANES rows a workgroup; workgroup memory for partial sums
// where a row has more lanes than a subgroup. Needs up to three storage buffers.

struct Params {
  rows: u32, width: u32, extent_1: u32, extent_2: u32,
  // vec4s.
  x: Place, dy: Place, out: Place,
  eps: f32,
}

#import "halves"
#import "source"
#import "target"
#import "row_place"
#import "linear"
#import "row_reduce"

@group(0) @binding(0) var<storage, read> x: array<Source>; // strided [e0, e1, e2, width]
@group(0) @binding(1) var<storage, read_write> out: array<Target>; // strided [e0, e1, e2, width]
#ifdef BACKWARD
@group(0) @binding(2) var<storage, read> dy: array<Source>; // strided [e0, e1, e2, width]
#endif

#import "row_root"

@compute @workgroup_size(WORKGROUP)
fn simple_norm(
#import "arguments"
) {
#import "row_item"
  let chunks = (width + 3u) / 4u;
  let x_at = at_place(numbers, params.x);
  let out_at = at_place(numbers, params.out);
  var plain = vec4<f32>(0.0);
  var small = vec4<f32>(0.0);
  for (var c = in_row; c < chunks; c += LANES) {
    let value = unpack_source(x[x_at + c]);
    plain = fma(value, value, plain);
    let scaled = value * SMALL;
    small = fma(scaled, scaled, small);
  }
  let root = inverse_root(add_row(vec4<f32>(horizontal(plain), horizontal(small), 0.0, 0.0)));
#ifdef BACKWARD
  let dy_at = at_place(numbers, params.dy);
  var products = vec4<f32>(0.0);
  for (var c = in_row; c < chunks; c += LANES) {
    products = fma(unpack_source(x[x_at + c]) * root, unpack_source(dy[dy_at + c]), products);
  }
  let mean = horizontal(add_row(products)) / f32(width);
#endif

  if !is_row {
    return;
  }
  for (var c = in_row; c < chunks; c += LANES) {
    let y = unpack_source(x[x_at + c]) * root;
#ifdef BACKWARD
    out[out_at + c] = pack_target(root * (unpack_source(dy[dy_at + c]) - y * mean));
#else
    out[out_at + c] = pack_target(y);
#endif
  }
}
