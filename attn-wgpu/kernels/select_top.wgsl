// The largest elements of each row, as many as asked for; of equals the first. With AS_BITS as one bit an
// element, else as numbers in rising order, NONE behind them; and how many they are.
//
// LANES lanes share a row, WORKGROUP / LANES rows a workgroup; workgroup memory for lists and counts.
// Needs four storage buffers.

struct Params {
  rows: u32, width: u32, extent_1: u32, extent_2: u32,
  // vec4s.
  x: Place,
  // Words.
  out: Place, counts: Place, wanted: Place,
  // Words of a row of the result, and how many elements to choose at most.
  capacity: u32, most: u32,
}

#import "halves"
#import "source"
#import "row_place"
#import "linear"
#import "row_reduce"
#import "keys"

const NONE = 0xffffffffu;

@group(0) @binding(0) var<storage, read> x: array<Source>; // strided [e0, e1, e2, width]
@group(0) @binding(1) var<storage, read_write> out: array<u32>; // strided [e0, e1, e2, capacity]
@group(0) @binding(2) var<storage, read_write> chosen_counts: array<u32>; // strided [e0, e1, e2]
#ifdef EACH
@group(0) @binding(3) var<storage, read> wanted_counts: array<u32>; // strided [e0, e1, e2]
#endif

#import "row_keys"
#import "search"

// Elements of a lane's slice above the threshold, and equal to it.
var<workgroup> slices: array<vec2<u32>, WORKGROUP>;

// Which of a chunk's elements are equal to the threshold.
fn equals_of(keys: vec4<u32>, chunk: u32, key: u32) -> vec4<bool> {
  let elements = 4u * chunk + vec4<u32>(0u, 1u, 2u, 3u);
  return (keys == vec4<u32>(key)) & (elements < vec4<u32>(width));
}

fn sum(flags: vec4<bool>) -> u32 {
  let ones = select(vec4<u32>(0u), vec4<u32>(1u), flags);
  return (ones.x + ones.y) + (ones.z + ones.w);
}

@compute @workgroup_size(WORKGROUP)
fn select_top(
#import "arguments"
) {
#import "row_item"
  let at = at_place(numbers, params.x);
  let out_at = at_place(numbers, params.out);
  let capacity = params.capacity;
  var wanted = min(params.most, width);
#ifdef EACH
  wanted = min(wanted, wanted_counts[at_place(numbers, params.wanted)]);
#endif
  let key = search(at, in_row, f32(wanted));

  // A lane owns whole words of 32 elements.
  let chunks = (width + 3u) / 4u;
  let words = (width + 31u) / 32u;
  let each = (words + LANES - 1u) / LANES;
  let first_word = min(in_row * each, words);
  let end_word = min(first_word + each, words);
  let start = 8u * first_word;
  let end = min(8u * end_word, chunks);
  var own = vec2<u32>(0u);
  for (var c = start; c < end; c++) {
    let keys = chunk_keys(at, c);
    if any(keys >= vec4<u32>(key)) {
      own += vec2<u32>(sum(keys > vec4<u32>(key)), sum(equals_of(keys, c, key)));
    }
  }
  slices[lane] = own;
  workgroupBarrier();
  var before = vec2<u32>(0u);
  var above = 0u;
  for (var i = 0u; i < LANES; i++) {
    let other = slices[lane - in_row + i];
    before += select(vec2<u32>(0u), other, i < in_row);
    above += other.x;
  }
  if !is_row {
    return;
  }
  let quota = wanted - min(above, wanted);
  var equals = before.y;
#ifdef AS_BITS
  for (var w = first_word; w < end_word; w++) {
    var word = 0u;
    for (var c = 8u * w; c < min(8u * w + 8u, chunks); c++) {
      let keys = chunk_keys(at, c);
      if any(keys >= vec4<u32>(key)) {
        let is_equal = equals_of(keys, c, key);
        #unroll
        for (var j = 0u; j < 4u; j++) {
          let chosen = keys[j] > key || (is_equal[j] && equals < quota);
          word |= select(0u, 1u, chosen) << (4u * (c % 8u) + j);
          equals += select(0u, 1u, is_equal[j]);
        }
      }
    }
    out[out_at + w] = word;
  }
#else
  var place = before.x + min(equals, quota);
  for (var c = start; c < end; c++) {
    let keys = chunk_keys(at, c);
    if any(keys >= vec4<u32>(key)) {
      let is_equal = equals_of(keys, c, key);
      #unroll
      for (var j = 0u; j < 4u; j++) {
        if (keys[j] > key || (is_equal[j] && equals < quota)) && place < wanted {
          out[out_at + place] = 4u * c + j;
          place += 1u;
        }
        equals += select(0u, 1u, is_equal[j]);
      }
    }
  }
  for (var i = wanted + in_row; i < capacity; i += LANES) {
    out[out_at + i] = NONE;
  }
#endif
  if in_row == 0u {
    chosen_counts[at_place(numbers, params.counts)] = wanted;
  }
}
