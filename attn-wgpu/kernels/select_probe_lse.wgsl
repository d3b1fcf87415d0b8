// Log-sum-exp of the logits of some queries over a slab of keys, as far as each query sees them; with
// MORE joined to what earlier slabs gave.
//
// LANES lanes share a row, WORKGROUP / LANES rows a workgroup; workgroup memory for partial results
// where a row has more lanes than a subgroup. Needs two storage buffers.

struct Params {
  rows: u32, width: u32, extent_1: u32, extent_2: u32,
  // vec4s.
  x: Place,
  // Words.
  lse: Place,
  // The last key of the slab that query 0 sees.
  first: i32,
}

#import "halves"
#import "source"
#import "row_place"
#import "linear"
#import "row_reduce"
#import "keys"

@group(0) @binding(0) var<storage, read> x: array<Source>; // strided [batch, heads, queries, width]
@group(0) @binding(1) var<storage, read_write> lse: array<f32>; // [batch, heads, queries], in base 2

#import "row_mass"

@compute @workgroup_size(WORKGROUP)
fn select_probe_lse(
#import "arguments"
) {
#import "row_item"
  width = u32(clamp(i32(numbers.z) + params.first + 1, 0, i32(params.width)));
  let mass = row_mass(at_place(numbers, params.x), in_row);
  if !is_row || in_row > 0u {
    return;
  }
  var sum = LOWEST;
  if mass.top > EMPTY {
    sum = mass.top * LOG2_E + log2(mass.sum);
  }
  let at = at_place(numbers, params.lse);
#ifdef MORE
  let before = lse[at];
  let top = max(sum, before);
  let low = min(sum, before);
  sum = top + log2(1.0 + exp2(max(low - top, -200.0)));
#endif
  lse[at] = sum;
}
