// Where each class of sorted keys begins: out[c] = number of keys below c, for c = 0 .. classes.
// An invocation owns ITEMS classes. No workgroup memory; needs two storage buffers.

struct Params {
  // Classes, and one more.
  count: u32,
  keys: u32,
}

@group(0) @binding(0) var<storage, read> keys: array<u32>; // [keys], ascending
@group(0) @binding(1) var<storage, read_write> out: array<u32>; // [count]

fn one(index: u32) {
  var low = 0u;
  var high = params.keys;
  while low < high {
    let middle = low + (high - low) / 2u;
    if keys[middle] < index {
      low = middle + 1u;
    } else {
      high = middle;
    }
  }
  out[index] = low;
}

@compute @workgroup_size(WORKGROUP)
#import "each"
