// Kernels whose groups own ROWS keys, past which queries are streamed: registers with the keys, and their
// products with a query.

const SUMS = ROWS;

var<private> k_rows: array<vec4<f32>, ROWS * CHUNKS_QK>;

#import "attention_lanes"

// Reads keys, scaled. Those beyond the last repeat it. Lanes beyond the dimension multiply by zero.
fn read_keys(batch: u32, head_kv: u32, first_key: u32) {
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let key = min(first_key + r, params.keys - 1u);
    let k_at = params.k_start + batch * params.k_batch + head_kv * params.k_head + key * params.k_token;
    #unroll
    for (var c = 0u; c < CHUNKS_QK; c++) {
      k_rows[r * CHUNKS_QK + c] = select(vec4<f32>(0.0), unpack(k[k_at + chunk_k[c]]) * params.scale, inside_k[c]);
    }
  }
}

// The products with the query that begins at `q_at`.
fn key_sums(q_at: u32) -> array<f32, SUMS> {
  var logits: array<vec4<f32>, ROWS>;
  #unroll
  for (var c = 0u; c < CHUNKS_QK; c++) {
    let chunk = unpack(q[q_at + chunk_k[c]]);
    #unroll
    for (var r = 0u; r < ROWS; r++) {
      if c == 0u {
        logits[r] = k_rows[r * CHUNKS_QK] * chunk;
      } else {
        logits[r] = fma(k_rows[r * CHUNKS_QK + c], chunk, logits[r]);
      }
    }
  }
  var sums: array<f32, SUMS>;
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let logit = logits[r];
    sums[r] = (logit.x + logit.y) + (logit.z + logit.w);
  }
  add_lanes(&sums);
  return sums;
}
