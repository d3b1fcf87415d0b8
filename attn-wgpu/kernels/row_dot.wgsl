// Products of rows: out = factor * sum (x + shift) (y + shift) over the last dimension; `masked` for rows
// that do not count (VALID).
//
// LANES lanes share a row, WORKGROUP / LANES rows a workgroup; workgroup memory for partial sums where a row
// has more lanes than a subgroup. Needs up to four storage buffers.

struct Params {
  rows: u32, width: u32, extent_1: u32, extent_2: u32,
  // x and y in vec4s, out in words.
  x: Place, y: Place, out: Place,
  // Rows of dimension 1 that share one of x, and of y.
  group_x: u32, group_y: u32,
  factor: f32, shift: f32,
  // In words.
  valid: Place,
  masked: f32,
}

#import "halves"
#import "source"
#import "target"
#import "row_place"
#import "linear"
#import "row_reduce"

@group(0) @binding(0) var<storage, read> x: array<Source>; // strided [e0, e1 / group_x, e2, width]
@group(0) @binding(1) var<storage, read> y: array<Target>; // strided [e0, e1 / group_y, e2, width]
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // strided [e0, e1, e2]
#ifdef VALID
@group(0) @binding(3) var<storage, read> valid: array<u32>; // strided [e0, e1, e2]
#endif

@compute @workgroup_size(WORKGROUP)
fn row_dot(
#import "arguments"
) {
#import "row_item"
  let x_at = at_place(vec3<u32>(numbers.x, numbers.y / params.group_x, numbers.z), params.x);
  let y_at = at_place(vec3<u32>(numbers.x, numbers.y / params.group_y, numbers.z), params.y);
  let shift = params.shift;
  let chunks = (width + 3u) / 4u;
  var sum = vec4<f32>(0.0);
  for (var c = in_row; c < chunks; c += LANES) {
    // Elements behind the width are 0, and would count where there is a shift.
    let inside = 4u * c + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(width);
    let product = (unpack_source(x[x_at + c]) + shift) * (unpack_target(y[y_at + c]) + shift);
    sum += select(vec4<f32>(0.0), product, inside);
  }
  let total = horizontal(add_row(sum));
  if is_row && in_row == 0u {
    var result = params.factor * total;
#ifdef VALID
    if valid[at_place(numbers, params.valid)] == 0u {
      result = params.masked;
    }
#endif
    out[at_place(numbers, params.out)] = result;
  }
}
