// The search of serving: scores of a tile of one history's behaviours for one candidate, and the largest of
// them. Rows of the history are kept, and its time slots count from its end: s = q . row + tau[slot].
//
// A workgroup owns TILE behaviours for a candidate; its lanes own groups of GROUP. Workgroup memory: 10.5 KiB.
// Needs five storage buffers.

struct Params {
  rows: u32,
  // Behaviours that are searched, and tiles of them.
  count: u32, tiles: u32, keep: u32,
  // Rows in front of the first one that is searched, and chunks of a row.
  first: u32, chunks: u32,
  scale: f32,
}

#ifdef HALF
alias Stored = vec2<u32>;
#else
alias Stored = vec4<f32>;
#endif

@group(0) @binding(0) var<storage, read> history: array<Stored>; // [first + count, chunks]
@group(0) @binding(1) var<storage, read> tau: array<f32>; // [slots]
@group(0) @binding(2) var<storage, read> queries: array<vec4<f32>>; // [rows, chunks]
@group(0) @binding(3) var<storage, read_write> out_keys: array<u32>; // [rows, tiles, keep]
@group(0) @binding(4) var<storage, read_write> out_numbers: array<u32>; // [rows, tiles, keep]

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

fn unpacked(stored: Stored) -> vec4<f32> {
#ifdef HALF
  return vec4<f32>(unpack2x16float(stored.x), unpack2x16float(stored.y));
#else
  return stored;
#endif
}

@compute @workgroup_size(WORKGROUP)
fn dare_recall(
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
  for (var c = lane; c < given.chunks; c += WORKGROUP) {
    query[c] = queries[row * given.chunks + c] * given.scale;
  }
  clear_counters(lane);
  workgroupBarrier();

  for (var group = lane; group < GROUPS; group += WORKGROUP) {
    var top = 0u;
    for (var part = 0u; part < GROUP; part += 4u) {
      var at: array<u32, 4>;
      var sums: array<vec4<f32>, 4>;
      #unroll
      for (var r = 0u; r < 4u; r++) {
        let number = min(tile_start + element_of(group, part + r), given.count - 1u);
        at[r] = (given.first + number) * given.chunks;
        sums[r] = vec4<f32>(0.0);
      }
      for (var c = 0u; c < given.chunks; c++) {
        let own = query[c];
        #unroll
        for (var r = 0u; r < 4u; r++) {
          sums[r] = fma(own, unpacked(history[at[r] + c]), sums[r]);
        }
      }
      var found_scores = vec4<f32>(0.0);
      #unroll
      for (var r = 0u; r < 4u; r++) {
        let number = min(tile_start + element_of(group, part + r), given.count - 1u);
        found_scores[r] = (sums[r].x + sums[r].y) + (sums[r].z + sums[r].w) + tau[given.count - number];
      }
      let found_keys = keys_of(found_scores);
      #unroll
      for (var r = 0u; r < 4u; r++) {
        let element = element_of(group, part + r);
        let key = select(0u, found_keys[r], tile_start + element < given.count);
        keys[element] = key;
        top = max(top, key);
      }
    }
    tops[group] = top;
  }
  choose(lane, given.keep);
}
