// Totals of tiles to prefixes before tiles, of the recurrence of scan_recurrence.wgsl, beginning with FIRST
// if there is any. An invocation owns four elements and walks the tiles.
// No workgroup memory; needs up to three storage buffers.

#import "scan_place"

struct Params {
  // First, since uniform buffers align it.
  first: Place,
  planes: u32, heads: u32,
  // vec4s of a token.
  chunks: u32,
  tiles: u32,
  // vec4s of a tile's total.
  lanes: u32,
}

#import "linear"
#import "scan_item"

@group(0) @binding(0) var<storage, read> totals: array<vec4<f32>>; // [batch, heads, tiles, lanes]
@group(0) @binding(1) var<storage, read_write> prefixes: array<vec4<f32>>; // [batch, heads, tiles, chunks]
#ifdef FIRST
@group(0) @binding(2) var<storage, read> first: array<vec4<f32>>; // strided [batch, heads, width]
#endif

@compute @workgroup_size(WORKGROUP)
fn scan_recurrence_totals(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let given = params;
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  let item = item_of(index, given.chunks, 1u, given.heads, given.planes);
  if !item.is_one {
    return;
  }
  var sum = vec4<f32>(0.0);
#ifdef FIRST
  sum = first[at_head(given.first, item.batch, item.head) + item.lane];
#endif
  let row = (item.batch * given.heads + item.head) * given.tiles;
  for (var tile = row; tile < row + given.tiles; tile++) {
    prefixes[tile * given.chunks + item.lane] = sum;
    let total = totals[tile * given.lanes + item.lane];
#ifdef COEFFICIENTS
    sum = fma(sum, vec4<f32>(totals[tile * given.lanes + given.chunks].x), total);
#else
    sum += total;
#endif
  }
}
