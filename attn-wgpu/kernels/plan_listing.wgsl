// Where the queries of one part are listed: for each row of its groups the query, to be sorted by, and
// part, group, row in the group, rows of the group, weight, and no gate.
//
// An invocation owns ITEMS rows. No workgroup memory. Needs four storage buffers.

struct Params {
  // Rows that there is room for; number of the part, its groups, and its first row in `queries`.
  count: u32,
  part: u32, groups: u32, first: u32,
  queries: u32, keys: u32,
  // Bits of the logarithm of the groups' weight.
  weight: u32,
#import "plan_fields"
}

const NONE = 0xffffffffu;

@group(0) @binding(0) var<storage, read> plan: array<u32>; // [words], see plan/device.rs
@group(0) @binding(1) var<storage, read> offsets: array<u32>; // [groups + 1], first row of each group
@group(0) @binding(2) var<storage, read_write> query_at: array<u32>; // [rows], plane * queries + query
@group(0) @binding(3) var<storage, read_write> places: array<u32>; // [rows, 6]

#import "plan_groups"

fn one(index: u32) {
  let to = params.first + index;
#ifdef TILED
  let query = index % params.queries;
  let group = index / params.queries * params.plane_groups + query / params.bq;
  let row = query % params.bq;
#else
  // The last group whose rows begin here or before.
  var group = 0u;
  var behind = params.groups;
  while behind - group > 1u {
    let middle = (group + behind) / 2u;
    if offsets[middle] <= index {
      group = middle;
    } else {
      behind = middle;
    }
  }
  let row = index - offsets[group];
#endif
  let members = members_of(group);
  query_at[to] = NONE;
  if row < members.count {
    query_at[to] = members.plane * params.queries + query_of(members, row);
  }
  places[6u * to] = params.part;
  places[6u * to + 1u] = group;
  places[6u * to + 2u] = row;
  places[6u * to + 3u] = members.count;
  places[6u * to + 4u] = params.weight;
  places[6u * to + 5u] = NONE;
}

@compute @workgroup_size(WORKGROUP)
#import "each"
