// A new token comes to the lists of the centroids: it enters where there is room, or in place of the
// entry of smallest score, of equal ones the last token, if its own is larger. Written: the slot that it
// gets, or NONE, and how many entries it sees then, 0 where it does not enter.
// An invocation owns one list. No workgroup memory; needs five storage buffers.

struct Params {
  count: u32, window: u32,
  // The new token's number.
  token: u32,
  // Words from the scores of one list to the next, and which of these is the new token's.
  stride: u32, at: u32,
}

const NONE = 0xffffffffu;

@group(0) @binding(0) var<storage, read> scores: array<f32>; // [lists, stride]
@group(0) @binding(1) var<storage, read_write> held_scores: array<u32>; // [lists, window], in the order of floats
@group(0) @binding(2) var<storage, read_write> held_tokens: array<u32>; // [lists, window]
@group(0) @binding(3) var<storage, read_write> slots: array<u32>; // [lists]
@group(0) @binding(4) var<storage, read_write> limits: array<u32>; // [lists]

// Floats as integers of the same order; NaN is 0, below everything.
fn key_of(value: f32) -> u32 {
  let raw = bitcast<u32>(value);
  let bits = select(raw, 0u, raw == 0x80000000u);
  let key = select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
  return select(key, 0u, (bits & 0x7fffffffu) > 0x7f800000u);
}

fn one(list: u32) {
  let first = list * params.window;
  let score = key_of(scores[list * params.stride + params.at]);
  var slot = params.token;
  if params.token >= params.window {
    var lowest = NONE;
    var last = 0u;
    slot = 0u;
    for (var i = 0u; i < params.window; i++) {
      let other = held_scores[first + i];
      let token = held_tokens[first + i];
      if other < lowest || (other == lowest && token > last) {
        lowest = other;
        last = token;
        slot = i;
      }
    }
    slot = select(NONE, slot, score > lowest);
  }
  slots[list] = slot;
  if slot == NONE {
    limits[list] = 0u;
  } else {
    limits[list] = min(params.token + 1u, params.window);
    held_scores[first + slot] = score;
    held_tokens[first + slot] = params.token;
  }
}

@compute @workgroup_size(WORKGROUP)
#import "each"
