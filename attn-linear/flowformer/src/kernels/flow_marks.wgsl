// What the tokens of a side are, [batch, rows]: (1 if it counts, t, n, ratio). Causal, t and n are the number of
// tokens so far and ratio is 1. Else t is 1, n the number of sources, and ratio the number of sinks a source,
// or -1 where there is no source. An invocation owns a token. No workgroup memory; needs up to four storage
// buffers.

struct Params {
  count: u32, rows: u32,
}

#import "linear"

@group(0) @binding(0) var<storage, read> valid: array<f32>; // [batch, rows]
@group(0) @binding(1) var<storage, read_write> marks: array<vec4<f32>>; // [batch, rows]
#ifdef CAUSAL
@group(0) @binding(2) var<storage, read> tokens: array<f32>; // so far, [batch, rows, 4]
#else
@group(0) @binding(2) var<storage, read> sinks: array<f32>; // [batch]
@group(0) @binding(3) var<storage, read> sources: array<f32>; // [batch]
#endif

@compute @workgroup_size(WORKGROUP)
fn flow_marks(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= params.count {
    return;
  }
  let own = valid[index];
#ifdef CAUSAL
  let t = tokens[4u * index];
  marks[index] = vec4<f32>(own, t, t, 1.0);
#else
  let batch = index / params.rows;
  let n = sources[batch];
  marks[index] = vec4<f32>(own, 1.0, n, select(-1.0, sinks[batch] / max(n, 1.0), n > 0.0));
#endif
}
