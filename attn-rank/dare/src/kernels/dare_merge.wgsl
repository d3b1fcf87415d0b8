// The largest of what neighbouring tiles kept: a search in several rounds gives what one of all elements
// gives, bit for bit.
//
// A workgroup owns TILE / keep lists of a request, at most TILE elements. Workgroup memory: 7.4 KiB. Needs
// four storage buffers.

struct Params {
  rows: u32,
  // Elements of a request, whole lists of `keep`, and how many of them a workgroup takes.
  count: u32, tiles: u32, keep: u32, span: u32,
}

@group(0) @binding(0) var<storage, read> found_keys: array<u32>; // [rows, count]
@group(0) @binding(1) var<storage, read> found_numbers: array<u32>; // [rows, count]
@group(0) @binding(2) var<storage, read_write> out_keys: array<u32>; // [rows, tiles, keep]
@group(0) @binding(3) var<storage, read_write> out_numbers: array<u32>; // [rows, tiles, keep]

#import "linear"
#import "keys"
#import "choose"

#import "put"

// Where the tile's lists begin.
var<private> first: u32;

fn number_of(element: u32) -> u32 {
  return found_numbers[first + element];
}

@compute @workgroup_size(WORKGROUP)
fn dare_merge(
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
  let start = (index - row * given.tiles) * given.span;
  let length = min(given.span, given.count - start);
  first = row * given.count + start;
  out_at = index * given.keep;
  clear_counters(lane);
  for (var group = lane; group < GROUPS; group += WORKGROUP) {
    var top = 0u;
    for (var i = 0u; i < GROUP; i++) {
      let element = element_of(group, i);
      var key = 0u;
      if element < length {
        key = found_keys[first + element];
      }
      keys[element] = key;
      top = max(top, key);
    }
    tops[group] = top;
  }
  choose(lane, given.keep);
}
