// A map scaled so that its least element is 0 and its largest 1; all zeros where they are equal.
// One workgroup goes along the map twice; extremes go through 8 * WORKGROUP bytes of workgroup memory. Needs two
// storage buffers.

struct Params {
  count: u32,
  // First elements.
  raw_start: u32,
  scaled_start: u32,
}

#import "linear"

@group(0) @binding(0) var<storage, read> raw: array<f32>; // [count]
@group(0) @binding(1) var<storage, read_write> scaled: array<f32>; // [count]

var<workgroup> extremes: array<vec2<f32>, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn vlsam_min_max(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  if linear_group(workgroup, counts) > 0u {
    return;
  }
  var own = vec2<f32>(3e38, -3e38);
  for (var i = lane; i < params.count; i += WORKGROUP) {
    let value = raw[params.raw_start + i];
    own = vec2<f32>(min(own.x, value), max(own.y, value));
  }
  extremes[lane] = own;
  workgroupBarrier();
  var all = extremes[0];
  for (var other = 1u; other < WORKGROUP; other++) {
    all = vec2<f32>(min(all.x, extremes[other].x), max(all.y, extremes[other].y));
  }
  // In halves, as the difference of two finite numbers need not be one.
  let range = 0.5 * all.y - 0.5 * all.x;
  for (var i = lane; i < params.count; i += WORKGROUP) {
    let above = 0.5 * raw[params.raw_start + i] - 0.5 * all.x;
    scaled[params.scaled_start + i] = select(0.0, clamp(above / max(range, 1e-37), 0.0, 1.0), range > 0.0);
  }
}
