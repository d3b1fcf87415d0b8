// The contrastive loss of a prompt, ln sum e^l - ln sum over positives e^l with l = a / tau; with BACKWARD
// its derivative by the scores, (softmax(l) - softmax over positives) / (tau batch), times a cotangent. With MEAN
// the mean over prompts. An invocation owns a prompt, or all with MEAN. No workgroup memory; needs four
// storage buffers.

struct Params {
  count: u32,
  documents: u32,
  batch: u32,
  // 1 / tau.
  sharpness: f32,
  // First element of the scores, of one prompt's to the next's, and first element of the cotangent.
  start: u32, prompt: u32, d_start: u32,
}

#import "linear"

#ifdef MEAN
@group(0) @binding(0) var<storage, read> losses: array<f32>; // [batch]
@group(0) @binding(1) var<storage, read_write> out: array<f32>; // [1]
#else
@group(0) @binding(0) var<storage, read> scores: array<f32>; // [batch, documents]
@group(0) @binding(1) var<storage, read> kinds: array<u32>; // [batch, documents]: 0 none, 1 a document, 3 positive
#ifdef BACKWARD
@group(0) @binding(2) var<storage, read> d_loss: array<f32>; // [1]
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // [batch, documents]
#else
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [batch]
#endif
#endif

const LOWEST = -1e30;

@compute @workgroup_size(WORKGROUP)
fn blockrank_loss(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = linear_group(workgroup, counts) * WORKGROUP + lane;
  if index >= params.count {
    return;
  }
#ifdef MEAN
  var sum = 0.0;
  for (var prompt = 0u; prompt < params.batch; prompt++) {
    sum += losses[prompt];
  }
  out[0] = sum / f32(params.batch);
#else
  let at = params.start + index * params.prompt;
  let own = index * params.documents;
  var top = LOWEST;
  var top_positive = LOWEST;
  for (var k = 0u; k < params.documents; k++) {
    let logit = params.sharpness * scores[at + k];
    let kind = kinds[own + k];
    top = select(top, max(top, logit), kind > 0u);
    top_positive = select(top_positive, max(top_positive, logit), kind == 3u);
  }
  var sum = 0.0;
  var sum_positive = 0.0;
  for (var k = 0u; k < params.documents; k++) {
    let logit = params.sharpness * scores[at + k];
    let kind = kinds[own + k];
    sum += select(0.0, exp(max(logit - top, -100.0)), kind > 0u);
    sum_positive += select(0.0, exp(max(logit - top_positive, -100.0)), kind == 3u);
  }
#ifdef BACKWARD
  let factor = d_loss[params.d_start] * params.sharpness / f32(params.batch);
  for (var k = 0u; k < params.documents; k++) {
    let logit = params.sharpness * scores[at + k];
    let kind = kinds[own + k];
    let all = select(0.0, exp(max(logit - top, -100.0)) / sum, kind > 0u);
    let positive = select(0.0, exp(max(logit - top_positive, -100.0)) / sum_positive, kind == 3u);
    out[own + k] = factor * (all - positive);
  }
#else
  out[index] = (top - top_positive) + (log(sum) - log(sum_positive));
#endif
#endif
}
