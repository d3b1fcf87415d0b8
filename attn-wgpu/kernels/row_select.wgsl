// Choosing the largest elements of a row: all with a key above a threshold, and of those equal to it
// the first `quota`. Also how a row's elements are dealt to its lanes, in order.

struct Choice {
  key: u32,
  quota: u32,
}

// What elements weigh: exp2((value - top) * slope), or 1 each when they are counted.
struct Scale {
  top: f32,
  slope: f32,
}

const SMALLEST_POWER = -126.0;
// Its key. It weighs nothing, as NaN.
const MINUS_INFINITY = 0x007fffffu;

fn weights_of(keys: vec4<u32>, scale: Scale) -> vec4<f32> {
  let limit = vec4<f32>(3e38);
  let value = clamp(bitcast<vec4<f32>>(select(~keys, keys ^ vec4<u32>(0x80000000u), keys >= vec4<u32>(0x80000000u))), -limit, limit);
  let power = min((value - scale.top) * scale.slope, vec4<f32>(0.0));
  // What would be a subnormal is 0 on every device.
  let counts = (keys > vec4<u32>(MINUS_INFINITY)) & (power >= vec4<f32>(SMALLEST_POWER));
  return select(vec4<f32>(0.0), exp2(max(power, vec4<f32>(SMALLEST_POWER))), counts);
}

fn weight_of(key: u32, scale: Scale) -> f32 {
  return weights_of(vec4<u32>(key), scale).x;
}

// What all elements above `key` weigh, and how many are equal to it.
fn beyond(at: u32, in_row: u32, key: u32, scale: Scale) -> vec2<f32> {
  let chunks = (width + 3u) / 4u;
  var sums = vec4<f32>(0.0);
  for (var c = in_row; c < chunks; c += LANES) {
    let keys = chunk_keys(at, c);
    let above = select(vec4<f32>(0.0), weights_of(keys, scale), keys > vec4<u32>(key));
    let equal = select(vec4<f32>(0.0), vec4<f32>(1.0), keys == vec4<u32>(key));
    sums.x += horizontal(above);
    sums.y += horizontal(equal);
  }
  return add_row(sums).xy;
}

// The largest key such that elements of at least it weigh `wanted` or more, two bits a round, or are
// so many if `count`.
fn search(at: u32, in_row: u32, wanted: f32, count: bool, scale: Scale) -> u32 {
  let chunks = (width + 3u) / 4u;
  var key = 0u;
  for (var round = 0u; round < 16u; round++) {
    let shift = 30u - 2u * round;
    let steps = vec4<u32>(key) + (vec4<u32>(0u, 1u, 2u, 3u) << vec4<u32>(shift));
    var sums = vec4<f32>(0.0);
    for (var c = in_row; c < chunks; c += LANES) {
      let keys = chunk_keys(at, c);
      // Beyond the first rounds few elements are left.
      if any(keys >= vec4<u32>(steps.y)) {
        let weight = select(weights_of(keys, scale), vec4<f32>(1.0), count);
        #unroll
        for (var j = 0u; j < 4u; j++) {
          sums += select(vec4<f32>(0.0), vec4<f32>(weight[j]), vec4<u32>(keys[j]) >= steps);
        }
      }
    }
    sums = add_row(sums);
    key = select(key, steps.y, sums.y >= wanted);
    key = select(key, steps.z, sums.z >= wanted);
    key = select(key, steps.w, sums.w >= wanted);
  }
  return key;
}

// The chunks that a lane owns in the row's order.
struct Slice {
  start: u32,
  end: u32,
}

fn slice_of(in_row: u32) -> Slice {
  let chunks = (width + 3u) / 4u;
  let each = (chunks + LANES - 1u) / LANES;
  return Slice(min(in_row * each, chunks), min((in_row + 1u) * each, chunks));
}
