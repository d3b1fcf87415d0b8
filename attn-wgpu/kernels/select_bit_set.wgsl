// Rows of numbers in rising order as bits. An invocation owns ITEMS words of the result and finds its
// numbers by bisection. No workgroup memory; needs three storage buffers.

struct Params {
  // Words of the result, and of one of its rows.
  count: u32,
  width: u32,
  capacity: u32,
  // Words.
  indices_start: u32, counts_start: u32,
}

@group(0) @binding(0) var<storage, read> indices: array<u32>; // [rows, capacity]
@group(0) @binding(1) var<storage, read> counts: array<u32>; // [rows]
@group(0) @binding(2) var<storage, read_write> out: array<u32>; // [rows, width]

fn one(index: u32) {
  let row = index / params.width;
  let first = 32u * (index - row * params.width);
  let start = params.indices_start + row * params.capacity;
  let end = min(counts[params.counts_start + row], params.capacity);
  var low = 0u;
  var high = end;
  while low < high {
    let middle = low + (high - low) / 2u;
    if indices[start + middle] < first {
      low = middle + 1u;
    } else {
      high = middle;
    }
  }
  var bits = 0u;
  for (var i = low; i < min(low + 32u, end); i++) {
    let place = indices[start + i] - first;
    bits |= select(0u, 1u << (place & 31u), place < 32u);
  }
  out[index] = bits;
}

@compute @workgroup_size(WORKGROUP)
#import "each"
