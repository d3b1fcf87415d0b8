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

#import "linear"
#import "attention_logits"
#import "attention_keys"
#import "attention_segments"

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
  let sums = key_sums(q_start + query * params.q_token);
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

  // Keys beyond the last are not stored.
  read_keys(batch, head_kv, first_key);
  #unroll
  for (var r = 0u; r < ROWS; r++) {
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
