// Maximum of a row and the sum of exp(value - maximum), in one pass. Values of at most EMPTY count
// as -inf: no infinity enters arithmetic.

const LOG2_E = 1.4426950408889634;
const LN_2 = 0.6931471805599453;
const EMPTY = -2.9e38;
const LOWEST = -3e38;

struct Mass {
  top: f32,
  sum: f32,
}

// The chunk's values; those behind the width are LOWEST.
fn logits(at: u32, chunk: u32) -> vec4<f32> {
  let elements = 4u * chunk + vec4<u32>(0u, 1u, 2u, 3u);
  var value = unpack_source(x[at + chunk]);
#ifdef SOFT_CAP
  value = soft_cap(value, params.cap);
#endif
  return select(vec4<f32>(LOWEST), max(value, vec4<f32>(LOWEST)), elements < vec4<u32>(width));
}

fn weights(value: vec4<f32>, top: f32) -> vec4<f32> {
  return exp2(max((value - top) * LOG2_E, vec4<f32>(-200.0)));
}

fn row_mass(at: u32, in_row: u32) -> Mass {
  let chunks = (width + 3u) / 4u;
  var top = LOWEST;
  var sum = vec4<f32>(0.0);
  for (var c = in_row; c < chunks; c += LANES) {
    let value = logits(at, c);
    let next = max(top, max(max(value.x, value.y), max(value.z, value.w)));
    sum = fma(sum, vec4<f32>(exp2(max((top - next) * LOG2_E, -200.0))), weights(value, next));
    top = next;
  }
  let row_top = bitcast<f32>(bits_of_key(max_row(key_of(top))));
  sum *= exp2(max((top - row_top) * LOG2_E, -200.0));
  return Mass(row_top, horizontal(add_row(sum)));
}
