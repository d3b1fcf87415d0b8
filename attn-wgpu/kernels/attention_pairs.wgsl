// Backward kernels: ROWS rows of a group against one row that is streamed past them. Own rows are
// queries and cotangents, and the other a key and a value, or the other way round.

// Products q . k and d_out . v of all rows, added over the lanes together.
const SUMS = ROWS * 2u;

var<private> own_qk: array<vec4<f32>, ROWS * CHUNKS_QK>;
var<private> own_v: array<vec4<f32>, ROWS * CHUNKS_V>;
var<private> other_qk: array<vec4<f32>, CHUNKS_QK>;
var<private> other_v: array<vec4<f32>, CHUNKS_V>;

#import "attention_lanes"

// The products q . k of the rows, then their d_out . v.
fn pair_sums() -> array<f32, SUMS> {
  var logits: array<vec4<f32>, ROWS>;
  #unroll
  for (var c = 0u; c < CHUNKS_QK; c++) {
    #unroll
    for (var r = 0u; r < ROWS; r++) {
      if c == 0u {
        logits[r] = own_qk[r * CHUNKS_QK] * other_qk[c];
      } else {
        logits[r] = fma(own_qk[r * CHUNKS_QK + c], other_qk[c], logits[r]);
      }
    }
  }
  var weights: array<vec4<f32>, ROWS>;
  #unroll
  for (var c = 0u; c < CHUNKS_V; c++) {
    #unroll
    for (var r = 0u; r < ROWS; r++) {
      if c == 0u {
        weights[r] = own_v[r * CHUNKS_V] * other_v[c];
      } else {
        weights[r] = fma(own_v[r * CHUNKS_V + c], other_v[c], weights[r]);
      }
    }
  }
  var sums: array<f32, SUMS>;
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let logit = logits[r];
    let weight = weights[r];
    sums[r] = (logit.x + logit.y) + (logit.z + logit.w);
    sums[ROWS + r] = (weight.x + weight.y) + (weight.z + weight.w);
  }
  add_lanes(&sums);
  return sums;
}
