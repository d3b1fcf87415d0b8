// Numbers of items to offsets: an exclusive prefix sum in place, with the total behind it.
//
// One workgroup; each lane adds up one run of numbers. 4 * WORKGROUP bytes of workgroup memory. Needs
// one storage buffer.

struct Params {
  count: u32,
}

@group(0) @binding(0) var<storage, read_write> items: array<u32>; // [count + 1]

var<workgroup> sums: array<u32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn plan_items(@builtin(local_invocation_index) lane: u32) {
  let run = (params.count + WORKGROUP - 1u) / WORKGROUP;
  let start = min(lane * run, params.count);
  let end = min(start + run, params.count);
  var sum = 0u;
  for (var i = start; i < end; i++) {
    sum += items[i];
  }
  sums[lane] = sum;
  workgroupBarrier();
  var offset = 0u;
  for (var other = 0u; other < lane; other++) {
    offset += sums[other];
  }
  for (var i = start; i < end; i++) {
    let own = items[i];
    items[i] = offset;
    offset += own;
  }
  if lane == WORKGROUP - 1u {
    items[params.count] = offset;
  }
}
