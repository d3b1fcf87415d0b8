// Probabilities p_it = exp(s_it - lse_i) of every query and key; 0 where the query does not see the key.
//
// A workgroup owns BLOCK queries and TILE = WORKGROUP / LANES * ROWS keys of one query head: a tile of
// the map, of which it writes every element. Registers hold ROWS keys. Workgroup memory only without
// subgroups. Needs five storage buffers.

struct Params {
#import "attention_fields"
}

#import "attention_storage"

@group(0) @binding(0) var<storage, read> q: array<Chunk>; // [B, H, M, dim_qk]
@group(0) @binding(1) var<storage, read> k: array<Chunk>; // [B, Hkv, N, dim_qk]
@group(0) @binding(2) var<storage, read> stats: array<f32>; // lse [B, H, M]
// Its offsets and strides, `out` in the parameters, are in elements.
@group(0) @binding(3) var<storage, read_write> weights: array<f32>; // [B, H, M, N]
@group(0) @binding(4) var<storage, read> table: array<u32>; // see mask_table.rs

const TILE = GROUPS * ROWS;

#import "linear"
#import "attention_logits"
#import "attention_keys"

@compute @workgroup_size(WORKGROUP)
fn attention_weights(
#import "attention_arguments"
) {
#import "attention_item"
  let key_tiles = (params.keys + TILE - 1u) / TILE;
  let tile = params.first_tile + item % params.tiles;
  let plane = item / params.tiles;
  let head = plane % dispatch_heads();
  let batch = plane / dispatch_heads();
  let head_kv = head / group_heads();
  let first_of_tile = tile % key_tiles * TILE;
  let first_key = first_of_tile + lane / LANES * ROWS;

  read_keys(batch, head_kv, first_key);
  let first_query = tile / key_tiles * BLOCK;
  let end_query = min(first_query + BLOCK, params.queries);
  for (var query = first_query; query < end_query; query++) {
    let row = row_of(query);
    var probabilities = array<f32, ROWS>();
    // Alike in all lanes of the workgroup. Explicit bits enclose all keys.
    if first_of_tile < row.sink || (row.start < first_of_tile + TILE && first_of_tile < row.end) {
      let sums = key_sums(params.q_start + batch * params.q_batch + head * params.q_head + query * params.q_token);
      let lse = stats[params.stats_start + plane * params.queries + query] * LOG2_E;
      #unroll
      for (var r = 0u; r < ROWS; r++) {
        let logit = logit_of(sums[r], params.first_batch + batch, params.first_head + head, row, first_key + r);
        let allowed = logit.allowed && sees(row, first_key + r);
        probabilities[r] = select(0.0, exp2(logit.value - lse), allowed);
      }
    }
    let at = params.out_start + batch * params.out_batch + head * params.out_head + query * params.out_token;
    #unroll
    for (var r = 0u; r < ROWS; r++) {
      if first_key + r < params.keys && lane_in_group == 0u {
        weights[at + first_key + r] = probabilities[r];
      }
    }
  }
}
