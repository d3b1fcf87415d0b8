// Rows of logits of blocks, of which a row sees those up to its own with CAUSAL: as they are, minus
// infinity elsewhere; or with SOFTMAX their softmax, 0 elsewhere.
//
// LANES lanes share a row, WORKGROUP / LANES rows a workgroup; workgroup memory for partial results
// where a row has more lanes than a subgroup. Needs two storage buffers.

struct Params {
  rows: u32, width: u32, extent_1: u32, extent_2: u32,
  // vec4s.
  x: Place, out: Place,
  // vec4s of a row of the result.
  out_chunks: u32,
  // The last block that row 0 sees.
  first: i32,
  // The bits of minus infinity, which WGSL has no constant for.
  nothing: u32,
}

#import "halves"
#import "source"
#import "row_place"
#import "linear"
#import "row_reduce"
#import "keys"

@group(0) @binding(0) var<storage, read> x: array<Source>; // strided [e0, e1, e2, width]
@group(0) @binding(1) var<storage, read_write> out: array<vec4<f32>>; // strided [e0, e1, e2, width]

#import "row_mass"

@compute @workgroup_size(WORKGROUP)
fn select_block_rows(
#import "arguments"
) {
#import "row_item"
#ifdef CAUSAL
  width = u32(clamp(i32(numbers.z) + params.first + 1, 0, i32(params.width)));
#endif
  let x_at = at_place(numbers, params.x);
  let out_at = at_place(numbers, params.out);
  let chunks = (width + 3u) / 4u;
#ifdef SOFTMAX
  let nothing = 0.0;
  let mass = row_mass(x_at, in_row);
  let factor = select(0.0, 1.0 / mass.sum, mass.top > EMPTY);
#else
  let nothing = bitcast<f32>(params.nothing);
#endif
  if !is_row {
    return;
  }
  for (var c = in_row; c < params.out_chunks; c += LANES) {
    var value = vec4<f32>(nothing);
    if c < chunks {
      let elements = 4u * c + vec4<u32>(0u, 1u, 2u, 3u);
#ifdef SOFTMAX
      let visible = weights(logits(x_at, c), mass.top) * factor;
#else
      let visible = unpack_source(x[x_at + c]);
#endif
      value = select(value, visible, elements < vec4<u32>(width));
    }
    out[out_at + c] = value;
  }
}
