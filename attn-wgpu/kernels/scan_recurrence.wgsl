// A tile of the recurrence h_t = a_t h_before + x_t, where what is before is t - 1, or t + 1 if REVERSED:
// TOTALS writes what the tile adds up to, starting from 0, and the product of its coefficients; else every
// h_t is written, from the prefix before the tile (BASE), and the last one once more. Without COEFFICIENTS
// they are all 1.
//
// An invocation owns four elements of a tile and walks its tokens; with TOTALS and COEFFICIENTS there is a
// lane more, for the product. No workgroup memory; needs up to five storage buffers.

#import "scan_place"

struct Params {
  planes: u32, heads: u32, tokens: u32,
  // vec4s of a token.
  chunks: u32,
  tile: u32, tiles: u32,
  // Heads that share a head of x.
  group: u32,
  lanes: u32,
  // x, h, base and last in vec4s, a in words.
  x: Place, a: Place, base: Place, h: Place, last: Place,
}

#import "halves"
#import "source"
#import "linear"
#import "scan_item"

@group(0) @binding(0) var<storage, read> x: array<Source>; // strided [batch, heads_x, tokens, width]
#ifdef TOTALS
@group(0) @binding(1) var<storage, read_write> h: array<vec4<f32>>; // [batch, heads, tiles, lanes]
#ifdef COEFFICIENTS
@group(0) @binding(2) var<storage, read> a: array<f32>; // [batch, heads, tokens]
#endif
#else
@group(0) @binding(1) var<storage, read_write> h: array<vec4<f32>>; // strided [batch, heads, tokens, width]
@group(0) @binding(2) var<storage, read_write> last: array<vec4<f32>>; // [batch, heads, width]
#ifdef COEFFICIENTS
@group(0) @binding(3) var<storage, read> a: array<f32>; // [batch, heads, tokens]
#ifdef BASE
@group(0) @binding(4) var<storage, read> base: array<vec4<f32>>; // [batch, heads, tiles, width]
#endif
#else
#ifdef BASE
@group(0) @binding(3) var<storage, read> base: array<vec4<f32>>; // [batch, heads, tiles, width]
#endif
#endif
#endif

@compute @workgroup_size(WORKGROUP)
fn scan_recurrence(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  // Read once: behind every store drivers would read them again.
  let given = params;
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  let item = item_of(index, given.lanes, given.tiles, given.heads, given.planes);
  if !item.is_one {
    return;
  }
  let c = item.lane;
  let x_at = at_head(given.x, item.batch, item.head / given.group) + c;
  let h_at = at_head(given.h, item.batch, item.head) + c;
  let first = item.tile * given.tile;
  let end = min(first + given.tile, given.tokens);
  var sum = vec4<f32>(0.0);
#ifdef COEFFICIENTS
  let a_at = at_head(given.a, item.batch, item.head);
  var product = 1.0;
#endif
#ifdef BASE
  let before = base[at_head(given.base, item.batch, item.head) + item.tile * given.base.stride_2 + c];
#endif
  var value = vec4<f32>(0.0);
  for (var step = first; step < end; step++) {
#ifdef REVERSED
    let t = given.tokens - 1u - step;
#else
    let t = step;
#endif
    var own = vec4<f32>(0.0);
    if c < given.chunks {
      own = unpack_source(x[x_at + t * given.x.stride_2]);
    }
#ifdef COEFFICIENTS
    let factor = a[a_at + t];
    product *= factor;
    sum = fma(sum, vec4<f32>(factor), own);
#else
    sum += own;
#endif
#ifdef TOTALS
  }
#ifdef COEFFICIENTS
  if c == given.chunks {
    sum = vec4<f32>(product, 0.0, 0.0, 0.0);
  }
#endif
  h[h_at + item.tile * given.h.stride_2] = sum;
#else
    value = sum;
#ifdef BASE
#ifdef COEFFICIENTS
    value = fma(before, vec4<f32>(product), value);
#else
    value += before;
#endif
#endif
    h[h_at + t * given.h.stride_2] = value;
  }
  if item.tile + 1u == given.tiles {
    last[at_head(given.last, item.batch, item.head) + c] = value;
  }
#endif
}
