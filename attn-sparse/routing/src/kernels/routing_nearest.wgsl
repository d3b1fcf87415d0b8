// Step 4, assignment: the centroid of largest score of each token, the first among equals, from scores
// [planes, clusters, tokens]. With VALID, padding gets none, and its scores become NaN, which is below
// everything; those of other tokens that are NaN become -inf, so that they stay above padding.
// An invocation owns four neighbouring tokens. No workgroup memory; needs three storage buffers.

struct Params {
  count: u32,
  // vec4s of a row of scores.
  chunks: u32,
  tokens: u32, clusters: u32, heads: u32,
  // The bits of NaN and of -inf, which WGSL has no constants for.
  nan: u32, lowest: u32,
}

const NONE = 0xffffffffu;

#ifdef VALID
@group(0) @binding(0) var<storage, read_write> scores: array<vec4<f32>>; // [planes, clusters, chunks]
#else
@group(0) @binding(0) var<storage, read> scores: array<vec4<f32>>; // [planes, clusters, chunks]
#endif
@group(0) @binding(1) var<storage, read_write> assigned: array<u32>; // [planes, tokens]
#ifdef VALID
@group(0) @binding(2) var<storage, read> valid: array<u32>; // [batch, tokens]
#endif

fn one(index: u32) {
  let plane = index / params.chunks;
  let chunk = index - plane * params.chunks;
  let lowest = vec4<f32>(bitcast<f32>(params.lowest));
#ifdef VALID
  let first = plane / params.heads * params.tokens;
  var is_valid = vec4<bool>(false);
  #unroll
  for (var j = 0u; j < 4u; j++) {
    let token = min(4u * chunk + j, params.tokens - 1u);
    is_valid[j] = valid[first + token] != 0u;
  }
#endif
  var top = lowest;
  var best = vec4<u32>(0u);
  for (var c = 0u; c < params.clusters; c++) {
    let at = (plane * params.clusters + c) * params.chunks + chunk;
    var score = scores[at];
#ifdef VALID
    let size = bitcast<vec4<u32>>(score) & vec4<u32>(0x7fffffffu);
    score = select(score, lowest, size > vec4<u32>(0x7f800000u));
    scores[at] = select(vec4<f32>(bitcast<f32>(params.nan)), score, is_valid);
#endif
    let better = score > top;
    top = select(top, score, better);
    best = select(best, vec4<u32>(c), better);
  }
#ifdef VALID
  best = select(vec4<u32>(NONE), best, is_valid);
#endif
  #unroll
  for (var j = 0u; j < 4u; j++) {
    if 4u * chunk + j < params.tokens {
      assigned[plane * params.tokens + 4u * chunk + j] = best[j];
    }
  }
}

@compute @workgroup_size(WORKGROUP)
#import "each"
