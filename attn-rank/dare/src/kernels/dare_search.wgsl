// Scores of a tile of one request's behaviours, and the largest of them: s = q . k with the scales of both
// parts, k gathered from the tables. With SCORES all scores are written. With NEWEST those marked with the
// candidate's category are kept by their place, the last first.
//
// A workgroup owns TILE behaviours of a request; its lanes own groups of GROUP. Workgroup memory: 10.5 KiB.
// Needs up to eight storage buffers.

struct Params {
  rows: u32,
  // Behaviours, and tiles of them, of a request.
  count: u32, tiles: u32, keep: u32,
  // vec4s.
  item_start: u32, category_start: u32, time_start: u32,
  item_chunks: u32, category_chunks: u32, time_chunks: u32,
  semantic_scale: f32, time_scale: f32,
}

@group(0) @binding(0) var<storage, read> ids: array<vec4<u32>>; // [rows, count]
@group(0) @binding(1) var<storage, read> item_table: array<vec4<f32>>; // [items, item_chunks]
@group(0) @binding(2) var<storage, read> category_table: array<vec4<f32>>; // [categories, category_chunks]
@group(0) @binding(3) var<storage, read> time_table: array<vec4<f32>>; // [slots, time_chunks]
@group(0) @binding(4) var<storage, read> queries: array<vec4<f32>>; // [rows, chunks]
@group(0) @binding(5) var<storage, read_write> out_keys: array<u32>; // [rows, tiles, keep]
@group(0) @binding(6) var<storage, read_write> out_numbers: array<u32>; // [rows, tiles, keep]
#ifdef SCORES
@group(0) @binding(7) var<storage, read_write> scores: array<f32>; // [rows, count]
#endif

#import "linear"
#import "keys"
#import "choose"
#import "put"

const CHUNKS = 192u;

var<workgroup> query: array<vec4<f32>, CHUNKS>;
// The number of the tile's first behaviour.
var<private> tile_start: u32;

fn number_of(element: u32) -> u32 {
  return tile_start + element;
}

@compute @workgroup_size(WORKGROUP)
fn dare_search(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let given = params;
  let index = linear_group(workgroup, counts);
  let row = index / given.tiles;
  if row >= given.rows {
    return;
  }
  tile_start = (index - row * given.tiles) * TILE;
  out_at = index * given.keep;
  let semantic = given.item_chunks + given.category_chunks;
  let chunks = semantic + given.time_chunks;
  for (var c = lane; c < chunks; c += WORKGROUP) {
    query[c] = queries[row * chunks + c] * select(given.time_scale, given.semantic_scale, c < semantic);
  }
  clear_counters(lane);
  workgroupBarrier();

  for (var group = lane; group < GROUPS; group += WORKGROUP) {
    var top = 0u;
    for (var part = 0u; part < GROUP; part += 4u) {
      var at: array<vec4<u32>, 4>;
      var sums: array<vec4<f32>, 4>;
      var is_one: array<bool, 4>;
      #unroll
      for (var r = 0u; r < 4u; r++) {
        let number = tile_start + element_of(group, part + r);
        var found = vec4<u32>(NONE);
        if number < given.count {
          found = ids[row * given.count + number];
        }
        is_one[r] = found.x != NONE;
        // Where there is none, the first rows are read and not used.
        at[r] = select(vec4<u32>(0u), found, is_one[r]) * vec4<u32>(given.item_chunks, given.category_chunks, given.time_chunks, 1u);
        sums[r] = vec4<f32>(0.0);
      }
      for (var c = 0u; c < given.item_chunks; c++) {
        let own = query[c];
        #unroll
        for (var r = 0u; r < 4u; r++) {
          sums[r] = fma(own, item_table[given.item_start + at[r].x + c], sums[r]);
        }
      }
      for (var c = 0u; c < given.category_chunks; c++) {
        let own = query[given.item_chunks + c];
        #unroll
        for (var r = 0u; r < 4u; r++) {
          sums[r] = fma(own, category_table[given.category_start + at[r].y + c], sums[r]);
        }
      }
      for (var c = 0u; c < given.time_chunks; c++) {
        let own = query[semantic + c];
        #unroll
        for (var r = 0u; r < 4u; r++) {
          sums[r] = fma(own, time_table[given.time_start + at[r].z + c], sums[r]);
        }
      }
      var found_scores = vec4<f32>(0.0);
      #unroll
      for (var r = 0u; r < 4u; r++) {
        found_scores[r] = (sums[r].x + sums[r].y) + (sums[r].z + sums[r].w);
      }
      let found_keys = keys_of(found_scores);
      #unroll
      for (var r = 0u; r < 4u; r++) {
        let element = element_of(group, part + r);
        let number = tile_start + element;
#ifdef NEWEST
        let own = number + 1u;
        let key = select(0u, own, is_one[r] && at[r].w > 0u);
#else
        let key = select(0u, found_keys[r], is_one[r]);
#endif
        keys[element] = key;
        top = max(top, key);
#ifdef SCORES
        if number < given.count {
          scores[row * given.count + number] = select(MASKED, found_scores[r], is_one[r]);
        }
#endif
      }
    }
    tops[group] = top;
  }
  choose(lane, given.keep);
}
