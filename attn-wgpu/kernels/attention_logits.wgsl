// From products q . k to weights: which keys a row may see, and what its logits become. Needs
// `params` (attention_fields) and `table`: MODIFIER_WORDS of the modifier, then the mask's.

// Stands for minus infinity, so that no infinities have to be subtracted.
const MASKED = -1e30;
const LN_2 = 0.6931471805599453;
const LOG2_E = 1.4426950408889634;
// Stands for a key that does not exist.
const NO_KEY = 0xffffffffu;

// The bits of -inf, which WGSL has no constant for.
const MINUS_INFINITY = 0xff800000u;

fn dispatch_heads() -> u32 {
  return params.heads_group >> 16u;
}

fn group_heads() -> u32 {
  return params.heads_group & 0xffffu;
}

fn dim_qk() -> u32 {
  return params.dims >> 16u;
}

fn dim_v() -> u32 {
  return params.dims & 0xffffu;
}

// What a row sees: keys [0, sink) and [start, end); its position and the first key of its document.
struct Row {
  sink: u32,
  start: u32,
  end: u32,
  position: i32,
  first_key: u32,
}

fn position(query: u32) -> i32 {
  return i32(query + params.keys) - i32(params.queries);
}

fn window_start(query: u32) -> u32 {
  return u32(clamp(position(query) - params.left, 0, i32(params.keys)));
}

fn window_end(query: u32) -> u32 {
  return u32(clamp(position(query) + params.right + 1, 0, i32(params.keys)));
}

fn row_of(query: u32) -> Row {
#ifdef BITS
  // The bits decide; `sink` holds the word at which the row's bits begin.
  let words = (params.keys + 31u) / 32u;
  return Row(u32(params.right) + query * words, 0u, params.keys, position(query), 0u);
#else
  if params.left < 0 {
    let at = u32(params.right) + query * 5u;
    return Row(table[at], table[at + 1u], table[at + 2u], i32(table[at + 3u]), table[at + 4u]);
  }
  return Row(0u, window_start(query), window_end(query), position(query), 0u);
#endif
}

fn sees(row: Row, key: u32) -> bool {
#ifdef BITS
  let word = table[row.sink + min(key, params.keys - 1u) / 32u];
  return key < params.keys && ((word >> (key % 32u)) & 1u) == 1u;
#else
  return key < row.sink || (row.start <= key && key < row.end);
#endif
}

#ifdef SOFT_CAP
// cap * tanh(logit / cap). Near zero the series is exact; beyond, 1 - 2 / (e^2x + 1) is.
fn cap_logit(logit: f32) -> f32 {
  let x = clamp(logit / params.soft_cap, -20.0, 20.0);
  let xx = x * x;
  let near = x * (1.0 + xx * (-1.0 / 3.0 + xx * (2.0 / 15.0 + xx * (-17.0 / 315.0 + xx * (62.0 / 2835.0)))));
  let far = 1.0 - 2.0 / (exp2(2.0 * LOG2_E * x) + 1.0);
  return params.soft_cap * select(far, near, abs(x) < 0.25);
}
#endif

#ifdef MODIFIER
#import "modifier"
#endif

struct Logit {
  // In base 2.
  value: f32,
  allowed: bool,
}

// The logit of a product, and whether it takes part. `batch` and `head` are those of the call.
fn logit_of(product: f32, batch: u32, head: u32, row: Row, key: u32) -> Logit {
  var logit = Logit(product, true);
#ifdef SOFT_CAP
  logit.value = cap_logit(logit.value);
#endif
#ifdef MODIFIER_SCORE
  logit.value = modify(logit.value, batch, head, row.position, i32(key - row.first_key));
  logit.allowed = logit.value > MASKED;
#endif
#ifdef MODIFIER_MASK
  logit.allowed = modify(logit.value, batch, head, row.position, i32(key - row.first_key));
#endif
#ifdef NATURAL
  logit.value *= LOG2_E;
#endif
  return logit;
}

#ifdef BACKWARD
// The derivative of a natural logit by scale * q . k, from the product.
fn logit_slope(product: f32, batch: u32, head: u32, row: Row, key: u32) -> f32 {
  var slope = 1.0;
  var score = product;
#ifdef SOFT_CAP
  score = cap_logit(product);
  // 1 - tanh^2 without cancellation.
  let e = exp2(-2.0 * LOG2_E * min(abs(product / params.soft_cap), 40.0));
  slope = 4.0 * e / ((1.0 + e) * (1.0 + e));
#endif
#ifdef MODIFIER_SCORE
  slope *= modify_slope(score, batch, head, row.position, i32(key - row.first_key));
#endif
  return slope;
}
#endif
