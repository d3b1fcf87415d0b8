// Sums of neighbouring tokens, or with MEAN, HIGHEST or LOWEST their mean or extremes, block by block.
//
// An invocation owns ITEMS vec4s of the result. No workgroup memory; needs two storage buffers.

struct Params {
  // vec4s of the result, and of one of its rows.
  count: u32,
  chunks: u32,
  extent_1: u32, blocks: u32,
  // vec4s.
  x: Place, out: Place,
  // Tokens: all, of a block, and how many the first block lacks.
  tokens: u32, block: u32, lack: u32,
}

#import "halves"
#import "source"
#import "row_place"

@group(0) @binding(0) var<storage, read> x: array<Source>; // strided [e0, e1, tokens, dim]
@group(0) @binding(1) var<storage, read_write> out: array<vec4<f32>>; // strided [e0, e1, blocks, dim]

fn one(index: u32) {
  let row = index / params.chunks;
  let chunk = index - row * params.chunks;
  let numbers = numbers_of(row, params.extent_1, params.blocks);
  let end_in_grid = (numbers.z + 1u) * params.block - params.lack;
  let start = max(end_in_grid, params.block) - params.block;
  let end = min(end_in_grid, params.tokens);
  let plane = at_place(vec3<u32>(numbers.xy, 0u), params.x) + chunk;
  var value = unpack_source(x[plane + start * params.x.stride_2]);
  for (var token = start + 1u; token < end; token++) {
    let next = unpack_source(x[plane + token * params.x.stride_2]);
#ifdef HIGHEST
    value = max(value, next);
#else
#ifdef LOWEST
    value = min(value, next);
#else
    value += next;
#endif
#endif
  }
#ifdef MEAN
  value /= f32(end - start);
#endif
  out[at_place(numbers, params.out) + chunk] = value;
}

@compute @workgroup_size(WORKGROUP)
#import "each"
