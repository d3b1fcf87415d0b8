// Weights of the softmax scan, a function for one element: no workgroup owns anything here. A score and the top go
// in, the weight comes out; scores of at most EMPTY count as -inf, so that no infinity enters arithmetic.

const LOG2_E = 1.4426950408889634;
const LN_2 = 0.6931471805599453;
const EMPTY = -1e30;
const LOWEST = -3e38;

// exp(score - top), 0 for a score that stands for -inf.
fn weight(score: f32, top: f32) -> f32 {
  return select(exp2(max((score - top) * LOG2_E, -200.0)), 0.0, score <= EMPTY);
}
