// Products with the transposed probabilities: transposed_t = sum over queries of p_it x_i, for each query head
// and key, without storing the map.
//
// A workgroup owns TILE = WORKGROUP / LANES * ROWS keys of one query head. Registers hold ROWS rows of k and of
// the result. Workgroup memory only without subgroups. Needs six storage buffers.

struct Params {
  // `out` is the place of x, and `v` that of the result; both are f32 and of dim_v elements.
#import "attention_fields"
}

#import "attention_storage"

@group(0) @binding(0) var<storage, read> q: array<Chunk>; // [B, H, M, dim_qk]
@group(0) @binding(1) var<storage, read> k: array<Chunk>; // [B, Hkv, N, dim_qk]
@group(0) @binding(2) var<storage, read> stats: array<f32>; // lse [B, H, M]
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>; // [B, H, M, dim_v]
@group(0) @binding(4) var<storage, read_write> transposed: array<vec4<f32>>; // [B, H, N, dim_v]
@group(0) @binding(5) var<storage, read> table: array<u32>; // see mask_table.rs

const TILE = GROUPS * ROWS;
const SUMS = ROWS;

#import "linear"
#import "attention_logits"
#import "attention_lanes"
#import "attention_segments"

var<private> k_rows: array<vec4<f32>, ROWS * CHUNKS_QK>;
var<private> sum_rows: array<vec4<f32>, ROWS * CHUNKS_V>;
var<private> x_row: array<vec4<f32>, CHUNKS_V>;

// Absorbs one query. With `tested`, keys that it does not see read neither it nor its x.
fn absorb(
  query: u32, tested: bool, first_key: u32, q_start: u32, x_start: u32, stats_start: u32, batch: u32, head: u32,
) {
  let stored_lse = stats[stats_start + query];
  // The largest number where the row is empty, so that every weight is 0.
  let lse = select(3e38, stored_lse * LOG2_E, stored_lse > -1e29);
  let row = row_of(query);
  var logits: array<vec4<f32>, ROWS>;
  #unroll
  for (var c = 0u; c < CHUNKS_QK; c++) {
    let chunk = unpack(q[q_start + query * params.q_token + chunk_k[c]]);
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
  #unroll
  for (var c = 0u; c < CHUNKS_V; c++) {
    x_row[c] = x[x_start + query * params.out_token + chunk_v[c]];
  }
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let logit = logit_of(sums[r], batch, head, row, first_key + r);
    var p = exp2(logit.value - lse);
    var allowed = true;
    if tested {
      allowed = logit.allowed && sees(row, first_key + r);
      p = select(0.0, p, allowed);
    }
    #unroll
    for (var c = 0u; c < CHUNKS_V; c++) {
      var seen = x_row[c];
      if tested {
        seen = select(vec4<f32>(0.0), seen, allowed);
      }
      sum_rows[r * CHUNKS_V + c] = fma(vec4<f32>(p), seen, sum_rows[r * CHUNKS_V + c]);
    }
  }
}

@compute @workgroup_size(WORKGROUP)
fn attention_transposed(
#import "attention_arguments"
) {
#import "attention_item"
  // First tiles first: under a causal mask they are visited by the most queries.
  let tile = params.first_tile + item % params.tiles;
  let plane = item / params.tiles;
  let head = plane % dispatch_heads();
  let batch = plane / dispatch_heads();
  let head_kv = head / group_heads();
  let first_key = tile * TILE + lane / LANES * ROWS;

  // Keys beyond the last repeat it and are not stored. Lanes beyond a dimension multiply by zero.
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let key = min(first_key + r, params.keys - 1u);
    let k_at = params.k_start + batch * params.k_batch + head_kv * params.k_head + key * params.k_token;
    #unroll
    for (var c = 0u; c < CHUNKS_QK; c++) {
      k_rows[r * CHUNKS_QK + c] = select(vec4<f32>(0.0), unpack(k[k_at + chunk_k[c]]) * params.scale, inside_k[c]);
    }
    #unroll
    for (var c = 0u; c < CHUNKS_V; c++) {
      sum_rows[r * CHUNKS_V + c] = vec4<f32>(0.0);
    }
  }

  let q_start = params.q_start + batch * params.q_batch + head * params.q_head;
  let x_start = params.out_start + batch * params.out_batch + head * params.out_head;
  let stats_start = params.stats_start + plane * params.queries;
  let call_batch = params.first_batch + batch;
  let call_head = params.first_head + head;
  let numbers = segments(tile);
  for (var number = numbers.x; number < numbers.y; number++) {
    let visited = segment(tile, number);
    var query = visited.start;
#ifdef MODIFIER
#else
    for (; query < select(visited.start, visited.end, visited.full); query++) {
      absorb(query, false, first_key, q_start, x_start, stats_start, call_batch, call_head);
    }
#endif
    for (; query < visited.end; query++) {
      absorb(query, true, first_key, q_start, x_start, stats_start, call_batch, call_head);
    }
  }

  let sums_start = params.v_start + batch * params.v_batch + head * params.v_head;
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let key = first_key + r;
    if key < params.keys {
      #unroll
      for (var c = 0u; c < CHUNKS_V; c++) {
        if inside_v[c] {
          transposed[sums_start + key * params.v_token + chunk_v[c]] = sum_rows[r * CHUNKS_V + c];
        }
      }
    }
  }
}
