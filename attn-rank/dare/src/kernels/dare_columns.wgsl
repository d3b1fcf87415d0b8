// Sums over the rows of a matrix, by column: out = factor * sum of x; with SQUARES of (x - center)^2, with
// PRODUCTS of x * y, with BELOW of x * y where y is not positive. Always in one order.
//
// A workgroup owns COLUMNS columns; PARTS lanes share one, each with every PARTS-th row. Workgroup memory: one
// word a lane. Needs up to three storage buffers.

struct Params {
  rows: u32, width: u32,
  // Words.
  x_start: u32, x_stride: u32, y_start: u32, y_stride: u32,
  factor: f32,
}

@group(0) @binding(0) var<storage, read> x: array<f32>; // strided [rows, width]
@group(0) @binding(1) var<storage, read_write> out: array<f32>; // [width]
#ifdef SQUARES
@group(0) @binding(2) var<storage, read> center: array<f32>; // [width]
#else
#ifdef PRODUCTS
@group(0) @binding(2) var<storage, read> y: array<f32>; // strided [rows, width]
#else
#ifdef BELOW
@group(0) @binding(2) var<storage, read> y: array<f32>; // strided [rows, width]
#endif
#endif
#endif

#import "linear"

var<workgroup> parts: array<f32, COLUMNS * PARTS>;

fn term(row: u32, column: u32) -> f32 {
  let own = x[params.x_start + row * params.x_stride + column];
#ifdef SQUARES
  let off = own - center[column];
  return off * off;
#else
#ifdef PRODUCTS
  return own * y[params.y_start + row * params.y_stride + column];
#else
#ifdef BELOW
  let other = y[params.y_start + row * params.y_stride + column];
  return select(own * other, 0.0, other > 0.0);
#else
  return own;
#endif
#endif
#endif
}

@compute @workgroup_size(COLUMNS * PARTS)
fn dare_columns(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let first = linear_group(workgroup, counts) * COLUMNS;
  if first >= params.width {
    return;
  }
  let part = lane / COLUMNS;
  let column = first + lane - part * COLUMNS;
  var sum = 0.0;
  if column < params.width {
    for (var row = part; row < params.rows; row += PARTS) {
      sum += term(row, column);
    }
  }
  parts[lane] = sum;
  workgroupBarrier();
  if part == 0u && column < params.width {
    for (var other = 1u; other < PARTS; other++) {
      sum += parts[other * COLUMNS + lane];
    }
    out[column] = params.factor * sum;
  }
}
