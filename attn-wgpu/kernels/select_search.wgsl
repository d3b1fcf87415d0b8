// The threshold of a choice among the elements of a row: the largest key such that elements of at
// least it are as many as wanted, or with MASS weigh so much; 0 if all together are not enough. Two
// bits a round.
//
// After the first rounds few elements share the bits that are known. Each lane then keeps its own in a
// list in workgroup memory, if they fit, and reads no others any more. Must be called by all lanes of a
// workgroup alike.

// Words of a lane's list.
const KEEP = 2048u / WORKGROUP;
// Rounds before the first attempt at a list; there is one every other round.
const BLIND = 4u;
// Chunks that are added up on their own, so that long sums keep their digits.
const BLOCK = 64u;

var<workgroup> kept: array<u32, WORKGROUP * KEEP>;

// Negative elements and NaN weigh nothing.
fn weights_of(keys: vec4<u32>) -> vec4<f32> {
#ifdef MASS
  let is_positive = keys > vec4<u32>(0x80000000u);
  let value = bitcast<vec4<f32>>(select(vec4<u32>(0u), keys ^ vec4<u32>(0x80000000u), is_positive));
  return min(value, vec4<f32>(3e38));
#else
  return vec4<f32>(1.0);
#endif
}

fn is_enough(sums: vec4<f32>, wanted: f32) -> vec4<bool> {
#ifdef EXCEED
  return sums > vec4<f32>(wanted);
#else
  return sums >= vec4<f32>(wanted);
#endif
}

// What the lane's elements of at least each of three keys weigh.
fn sums_of_row(at: u32, in_row: u32, steps: vec3<u32>) -> vec3<f32> {
  let chunks = (width + 3u) / 4u;
  var sums = vec3<f32>(0.0);
  var part = vec3<f32>(0.0);
  for (var c = in_row; c < chunks; c += LANES) {
    let keys = chunk_keys(at, c);
    // Beyond the first rounds few elements are left.
    if any(keys >= vec4<u32>(steps.x)) {
      let weights = weights_of(keys);
      #unroll
      for (var j = 0u; j < 4u; j++) {
        part += select(vec3<f32>(0.0), vec3<f32>(weights[j]), vec3<u32>(keys[j]) >= steps);
      }
    }
    if (c / LANES) % BLOCK == BLOCK - 1u {
      sums += part;
      part = vec3<f32>(0.0);
    }
  }
  return sums + part;
}

struct List {
  // More than KEEP if they do not fit.
  count: u32,
  // What the lane's elements above the list weigh.
  above: f32,
}

// Lists the lane's elements whose bits from `shift` on are `known`.
fn list_row(at: u32, in_row: u32, known: u32, shift: u32) -> List {
  let chunks = (width + 3u) / 4u;
  let base = lane * KEEP;
  var list = List(0u, 0.0);
  var part = 0.0;
  for (var c = in_row; c < chunks && list.count <= KEEP; c += LANES) {
    let keys = chunk_keys(at, c);
    let bits = keys >> vec4<u32>(shift);
    if any(bits >= vec4<u32>(known)) {
      let weights = weights_of(keys);
      #unroll
      for (var j = 0u; j < 4u; j++) {
        // What is behind the width has key 0, as NaN, and is never searched for.
        if bits[j] == known && keys[j] > 0u {
          if list.count < KEEP {
            kept[base + list.count] = keys[j];
          }
          list.count += 1u;
        }
        part += select(0.0, weights[j], bits[j] > known);
      }
    }
    if (c / LANES) % BLOCK == BLOCK - 1u {
      list.above += part;
      part = 0.0;
    }
  }
  list.above += part;
  return list;
}

fn search(at: u32, in_row: u32, wanted: f32) -> u32 {
  let base = lane * KEEP;
  var key = 0u;
  var is_listed = false;
  var list = List(0u, 0.0);
  for (var round = 0u; round < 16u; round++) {
    let shift = 30u - 2u * round;
    let steps = vec3<u32>(key) + (vec3<u32>(1u, 2u, 3u) << vec3<u32>(shift));
    let known = key >> (shift + 2u);
    if !is_listed && round >= BLIND && round % 2u == 0u {
      list = list_row(at, in_row, known, shift + 2u);
      is_listed = list.count <= KEEP;
    }
    var sums = vec3<f32>(0.0);
    if is_listed {
      var left = 0u;
      for (var i = 0u; i < list.count; i++) {
        let own = kept[base + i];
        let bits = own >> (shift + 2u);
        let weight = weights_of(vec4<u32>(own)).x;
        // Those that the last round left out make room for the rest.
        if bits == known {
          kept[base + left] = own;
          left += 1u;
          sums += select(vec3<f32>(0.0), vec3<f32>(weight), vec3<u32>(own) >= steps);
        }
        list.above += select(0.0, weight, bits > known);
      }
      list.count = left;
      sums += list.above;
    } else {
      sums = sums_of_row(at, in_row, steps);
    }
    let enough = is_enough(add_row(vec4<f32>(sums, 0.0)), wanted);
    key = select(key, steps.x, enough.x);
    key = select(key, steps.y, enough.y);
    key = select(key, steps.z, enough.z);
  }
  return key;
}
