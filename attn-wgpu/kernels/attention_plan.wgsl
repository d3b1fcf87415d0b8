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

#ifdef NEAR
const PHASES = 3u;
#else
const PHASES = 1u;
#endif

// Rows that see the keys of a step.
const NONE = 0u;
const SOME = 1u;
const ALL = 2u;

// What all rows of a tile see, and what at least one does.
struct Sight {
  hull: vec2<u32>,
  full: vec2<u32>,
}

struct Step {
  keys: array<u32, KEYS>,
  seen_by: u32,
}

// Takes the keys of one step, `left` of which there are at most, and moves the cursor behind them.
fn take_step(cursor: ptr<function, Cursor>, left: u32, sight: Sight) -> Step {
  var taken: Step;
  var none = true;
  var all = true;
  #unroll
  for (var b = 0u; b < KEYS; b++) {
    let key = key_at(cursor);
    let exists = b * STRIDE < left;
    taken.keys[b] = select(NO_KEY, key, exists);
    none = none && !(exists && sight.hull.x <= key && key < sight.hull.y);
    all = all && exists && sight.full.x <= key && key < sight.full.y;
#ifdef KEY_BIAS
    var bias = 0.0;
    if (*cursor).behind > 0u {
      bias = bitcast<f32>(plan[params.at_bias + (*cursor).entry]);
    }
    key_bias[b] = bias;
    all = all && bias > MASKED;
#endif
    advance(cursor, STRIDE);
  }
#ifdef MODIFIER
  all = false;
#endif
  taken.seen_by = select(select(SOME, ALL, all), NONE, none);
#ifdef SPLIT
  taken.seen_by = SOME;
#endif
  return taken;
}

@compute @workgroup_size(WORKGROUP)
fn attention_plan(
#import "attention_arguments"
) {
#import "attention_item"
  let group_number = lane / LANES;

  let first_item = items[params.base];
  let own_items = items[params.base + params.group_count] - first_item;
  if item >= own_items * params.kv_count {
    return;
  }
  let number = first_item + item % own_items;
  let copy = item / own_items;
  // The last group whose items begin here or before.
  var at = params.base;
  var behind = params.base + params.group_count;
  while behind - at > 1u {
    let middle = (at + behind) / 2u;
    if items[middle] <= number {
      at = middle;
    } else {
      behind = middle;
    }
  }
  let group = params.first_group + at - params.base;
  let members = members_of(group);
  let count = members.count * params.pack;
  let tiles = (count + TILE - 1u) / TILE;
  let tile = (number - items[at]) % tiles;
  let chunk = (number - items[at]) / tiles;

  let batch = members.plane / params.plan_heads - params.first_batch;
  let packed_head = members.plane % params.plan_heads + copy + params.kv_base;
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

  // Queries of the tile, and keys of the chunk, among those of the group.
  let first_member = tile * TILE / params.pack;
  let last_member = (min(tile * TILE + TILE, count) - 1u) / params.pack;
  var chunk_start = chunk * params.chunk;
  var chunk_end = chunk_start + params.chunk;
  for (var phase = EXPLICIT; phase < PHASES; phase++) {
    let whole = hull_of(phase, members, 0u, members.count - 1u);
    var length = whole.y - whole.x;
    if phase == EXPLICIT {
      length = items[params.listed + 1u + at];
    }
    let start = min(chunk_start, length);
    let end = min(chunk_end, length);
    chunk_start -= start;
    chunk_end -= end;

    #unroll
    for (var r = 0u; r < ROWS; r++) {
      let seen = seen_at(phase, rows[r].position);
      rows[r].start = seen.x;
      rows[r].end = seen.y;
    }
    let low = seen_at(phase, position_of(query_of(members, first_member)));
    let high = seen_at(phase, position_of(query_of(members, last_member)));
    let sight = Sight(vec2<u32>(low.x, high.y), vec2<u32>(high.x, low.y));
#ifdef SPLIT
    let mine = start + group_number;
#else
    let mine = start;
#endif
    var cursor = cursor_in(whole.x + mine);
    if phase == EXPLICIT {
      cursor = cursor_at(group, mine);
    }
#ifdef SPLIT
    for (var done = start; done < end; done += STEP) {
      let left = select(0u, end - done - group_number, done + group_number < end);
      absorb(take_step(&cursor, left, sight).keys, true, k_start, v_start);
    }
#else
    var done = start;
    var taken = take_step(&cursor, end - done, sight);
    while done < end {
      while done < end && taken.seen_by == NONE {
        done += STEP;
        taken = take_step(&cursor, end - min(done, end), sight);
      }
      while done < end && taken.seen_by == SOME {
        absorb(taken.keys, true, k_start, v_start);
        done += STEP;
        taken = take_step(&cursor, end - min(done, end), sight);
      }
      while done < end && taken.seen_by == ALL {
        absorb(taken.keys, false, k_start, v_start);
        done += STEP;
        taken = take_step(&cursor, end - min(done, end), sight);
      }
    }
#endif
  }

  // Partial results are sums relative to the largest logit, and behind them that logit and the sum of
  // exponentials.
  let slot = (copy * items[params.listed] + number) * TILE;
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
