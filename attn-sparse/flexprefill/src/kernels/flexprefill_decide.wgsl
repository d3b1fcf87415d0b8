// Steps 3 and 4: per head, the divergence of pooled from probed attention, the pattern that follows
// from it, and how many lines and pairs of blocks are selected.
// A workgroup owns a head, and loops over its blocks; its sums go through 4 * WORKGROUP bytes of
// workgroup memory. Needs six storage buffers.

struct Params {
  planes: u32,
  blocks: u32,
  // First elements.
  pooled_start: u32,
  mass_start: u32,
  verticals_start: u32,
  slashes_start: u32,
  pairs_start: u32,
  decided_start: u32,
  tau: f32,
  min_lines: u32,
  max_lines: u32,
  // Keys and distances of a line; 0 where blocks were counted.
  divisor: u32,
}

#import "linear"

@group(0) @binding(0) var<storage, read> pooled: array<f32>; // [planes, blocks]
@group(0) @binding(1) var<storage, read> mass: array<f32>; // [planes, blocks]
@group(0) @binding(2) var<storage, read> verticals: array<u32>; // [planes]
@group(0) @binding(3) var<storage, read> slashes: array<u32>; // [planes]
@group(0) @binding(4) var<storage, read> pairs: array<u32>; // [planes]
// Vertical lines, slash lines, pairs of blocks, whether it is query-aware, bits of the divergence.
@group(0) @binding(5) var<storage, read_write> decided: array<u32>; // [5, planes]

var<workgroup> sums: array<f32, WORKGROUP>;

// (1 + x) ln(1 + x) + (1 - x) ln(1 - x). Near zero by its series, as the two cancel.
fn spread(x: f32) -> f32 {
  let xx = x * x;
  let near = xx * (1.0 + xx * (1.0 / 6.0 + xx * (1.0 / 15.0 + xx * (1.0 / 28.0 + xx * (1.0 / 45.0)))));
  let above = 1.0 + x;
  let below = 1.0 - x;
  let far = above * log(max(above, 1e-30)) + below * log(max(below, 1e-30));
  return select(far, near, xx < 0.09);
}

fn lines(count: u32, aware: bool) -> u32 {
  var wanted = count;
  if params.divisor > 0u {
    wanted = (count + 1u) / params.divisor + 1u;
  }
  return select(min(max(wanted, params.min_lines), params.max_lines), params.min_lines, aware);
}

@compute @workgroup_size(WORKGROUP)
fn flexprefill_decide(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let plane = linear_group(workgroup, counts);
  if plane >= params.planes {
    return;
  }
  var own = 0.0;
  for (var block = lane; block < params.blocks; block += WORKGROUP) {
    let a = pooled[params.pooled_start + plane * params.blocks + block];
    let b = mass[params.mass_start + plane * params.blocks + block];
    let both = a + b;
    if both > 0.0 {
      own += 0.5 * both * spread((a - b) / both);
    }
  }
  sums[lane] = own;
  workgroupBarrier();
  if lane == 0u {
    var sum = 0.0;
    for (var other = 0u; other < WORKGROUP; other++) {
      sum += sums[other];
    }
    let divergence = sqrt(0.5 * sum);
    let aware = divergence < params.tau;
    let at = params.decided_start + plane;
    decided[at] = lines(verticals[params.verticals_start + plane], aware);
    decided[at + params.planes] = lines(slashes[params.slashes_start + plane], aware);
    decided[at + 2u * params.planes] = select(0u, pairs[params.pairs_start + plane], aware);
    decided[at + 3u * params.planes] = u32(aware);
    decided[at + 4u * params.planes] = bitcast<u32>(divergence);
  }
}
