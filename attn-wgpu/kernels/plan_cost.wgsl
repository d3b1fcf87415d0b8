// How many items of work each group of a plan is: chunks of its keys times tiles of its rows.
//
// An invocation owns one group. No workgroup memory. Needs two storage buffers.

struct Params {
  queries: u32, keys: u32,
#import "plan_fields"
}

@group(0) @binding(0) var<storage, read> plan: array<u32>; // [words], see plan/device.rs
@group(0) @binding(1) var<storage, read_write> items: array<u32>; // items [listed], -, keys [listed]

#import "linear"
#import "plan_groups"

@compute @workgroup_size(WORKGROUP)
fn plan_cost(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let number = linear_group(workgroup, counts) * WORKGROUP + lane;
  if number >= params.group_count {
    return;
  }
  let group = params.first_group + number;
  let members = members_of(group);
  var listed = 0u;
  var all = 0u;
  if members.count > 0u {
    listed = listed_keys(group, members);
    all = listed;
#ifdef NEAR
    for (var phase = SINKS; phase <= WINDOW; phase++) {
      let hull = hull_of(phase, members, 0u, members.count - 1u);
      all += hull.y - hull.x;
    }
#endif
  }
  let tiles = (members.count * params.pack + params.tile - 1u) / params.tile;
  items[params.base + number] = (all + params.chunk - 1u) / params.chunk * tiles;
  items[params.listed + 1u + params.base + number] = listed;
}
