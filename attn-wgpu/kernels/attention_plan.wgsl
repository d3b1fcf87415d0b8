// Attention over a sparse plan, forward: online softmax over one chunk of the keys that a group of
// queries lists, for one tile of the group's rows. Partial results go to attention_plan_merge.
//
// A row is a query with one of the `pack` query heads that share a key head and the group's list, so
// that keys and values are read once for all of them. Without SPLIT, a workgroup's groups of LANES
// lanes own ROWS rows each and absorb the same keys; with it, they share ROWS rows, take turns at the
// keys, and merge through workgroup memory: 4 * GROUPS * (2 * ROWS + 4 * LANES * CHUNKS_V) bytes.
// Needs seven storage buffers.

struct Params {
#import "attention_fields"
#import "plan_fields"
}

#import "attention_storage"

@group(0) @binding(0) var<storage, read> q: array<Chunk>; // [B, H, M, dim_qk]
@group(0) @binding(1) var<storage, read> k: array<Chunk>; // [B, Hkv, N, dim_qk]
@group(0) @binding(2) var<storage, read> v: array<Chunk>; // [B, Hkv, N, dim_v]
@group(0) @binding(3) var<storage, read_write> parts: array<vec4<f32>>; // [items, tile, dim_v + 1]
@group(0) @binding(4) var<storage, read> plan: array<u32>; // [words], see plan/device.rs
@group(0) @binding(5) var<storage, read> items: array<u32>; // offsets [listed + 1], keys [listed]
@group(0) @binding(6) var<storage, read> table: array<u32>; // [words], the modifier's parameters

const SUMS = ROWS * KEYS;

#import "linear"
#import "attention_logits"
#import "attention_lanes"
#ifdef KEY_BIAS
// Of the keys of one step.
var<private> key_bias: array<f32, KEYS>;
#endif
#import "attention_absorb"
#import "plan_groups"
#import "plan_cursor"
#import "plan_work"

fn item_word(index: u32) -> u32 {
  return items[index];
}

// Rows of a tile, keys of a step, and how far the keys of a lane are from each other.
#ifdef SPLIT
const TILE = ROWS;
const STEP = GROUPS * KEYS;
const STRIDE = GROUPS;
const WIDTH = LANES * CHUNKS_V;

var<workgroup> group_max: array<f32, GROUPS * ROWS>;
var<workgroup> group_sum: array<f32, GROUPS * ROWS>;
var<workgroup> group_out: array<vec4<f32>, GROUPS * WIDTH>;
#else
const TILE = GROUPS * ROWS;
const STEP = KEYS;
const STRIDE = 1u;
#endif

#import "plan_step"

@compute @workgroup_size(WORKGROUP)
fn attention_plan(
#import "attention_arguments"
) {
#import "attention_item"
  let group_number = lane / LANES;

  if item >= items_here() * params.kv_count {
    return;
  }
  let work = work_of(item);
  let group = work.group;
  let members = members_of(group);
  let count = members.count * params.pack;
  let tiles = (count + TILE - 1u) / TILE;
  let tile = work.index % tiles;
  let chunk = work.index / tiles;

  let batch = members.plane / params.plan_heads - params.first_batch;
  let packed_head = members.plane % params.plan_heads + work.copy + params.kv_base;
#ifdef SPLIT
  let first_row = tile * TILE;
#else
  let first_row = tile * TILE + group_number * ROWS;
#endif
  start_rows();
  // Rows beyond the last repeat it. Lanes beyond the head dimension multiply by zero.
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    let row = min(first_row + r, count - 1u);
    let query = query_of(members, row / params.pack);
    let head = packed_head * params.pack + row % params.pack;
    rows[r] = Row(0u, 0u, 0u, position_of(query), 0u);
    row_batch[r] = params.first_batch + batch;
    row_head[r] = head;
    let at_q = params.q_start + batch * params.q_batch + (head - params.first_head) * params.q_head
      + query * params.q_token;
    #unroll
    for (var c = 0u; c < CHUNKS_QK; c++) {
      q_rows[r * CHUNKS_QK + c] = select(vec4<f32>(0.0), unpack(q[at_q + chunk_k[c]]) * params.scale, inside_k[c]);
    }
  }
  let head_kv = packed_head * params.pack / params.head_group - params.first_head / params.head_group;
  let k_start = params.k_start + batch * params.k_batch + head_kv * params.k_head;
  let v_start = params.v_start + batch * params.v_batch + head_kv * params.v_head;

#import "plan_walk"

  // Partial results are sums relative to the largest logit, and behind them that logit and the sum of
  // exponentials.
  let slot = work.slot * TILE;
  let width = dim_v() + 1u;
#ifdef SPLIT
  if lane_in_group == 0u {
    #unroll
    for (var r = 0u; r < ROWS; r++) {
      group_max[r * GROUPS + group_number] = row_max[r];
      group_sum[r * GROUPS + group_number] = row_sum[r];
    }
  }
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    #unroll
    for (var c = 0u; c < CHUNKS_V; c++) {
      group_out[group_number * WIDTH + c * LANES + lane_in_group] = out_rows[r * CHUNKS_V + c];
    }
    workgroupBarrier();
    var top = MASKED;
    for (var g = 0u; g < GROUPS; g++) {
      top = max(top, group_max[r * GROUPS + g]);
    }
    var sum = 0.0;
    for (var g = 0u; g < GROUPS; g++) {
      sum = fma(group_sum[r * GROUPS + g], exp2(group_max[r * GROUPS + g] - top), sum);
    }
    if first_row + r < count {
      for (var i = lane; i < dim_v(); i += WORKGROUP) {
        var out = vec4<f32>(0.0);
        for (var g = 0u; g < GROUPS; g++) {
          let weight = exp2(group_max[r * GROUPS + g] - top);
          out = fma(vec4<f32>(weight), group_out[g * WIDTH + i], out);
        }
        parts[(slot + r) * width + i] = out;
      }
      if lane == 0u {
        parts[(slot + r) * width + dim_v()] = vec4<f32>(top, sum, 0.0, 0.0);
      }
    }
    workgroupBarrier();
  }
#else
  #unroll
  for (var r = 0u; r < ROWS; r++) {
    if first_row + r < count {
      let at_part = (slot + first_row % TILE + r) * width;
      #unroll
      for (var c = 0u; c < CHUNKS_V; c++) {
        if inside_v[c] {
          parts[at_part + chunk_v[c]] = out_rows[r * CHUNKS_V + c];
        }
      }
      if lane_in_group == 0u {
        parts[at_part + dim_v()] = vec4<f32>(row_max[r], row_sum[r], 0.0, 0.0);
      }
    }
  }
#endif
}
