// One number a row: ln sum exp(x), or with TARGET the log-probability of one element,
// x[target] - ln sum exp(x), NaN where there is no such element.
//
// LANES lanes share a row, WORKGROUP / LANES rows a workgroup; workgroup memory for partial results
// where a row has more lanes than a subgroup. Needs three storage buffers.

struct Params {
  rows: u32, width: u32, extent_1: u32, extent_2: u32,
  // vec4s.
  x: Place,
  // Words.
  out: Place, targets: Place,
  cap: f32,
}

#import "halves"
#import "source"
#import "row_place"
#import "linear"
#import "row_reduce"
#import "keys"
#ifdef SOFT_CAP
#import "soft_cap"
#endif

@group(0) @binding(0) var<storage, read> x: array<Source>; // strided [e0, e1, e2, width]
@group(0) @binding(1) var<storage, read_write> out: array<u32>; // strided [e0, e1, e2], bits
#ifdef TARGET
@group(0) @binding(2) var<storage, read> targets: array<u32>; // strided [e0, e1, e2]
#endif

#import "row_mass"

@compute @workgroup_size(WORKGROUP)
fn log_softmax(
#import "arguments"
) {
#import "row_item"
  let x_at = at_place(numbers, params.x);
  let mass = row_mass(x_at, in_row);
  if !is_row || in_row > 0u {
    return;
  }
  let log_sum = log2(mass.sum) * LN_2;
#ifdef TARGET
  let element = targets[at_place(numbers, params.targets)];
  let inside = element < width;
  let at = select(0u, element, inside);
  let value = logits(x_at, at / 4u)[at % 4u];
  let found = select(0xff800000u, bitcast<u32>((value - mass.top) - log_sum), value > EMPTY);
  out[at_place(numbers, params.out)] = select(0x7fc00000u, found, inside);
#else
  out[at_place(numbers, params.out)] = select(0xff800000u, bitcast<u32>(mass.top + log_sum), mass.top > EMPTY);
#endif
}
