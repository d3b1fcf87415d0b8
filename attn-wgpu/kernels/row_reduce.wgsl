// Reductions over the LANES lanes of a row: by shuffles over SHUFFLED of them (2^SHUFFLE_BITS, 1
// without subgroups), then over the PARTS parts through workgroup memory, always in one order.
// Must be called by all lanes of a workgroup alike.

const ROWS = WORKGROUP / LANES;

var<private> lane: u32;
// Elements of a row. A copy, as drivers read parameters again behind every store.
var<private> width: u32;

#ifdef ACROSS
var<workgroup> row_parts: array<vec4<f32>, WORKGROUP / SHUFFLED>;
var<workgroup> row_keys: array<u32, WORKGROUP / SHUFFLED>;
#endif

// Four sums at once.
fn add_row(value: vec4<f32>) -> vec4<f32> {
  var sum = value;
#ifdef SUBGROUP
  #unroll
  for (var step = 0u; step < SHUFFLE_BITS; step++) {
    sum += subgroupShuffleXor(sum, 1u << step);
  }
#endif
#ifdef ACROSS
  workgroupBarrier();
  if lane % SHUFFLED == 0u {
    row_parts[lane / SHUFFLED] = sum;
  }
  workgroupBarrier();
  let first = lane / LANES * PARTS;
  sum = vec4<f32>(0.0);
  for (var part = 0u; part < PARTS; part++) {
    sum += row_parts[first + part];
  }
#endif
  return sum;
}

fn max_row(value: u32) -> u32 {
  var top = value;
#ifdef SUBGROUP
  #unroll
  for (var step = 0u; step < SHUFFLE_BITS; step++) {
    top = max(top, subgroupShuffleXor(top, 1u << step));
  }
#endif
#ifdef ACROSS
  workgroupBarrier();
  if lane % SHUFFLED == 0u {
    row_keys[lane / SHUFFLED] = top;
  }
  workgroupBarrier();
  let first = lane / LANES * PARTS;
  top = 0u;
  for (var part = 0u; part < PARTS; part++) {
    top = max(top, row_keys[first + part]);
  }
#endif
  return top;
}

fn horizontal(value: vec4<f32>) -> f32 {
  return (value.x + value.y) + (value.z + value.w);
}
