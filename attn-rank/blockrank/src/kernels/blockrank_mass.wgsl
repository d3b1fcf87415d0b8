// Scores of documents, last step: the mass of every document, the mean over rows; 0 for a document without
// tokens, and behind the last one of a prompt.
// An invocation owns a document of a prompt. No workgroup memory; needs four storage buffers.

struct Params {
  count: u32,
  rows: u32,
  documents: u32,
}

#import "linear"

@group(0) @binding(0) var<storage, read> stats: array<vec2<f32>>; // [items, rows]: largest, sum
@group(0) @binding(1) var<storage, read> total: array<vec2<f32>>; // [batch, rows]: largest, sum
@group(0) @binding(2) var<storage, read> spans: array<vec2<u32>>; // [batch, documents]: items from, to
@group(0) @binding(3) var<storage, read_write> scores: array<f32>; // [batch, documents]

@compute @workgroup_size(WORKGROUP)
fn blockrank_mass(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= params.count {
    return;
  }
  let prompt = index / params.documents;
  let span = spans[index];
  var sum = 0.0;
  for (var row = 0u; row < params.rows; row++) {
    let all = total[prompt * params.rows + row];
    var mass = 0.0;
    for (var item = span.x; item < span.y; item++) {
      let one = stats[item * params.rows + row];
      mass += one.y * exp2(max(one.x - all.x, -200.0));
    }
    sum += mass / max(all.y, 1e-30);
  }
  scores[index] = sum / f32(params.rows);
}
