// The dimensions of a dispatch over items, folded as dispatch.rs does: no dimension above `limit`, few
// idle workgroups.
//
// One invocation. Needs two storage buffers.

struct Params {
  // Where the groups begin and end in `items`; workgroups an item; most workgroups in a dimension.
  base: u32, behind: u32, copies: u32, limit: u32,
  // Word of `args` at which the dimensions go.
  at: u32,
}

@group(0) @binding(0) var<storage, read> items: array<u32>; // offsets [listed + 1]
@group(0) @binding(1) var<storage, read_write> args: array<u32>; // [passes, 4]: x, y, z, -

@compute @workgroup_size(1)
fn plan_dispatch() {
  let groups = (items[params.behind] - items[params.base]) * params.copies;
  let rows = max((groups + params.limit - 1u) / params.limit, 1u);
  let y = min(rows, params.limit);
  let z = (rows + y - 1u) / y;
  args[params.at] = (groups + y * z - 1u) / (y * z);
  args[params.at + 1u] = y;
  args[params.at + 2u] = z;
}
