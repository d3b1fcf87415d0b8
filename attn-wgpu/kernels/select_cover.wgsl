// How many of the largest elements of each row are needed to weigh `wanted`; with EXCEED, how many
// weigh no more than that together.
//
// LANES lanes share a row, WORKGROUP / LANES rows a workgroup; workgroup memory for lists and sums.
// Needs two storage buffers.

struct Params {
  rows: u32, width: u32, extent_1: u32, extent_2: u32,
  // vec4s.
  x: Place,
  // Words.
  counts: Place,
  wanted: f32,
}

#import "halves"
#import "source"
#import "row_place"
#import "linear"
#import "row_reduce"
#import "keys"

@group(0) @binding(0) var<storage, read> x: array<Source>; // strided [e0, e1, e2, width]
@group(0) @binding(1) var<storage, read_write> needed_counts: array<u32>; // strided [e0, e1, e2]

#import "row_keys"
#import "search"

@compute @workgroup_size(WORKGROUP)
fn select_cover(
#import "arguments"
) {
#import "row_item"
  let at = at_place(numbers, params.x);
  let wanted = params.wanted;
  let key = search(at, in_row, wanted);

  // Elements above the threshold: what they weigh and how many they are; and those equal to it.
  let chunks = (width + 3u) / 4u;
  var sums = vec4<f32>(0.0);
  var part = 0.0;
  for (var c = in_row; c < chunks; c += LANES) {
    let keys = chunk_keys(at, c);
    if any(keys >= vec4<u32>(key)) {
      let is_above = keys > vec4<u32>(key);
      let is_equal = keys == vec4<u32>(key);
      part += horizontal(select(vec4<f32>(0.0), weights_of(keys), is_above));
      sums.y += horizontal(select(vec4<f32>(0.0), vec4<f32>(1.0), is_above));
      sums.z += horizontal(select(vec4<f32>(0.0), vec4<f32>(1.0), is_equal));
    }
    if (c / LANES) % BLOCK == BLOCK - 1u {
      sums.x += part;
      part = 0.0;
    }
  }
  sums.x += part;
  sums = add_row(sums);
  let weight = max(weights_of(vec4<u32>(key)).x, 1e-37);
  let equals = (wanted - sums.x) / weight;
  // Rounding must not contradict the search.
#ifdef EXCEED
  let taken = clamp(floor(equals), 0.0, max(sums.z - 1.0, 0.0));
#else
  let taken = min(max(ceil(equals), 1.0), sums.z);
#endif
  if is_row && in_row == 0u {
    let count = select(params.width, u32(sums.y + taken), key > 0u);
    needed_counts[at_place(numbers, params.counts)] = count;
  }
}
