// Softmax over rows; a row without any value above -inf gives zeros.
//
// LANES lanes share a row, WORKGROUP / LANES rows a workgroup; workgroup memory for partial results
// where a row has more lanes than a subgroup. Needs two storage buffers.

struct Params {
  rows: u32, width: u32, extent_1: u32, extent_2: u32,
  // vec4s.
  x: Place, out: Place,
}

#import "halves"
#import "source"
#import "target"
#import "row_place"
#import "linear"
#import "row_reduce"
#import "keys"

@group(0) @binding(0) var<storage, read> x: array<Source>; // strided [e0, e1, e2, width]
@group(0) @binding(1) var<storage, read_write> out: array<Target>; // strided [e0, e1, e2, width]

#import "row_mass"

@compute @workgroup_size(WORKGROUP)
fn softmax(
#import "arguments"
) {
#import "row_item"
  let x_at = at_place(numbers, params.x);
  let out_at = at_place(numbers, params.out);
  let mass = row_mass(x_at, in_row);
  if !is_row {
    return;
  }
  let factor = select(0.0, 1.0 / mass.sum, mass.top > EMPTY);
  let chunks = (width + 3u) / 4u;
  for (var c = in_row; c < chunks; c += LANES) {
    out[out_at + c] = pack_target(weights(logits(x_at, c), mass.top) * factor);
  }
}
