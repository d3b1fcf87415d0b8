// A tile of the scan of (m, u, w): largest score, sum of exp(s - m), and that sum weighted by values.
// TOTALS writes what the tile's tokens combine to; else the outputs w / u and lse = m + ln u of every prefix,
// with what is before the tile (BASE), and the element of all tokens.
//
// An invocation owns four elements of a tile and walks its tokens; the last lane of a tile owns u, m and lse.
// Elements are [chunks of w, (u, m, 0, 0)]. The tile's own tokens are combined on their own before they meet
// what is before them, for the sake of rounding. No workgroup memory; needs up to six storage buffers.

#import "scan_place"

struct Params {
  planes: u32, heads: u32, tokens: u32,
  // vec4s of a value.
  chunks: u32,
  tile: u32, tiles: u32,
  // Heads that share a head of v.
  group: u32,
  // The bits of -inf.
  nothing: u32,
  // v, base, out and last in vec4s, scores and lse in words.
  scores: Place, v: Place, base: Place, out: Place, lse: Place, last: Place,
}

#import "halves"
#import "source"
#import "target"
#import "linear"
#import "scan_item"
#import "scan_weight"

@group(0) @binding(0) var<storage, read> scores: array<f32>; // strided [batch, heads, tokens]
@group(0) @binding(1) var<storage, read> v: array<Source>; // strided [batch, heads_v, tokens, width]
@group(0) @binding(2) var<storage, read_write> last: array<vec4<f32>>; // [batch, heads, tiles or 1, chunks + 1]
#ifdef TOTALS
#else
@group(0) @binding(3) var<storage, read_write> out: array<Target>; // strided [batch, heads, tokens, width]
@group(0) @binding(4) var<storage, read_write> lse: array<f32>; // strided [batch, heads, tokens]
#ifdef BASE
@group(0) @binding(5) var<storage, read> base: array<vec4<f32>>; // [batch, heads, tiles, chunks + 1]
#endif
#endif

@compute @workgroup_size(WORKGROUP)
fn scan_softmax(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  // Read once: behind every store drivers would read them again.
  let given = params;
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  let item = item_of(index, given.chunks + 1u, given.tiles, given.heads, given.planes);
  if !item.is_one {
    return;
  }
  let c = item.lane;
  let scores_at = at_head(given.scores, item.batch, item.head);
  let v_at = at_head(given.v, item.batch, item.head / given.group) + c;
  let first = item.tile * given.tile;
  let end = min(first + given.tile, given.tokens);
  var m = LOWEST;
  var u = 0.0;
  var w = vec4<f32>(0.0);
#ifdef TOTALS
#else
  var before_m = LOWEST;
  var before_u = 0.0;
  var before_w = vec4<f32>(0.0);
#ifdef BASE
  let base_at = at_head(given.base, item.batch, item.head) + item.tile * given.base.stride_2;
  before_u = base[base_at + given.chunks].x;
  before_m = base[base_at + given.chunks].y;
  before_w = base[base_at + c];
#endif
  let out_at = at_head(given.out, item.batch, item.head) + c;
  let lse_at = at_head(given.lse, item.batch, item.head);
#endif
  for (var t = first; t < end; t++) {
    let score = scores[scores_at + t * given.scores.stride_2];
    // A masked token's value is never read. NaN is no mask.
    if !(score <= EMPTY) {
      let top = max(m, score);
      let kept = weight(m, top);
      let own = weight(score, top);
      u = fma(u, kept, own);
      if c < given.chunks {
        w = fma(w, vec4<f32>(kept), own * unpack_source(v[v_at + t * given.v.stride_2]));
      }
      m = top;
    }
#ifdef TOTALS
  }
  if c == given.chunks {
    w = vec4<f32>(u, m, 0.0, 0.0);
  }
  last[at_head(given.last, item.batch, item.head) + item.tile * given.last.stride_2 + c] = w;
#else
    let top = max(m, before_m);
    let kept = weight(m, top);
    let before = weight(before_m, top);
    let sum = fma(u, kept, before_u * before);
    if c == given.chunks {
      lse[lse_at + t * given.lse.stride_2] = select(bitcast<f32>(given.nothing), top + log2(sum) * LN_2, sum > 0.0);
    } else {
      let weighted = fma(w, vec4<f32>(kept), before_w * before);
      out[out_at + t * given.out.stride_2] = pack_target(weighted * select(0.0, 1.0 / sum, sum > 0.0));
    }
  }
  if item.tile + 1u == given.tiles {
    let top = max(m, before_m);
    let kept = weight(m, top);
    let before = weight(before_m, top);
    w = fma(w, vec4<f32>(kept), before_w * before);
    if c == given.chunks {
      w = vec4<f32>(fma(u, kept, before_u * before), top, 0.0, 0.0);
    }
    last[at_head(given.last, item.batch, item.head) + c] = w;
  }
#endif
}
