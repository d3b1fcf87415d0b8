// Largest probability of each row of stored maps.
// A workgroup owns a row; lanes go along it, and their maxima through 4 * WORKGROUP bytes of workgroup memory.
// Needs two storage buffers.

struct Params {
  rows: u32,
  columns: u32,
  // First elements.
  maps_start: u32,
  max_start: u32,
}

#import "linear"

@group(0) @binding(0) var<storage, read> maps: array<f32>; // [rows, columns]
@group(0) @binding(1) var<storage, read_write> row_max: array<f32>; // [rows]

var<workgroup> largest: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn vlsam_row_max(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let row = linear_group(workgroup, counts);
  if row >= params.rows {
    return;
  }
  let start = params.maps_start + row * params.columns;
  var own = 0.0;
  for (var column = lane; column < params.columns; column += WORKGROUP) {
    own = max(own, maps[start + column]);
  }
  largest[lane] = own;
  workgroupBarrier();
  if lane == 0u {
    var all = 0.0;
    for (var other = 0u; other < WORKGROUP; other++) {
      all = max(all, largest[other]);
    }
    row_max[params.max_start + row] = all;
  }
}
