// Sorts the few elements that top_k found, by key and then by number: each looks for its rank.
// An invocation owns one element. No workgroup memory.

struct Params {
  rows: u32, count: u32,
}

@group(0) @binding(0) var<storage, read> found_keys: array<u32>; // [rows, count]
@group(0) @binding(1) var<storage, read> found_elements: array<u32>; // [rows, count], ascending
@group(0) @binding(2) var<storage, read_write> values: array<u32>; // [rows, count], bits
@group(0) @binding(3) var<storage, read_write> elements: array<u32>; // [rows, count]

#import "linear"
#import "keys"

@compute @workgroup_size(WORKGROUP)
fn top_k_rank(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  let row = index / params.count;
  if row >= params.rows {
    return;
  }
  let first = row * params.count;
  let key = found_keys[index];
  var rank = 0u;
  for (var i = 0u; i < params.count; i++) {
    let other = found_keys[first + i];
    rank += select(0u, 1u, other > key || (other == key && first + i < index));
  }
  values[first + rank] = bits_of_key(key);
  elements[first + rank] = found_elements[index];
}
