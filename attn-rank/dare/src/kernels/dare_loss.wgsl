// Softmax over two classes, FLOOR added to each probability, and -log of the label's. With BACKWARD the
// derivative by the logits from that by the probabilities and that by the mean loss; either may be missing.
// An invocation owns one row. No workgroup memory; needs up to six storage buffers.

struct Params {
  count: u32,
  // Words.
  logits_start: u32, logits_stride: u32, label_start: u32, d_prob_start: u32, d_loss_start: u32,
  // 1 / rows.
  share: f32,
}

@group(0) @binding(0) var<storage, read> logits: array<f32>; // strided [rows, 2]
#ifdef BACKWARD
@group(0) @binding(1) var<storage, read_write> d_logits: array<f32>; // [rows, 2]
@group(0) @binding(2) var<storage, read> label: array<u32>; // [rows], unused without D_LOSS
@group(0) @binding(3) var<storage, read> d_prob: array<f32>; // [rows, 2], unused without D_PROB
@group(0) @binding(4) var<storage, read> d_loss: array<f32>; // [1], unused without D_LOSS
#else
@group(0) @binding(1) var<storage, read_write> prob: array<f32>; // [rows, 2]
#ifdef LABEL
@group(0) @binding(2) var<storage, read> label: array<u32>; // [rows]
@group(0) @binding(3) var<storage, read_write> loss: array<f32>; // [rows]
#endif
#endif

#import "linear"

const FLOOR = 1e-8;

@compute @workgroup_size(WORKGROUP)
fn dare_loss(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  let given = params;
  let row = linear_group(workgroup, counts) * WORKGROUP + lane;
  if row >= given.count {
    return;
  }
  let at = given.logits_start + row * given.logits_stride;
  let own = vec2<f32>(logits[at], logits[at + 1u]);
  let powers = exp(own - max(own.x, own.y));
  let p = powers / (powers.x + powers.y);
#ifdef BACKWARD
  var by_p = vec2<f32>(0.0);
#ifdef D_PROB
  by_p += vec2<f32>(d_prob[given.d_prob_start + 2u * row], d_prob[given.d_prob_start + 2u * row + 1u]);
#endif
#ifdef D_LOSS
  let steep = -given.share * d_loss[given.d_loss_start] / (p + FLOOR);
  by_p += select(vec2<f32>(steep.x, 0.0), vec2<f32>(0.0, steep.y), label[given.label_start + row] != 0u);
#endif
  let by_logits = p * (by_p - dot(by_p, p));
  d_logits[2u * row] = by_logits.x;
  d_logits[2u * row + 1u] = by_logits.y;
#else
  let lifted = p + FLOOR;
  prob[2u * row] = lifted.x;
  prob[2u * row + 1u] = lifted.y;
#ifdef LABEL
  loss[row] = -log(select(lifted.x, lifted.y, label[given.label_start + row] != 0u));
#endif
#endif
}
