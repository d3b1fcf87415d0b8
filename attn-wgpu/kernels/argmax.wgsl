// Number of the largest element of each row: the lowest among equals, NaN below everything.
//
// LANES lanes share a row, WORKGROUP / LANES rows a workgroup; workgroup memory for partial results
// where a row has more lanes than a subgroup. Needs two storage buffers.

struct Params {
  rows: u32, width: u32, extent_1: u32, extent_2: u32,
  // vec4s.
  x: Place,
  // Words.
  out_start: u32,
}

#import "halves"
#import "source"
#import "row_place"
#import "linear"
#import "row_reduce"
#import "keys"

@group(0) @binding(0) var<storage, read> x: array<Source>; // strided [e0, e1, e2, width]
@group(0) @binding(1) var<storage, read_write> out: array<u32>; // [rows]

#import "row_keys"
#import "row_best"

@compute @workgroup_size(WORKGROUP)
fn argmax(
#import "arguments"
) {
#import "row_item"
  let best = row_best(at_place(numbers, params.x), in_row);
  if is_row && in_row == 0u {
    out[params.out_start + row] = best.element;
  }
}
