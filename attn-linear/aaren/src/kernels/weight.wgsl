// Weights of scores and log-sum-exps, a function for one element: no workgroup owns anything here. A score and the
// top go in, the weight comes out; what is at most EMPTY stands for -inf.

const LOG2_E = 1.4426950408889634;
const EMPTY = -1e30;

// e^(score - top), at most 1 but for rounding, 0 where `score` stands for -inf.
fn weight(score: f32, top: f32) -> f32 {
  return select(exp2(clamp((score - top) * LOG2_E, -200.0, 0.0)), 0.0, score <= EMPTY);
}
