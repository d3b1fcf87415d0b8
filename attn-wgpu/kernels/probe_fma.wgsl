// Speed of independent fused multiply-adds: the yardstick of every other kernel.
// An invocation keeps CHAINS vec4 accumulators in registers and repeats CHAINS * STEPS FMAs of four
// elements each `rounds` times; no workgroup memory.

struct Params {
  rounds: u32,
  factor: f32,
  term: f32,
}

@group(0) @binding(0) var<storage, read_write> sums: array<f32>; // [invocations]

@compute @workgroup_size(WORKGROUP)
fn probe_fma(@builtin(global_invocation_id) id: vec3<u32>) {
  var chains: array<vec4<f32>, CHAINS>;
  #unroll
  for (var c = 0u; c < CHAINS; c++) {
    chains[c] = vec4<f32>(f32(id.x), f32(c), 1.0, 2.0);
  }
  let factor = vec4<f32>(params.factor);
  let term = vec4<f32>(params.term);
  for (var round = 0u; round < params.rounds; round++) {
    #unroll
    for (var s = 0u; s < STEPS; s++) {
      #unroll
      for (var c = 0u; c < CHAINS; c++) {
        chains[c] = fma(chains[c], factor, term);
      }
    }
  }
  var sum = vec4<f32>(0.0);
  #unroll
  for (var c = 0u; c < CHAINS; c++) {
    sum += chains[c];
  }
  sums[id.x] = sum.x + sum.y + sum.z + sum.w;
}
