// Column sums of the probabilities: sum over queries of p_it, for each head and key, without
// storing the map.
//
// A workgroup owns TILE = WORKGROUP / LANES * ROWS keys of one query head. Registers hold ROWS keys.
// Workgroup memory only without subgroups. Needs five storage buffers.

struct Params {
#import "attention_fields"
  sums_start: u32,
}

#import "attention_storage"

@group(0) @binding(0) var<storage, read> q: array<Chunk>; // [B, H, M, dim_qk]
@group(0) @binding(1) var<storage, read> k: array<Chunk>; // [B, Hkv, N, dim_qk]
@group(0) @binding(2) var<storage, read> stats: array<f32>; // lse [B, H, M]
@group(0) @binding(3) var<storage, read_write> column_sums: array<f32>; // [B, H, N]
@group(0) @binding(4) var<storage, read> table: array<u32>; // see mask_table.rs

const TILE = GROUPS * ROWS;

#import "linear"
#import "attention_logits"
#import "attention_keys"
#import "attention_segments"

var<private> column: array<f32, ROWS>;

fn absorb(query: u32, first_key: u32, q_start: u32, stats_start: u32, batch: u32, head: u32) {
  let stored_lse = stats[stats_start + query];
  let lse = select(3e38, stored_lse * LOG2_E, stored_lse > -1e29);
  let row = row_of(query);
  let sums = key_sums(q_start + query * params.q_token);
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let logit = logit_of(sums[r], batch, head, row, first_key + r);
    let allowed = logit.allowed && sees(row, first_key + r);
    column[r] += select(0.0, exp2(logit.value - lse), allowed);
  }
}

@compute @workgroup_size(WORKGROUP)
fn attention_columns(
#import "attention_arguments"
) {
#import "attention_item"
  let tile = params.first_tile + item % params.tiles;
  let plane = item / params.tiles;
  let head = plane % dispatch_heads();
  let batch = plane / dispatch_heads();
  let head_kv = head / group_heads();
  let first_key = tile * TILE + lane / LANES * ROWS;

  read_keys(batch, head_kv, first_key);
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    column[r] = 0.0;
  }

  let q_start = params.q_start + batch * params.q_batch + head * params.q_head;
  let stats_start = params.stats_start + plane * params.queries;
  let numbers = segments(tile);
  for (var number = numbers.x; number < numbers.y; number++) {
    let visited = segment(tile, number);
    for (var query = visited.start; query < visited.end; query++) {
      absorb(query, first_key, q_start, stats_start, params.first_batch + batch, params.first_head + head);
    }
  }

  #unroll
  for (var r = 0u; r < ROWS; r++) {
    if first_key + r < params.keys && lane_in_group == 0u {
      column_sums[params.sums_start + plane * params.keys + first_key + r] = column[r];
    }
  }
}
