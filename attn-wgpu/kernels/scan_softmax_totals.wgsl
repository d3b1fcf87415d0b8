// Totals of tiles to prefixes before tiles, or to the element of all tokens alone (LAST), of the scan of
// scan_softmax.wgsl, beginning with FIRST if there is any. An invocation owns four elements and walks the
// tiles. No workgroup memory; needs up to three storage buffers.

#import "scan_place"

struct Params {
  planes: u32, heads: u32,
  // vec4s of a value.
  chunks: u32,
  tiles: u32,
  // In vec4s.
  first: Place, prefixes: Place,
}

#import "linear"
#import "scan_item"
#import "scan_weight"

@group(0) @binding(0) var<storage, read> totals: array<vec4<f32>>; // [batch, heads, tiles, chunks + 1]
@group(0) @binding(1) var<storage, read_write> prefixes: array<vec4<f32>>; // strided [batch, heads, tiles or 1, chunks + 1]
#ifdef FIRST
@group(0) @binding(2) var<storage, read> first: array<vec4<f32>>; // strided [batch, heads, chunks + 1]
#endif

@compute @workgroup_size(WORKGROUP)
fn scan_softmax_totals(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let given = params;
  let lanes = given.chunks + 1u;
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  let item = item_of(index, lanes, 1u, given.heads, given.planes);
  if !item.is_one {
    return;
  }
  let c = item.lane;
  let is_sum = c == given.chunks;
  var m = LOWEST;
  // Of the last lane: u in the first element.
  var w = vec4<f32>(0.0);
#ifdef FIRST
  let first_at = at_head(given.first, item.batch, item.head);
  m = first[first_at + given.chunks].y;
  w = first[first_at + c];
#endif
  let row = (item.batch * given.heads + item.head) * given.tiles;
  let at = at_head(given.prefixes, item.batch, item.head) + c;
  for (var tile = 0u; tile < given.tiles; tile++) {
    let total = (row + tile) * lanes;
#ifdef LAST
#else
    prefixes[at + tile * given.prefixes.stride_2] = select(w, vec4<f32>(w.x, m, 0.0, 0.0), is_sum);
#endif
    let own_m = totals[total + given.chunks].y;
    let top = max(m, own_m);
    w = fma(w, vec4<f32>(weight(m, top)), totals[total + c] * weight(own_m, top));
    m = top;
  }
#ifdef LAST
  prefixes[at] = select(w, vec4<f32>(w.x, m, 0.0, 0.0), is_sum);
#endif
}
