// Sums over a tile of tokens: out = factor * sum_t w_t (x_t + shift), with weights if WEIGHTS.
//
// An invocation owns four elements of a tile and walks its tokens. No workgroup memory; needs up to three
// storage buffers.

#import "scan_place"

struct Params {
  // First, since uniform buffers align them. x and out in vec4s, weights in words.
  x: Place, weights: Place, out: Place,
  planes: u32, heads: u32, tokens: u32,
  // vec4s of a token.
  chunks: u32,
  tile: u32, tiles: u32,
  // Heads that share a head of x.
  group: u32,
  factor: f32,
  shift: f32,
}

#import "halves"
#import "source"
#import "linear"
#import "scan_item"

@group(0) @binding(0) var<storage, read> x: array<Source>; // strided [batch, heads_x, tokens, width]
@group(0) @binding(1) var<storage, read_write> out: array<vec4<f32>>; // strided [batch, heads, tiles, width]
#ifdef WEIGHTS
@group(0) @binding(2) var<storage, read> weights: array<f32>; // strided [batch, heads, tokens]
#endif

@compute @workgroup_size(WORKGROUP)
fn scan_columns(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let given = params;
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  let item = item_of(index, given.chunks, given.tiles, given.heads, given.planes);
  if !item.is_one {
    return;
  }
  let x_at = at_head(given.x, item.batch, item.head / given.group) + item.lane;
#ifdef WEIGHTS
  let weights_at = at_head(given.weights, item.batch, item.head);
#endif
  let first = item.tile * given.tile;
  let end = min(first + given.tile, given.tokens);
  var sum = vec4<f32>(0.0);
  for (var t = first; t < end; t++) {
#ifdef WEIGHTS
    // What weighs nothing is not read.
    let weight = weights[weights_at + t * given.weights.stride_2];
    if weight != 0.0 {
      sum = fma(vec4<f32>(weight), unpack_source(x[x_at + t * given.x.stride_2]) + given.shift, sum);
    }
#else
    sum += unpack_source(x[x_at + t * given.x.stride_2]) + given.shift;
#endif
  }
  let at = at_head(given.out, item.batch, item.head) + item.tile * given.out.stride_2 + item.lane;
  out[at] = given.factor * sum;
}
