// One step of online softmax in base 2: ROWS query rows of a group of lanes absorb KEYS keys.
// Registers hold the rows of q and out, and their statistics; no workgroup memory of its own.

var<private> q_rows: array<vec4<f32>, ROWS * CHUNKS_QK>;
var<private> out_rows: array<vec4<f32>, ROWS * CHUNKS_V>;
// Per row: largest logit so far, and sum of exponentials relative to it.
var<private> row_max: array<f32, ROWS>;
var<private> row_sum: array<f32, ROWS>;
var<private> rows: array<Row, ROWS>;
// Per row: batch entry and head in the call, for modifiers.
var<private> row_batch: array<u32, ROWS>;
var<private> row_head: array<u32, ROWS>;
#ifdef STATS
var<private> row_argmax: array<u32, ROWS>;
#endif
fn start_rows() {
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    #unroll
    for (var c = 0u; c < CHUNKS_V; c++) {
      out_rows[r * CHUNKS_V + c] = vec4<f32>(0.0);
    }
    row_max[r] = MASKED;
    row_sum[r] = 0.0;
#ifdef STATS
    row_argmax[r] = NO_KEY;
#endif
  }
}

// With `tested`, rows that do not see a key read neither its logit nor its value; without, all rows
// see all keys.
fn absorb(keys: array<u32, KEYS>, tested: bool, k_start: u32, v_start: u32) {
  var k_at: array<u32, KEYS>;
  var v_at: array<u32, KEYS>;
  #unroll
  for (var b = 0u; b < KEYS; b++) {
    let key = min(keys[b], params.keys - 1u);
    k_at[b] = k_start + key * params.k_token;
    v_at[b] = v_start + key * params.v_token;
  }

  var products: array<vec4<f32>, SUMS>;
  #unroll
  for (var c = 0u; c < CHUNKS_QK; c++) {
    #unroll
    for (var b = 0u; b < KEYS; b++) {
      let key = unpack(k[k_at[b] + chunk_k[c]]);
      #unroll
      for (var r = 0u; r < ROWS; r++) {
        if c == 0u {
          products[b * ROWS + r] = q_rows[r * CHUNKS_QK] * key;
        } else {
          products[b * ROWS + r] = fma(q_rows[r * CHUNKS_QK + c], key, products[b * ROWS + r]);
        }
      }
    }
  }
  var scores: array<f32, SUMS>;
  #unroll
  for (var i = 0u; i < SUMS; i++) {
    let product = products[i];
    scores[i] = (product.x + product.y) + (product.z + product.w);
  }
  add_lanes(&scores);

  var allowed: array<bool, SUMS>;
  #unroll
  for (var b = 0u; b < KEYS; b++) {
    #unroll
    for (var r = 0u; r < ROWS; r++) {
      let logit = logit_of(scores[b * ROWS + r], row_batch[r], row_head[r], rows[r], keys[b]);
      scores[b * ROWS + r] = logit.value;
      if tested {
        allowed[b * ROWS + r] = logit.allowed && sees(rows[r], keys[b]);
        scores[b * ROWS + r] = select(MASKED, logit.value, allowed[b * ROWS + r]);
#ifdef KEY_BIAS
        allowed[b * ROWS + r] = allowed[b * ROWS + r] && key_bias[b] > MASKED;
#endif
      }
#ifdef KEY_BIAS
      scores[b * ROWS + r] += max(key_bias[b], MASKED) * LOG2_E;
#endif
    }
  }

  var shrink: array<f32, ROWS>;
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    var top = row_max[r];
    #unroll
    for (var b = 0u; b < KEYS; b++) {
#ifdef STATS
      row_argmax[r] = select(row_argmax[r], keys[b], scores[b * ROWS + r] > top);
#endif
      top = max(top, scores[b * ROWS + r]);
    }
    shrink[r] = exp2(row_max[r] - top);
    row_max[r] = top;
    var sum = 0.0;
    #unroll
    for (var b = 0u; b < KEYS; b++) {
      var weight = exp2(scores[b * ROWS + r] - top);
      if tested {
        weight = select(0.0, weight, allowed[b * ROWS + r]);
      }
      scores[b * ROWS + r] = weight;
      sum += weight;
    }
    row_sum[r] = fma(row_sum[r], shrink[r], sum);
  }

  #unroll
  for (var c = 0u; c < CHUNKS_V; c++) {
    #unroll
    for (var b = 0u; b < KEYS; b++) {
      let value = unpack(v[v_at[b] + chunk_v[c]]);
      #unroll
      for (var r = 0u; r < ROWS; r++) {
        var seen = value;
        if tested {
          seen = select(vec4<f32>(0.0), value, allowed[b * ROWS + r]);
        }
        var sum = out_rows[r * CHUNKS_V + c];
        if b == 0u {
          sum *= shrink[r];
        }
        out_rows[r * CHUNKS_V + c] = fma(vec4<f32>(scores[b * ROWS + r]), seen, sum);
      }
    }
  }
}
