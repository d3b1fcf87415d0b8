// One element of each row, drawn with probability softmax(x / temperature) among those that top-k,
// top-p and min-p keep: the first, in the row's order, at which the cumulative probability exceeds
// the row's number in [0, 1).
//
// LANES lanes share a row, WORKGROUP / LANES rows a workgroup; workgroup memory for partial sums.
// Needs three storage buffers.

struct Params {
  rows: u32, width: u32, extent_1: u32, extent_2: u32,
  // vec4s.
  x: Place,
  // Words.
  uniform_start: u32, out_start: u32,
  // log2(e) / temperature.
  slope: f32,
  // 0: all.
  top_k: u32,
  // 1: all.
  top_p: f32,
  // log2(min_p); only read with MIN_P.
  min_power: f32,
}

#import "halves"
#import "source"
#import "row_place"
#import "linear"
#import "row_reduce"
#import "keys"

@group(0) @binding(0) var<storage, read> x: array<Source>; // strided [e0, e1, e2, width]
@group(0) @binding(1) var<storage, read> uniforms: array<f32>; // [rows]
@group(0) @binding(2) var<storage, read_write> out: array<u32>; // [rows]

#import "row_keys"
#import "row_best"
#import "row_select"

// Of a lane's slice: what elements above the threshold weigh, and how many are equal to it.
var<workgroup> slices: array<vec2<f32>, WORKGROUP>;

fn choose(at: u32, in_row: u32, scale: Scale) -> Choice {
  var choice = Choice(0u, 0xffffffffu);
#ifdef TOP_K
  let wanted = f32(min(params.top_k, width));
  choice.key = search(at, in_row, wanted, true, scale);
  let above_k = beyond(at, in_row, choice.key, Scale(scale.top, 0.0)).x;
  choice.quota = u32(max(wanted - above_k, 1.0));
#endif
#ifdef TOP_P
  let rest = beyond(at, in_row, choice.key, scale);
  let weight_k = weight_of(choice.key, scale);
  let mass = params.top_p * (rest.x + min(f32(choice.quota), rest.y) * weight_k);
  let key = max(search(at, in_row, mass, false, scale), choice.key);
  let above = beyond(at, in_row, key, scale);
  let weight = weight_of(key, scale);
  // Rounding must neither choose nothing nor more than there are.
  let needed = clamp(ceil((mass - above.x) / max(weight, 1e-37)), 1.0, max(above.y, 1.0));
  let most = select(needed, min(needed, f32(choice.quota)), key == choice.key);
  choice = Choice(key, u32(most));
#endif
#ifdef MIN_P
  // The same logits pass whatever their weight was rounded to.
  let lowest = key_of(scale.top + params.min_power / scale.slope);
  if lowest > choice.key {
    choice = Choice(lowest, 0xffffffffu);
  }
#endif
  return choice;
}

@compute @workgroup_size(WORKGROUP)
fn sample(
#import "arguments"
) {
#import "row_item"
  let at = at_place(numbers, params.x);
  let best = row_best(at, in_row);
  let top = clamp(bitcast<f32>(bits_of_key(max(best.key, 1u))), -3e38, 3e38);
  let scale = Scale(top, params.slope);
  let choice = choose(at, in_row, scale);

  let slice = slice_of(in_row);
  var own = vec2<f32>(0.0);
  for (var c = slice.start; c < slice.end; c++) {
    let keys = chunk_keys(at, c);
    own.x += horizontal(select(vec4<f32>(0.0), weights_of(keys, scale), keys > vec4<u32>(choice.key)));
    own.y += horizontal(select(vec4<f32>(0.0), vec4<f32>(1.0), keys == vec4<u32>(choice.key)));
  }
  slices[lane] = own;
  workgroupBarrier();

  // Every lane adds up all slices in the same order, twice: for the total, and for the slice in
  // which the wanted mass is reached.
  let first = lane - in_row;
  let quota = f32(choice.quota);
  let weight = weight_of(choice.key, scale);
  var total = 0.0;
  var equals = 0.0;
  for (var i = 0u; i < LANES; i++) {
    total += slice_mass(slices[first + i], equals, quota, weight);
    equals += slices[first + i].y;
  }
  let wanted = uniforms[params.uniform_start + row] * total;
  var owner = LANES;
  var reached = false;
  var mass = 0.0;
  var mass_before = 0.0;
  var equals_before = 0.0;
  equals = 0.0;
  for (var i = 0u; i < LANES; i++) {
    let part = slice_mass(slices[first + i], equals, quota, weight);
    if part > 0.0 && !reached {
      owner = i;
      mass_before = mass;
      equals_before = equals;
      reached = mass + part > wanted;
    }
    mass += part;
    equals += slices[first + i].y;
  }

  if !is_row {
    return;
  }
  if owner == LANES && in_row == 0u {
    // No element has any weight.
    out[params.out_start + row] = best.element;
  }
  if owner != in_row {
    return;
  }
  var element = best.element;
  reached = false;
  for (var c = slice.start; c < slice.end && !reached; c++) {
    let keys = chunk_keys(at, c);
    let weights = weights_of(keys, scale);
    for (var j = 0u; j < 4u; j++) {
      let is_equal = keys[j] == choice.key;
      let is_kept = keys[j] > choice.key || (is_equal && equals_before < quota);
      if is_kept && weights[j] > 0.0 && !reached {
        element = 4u * c + j;
        mass_before += weights[j];
        reached = mass_before > wanted;
      }
      equals_before += select(0.0, 1.0, is_equal);
    }
  }
  out[params.out_start + row] = element;
}

// What a slice weighs, with `equals` elements equal to the threshold in front of it.
fn slice_mass(slice: vec2<f32>, equals: f32, quota: f32, weight: f32) -> f32 {
  return slice.x + min(slice.y, max(quota - equals, 0.0)) * weight;
}
