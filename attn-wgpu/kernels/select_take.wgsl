// What sorted elements stand for: out[i] = row[sorted[i]], or with MODULO their number in their plane
// of `width`.
// An invocation owns ITEMS elements. No workgroup memory; needs three storage buffers.

struct Params {
  count: u32,
  width: u32,
}

@group(0) @binding(0) var<storage, read> sorted: array<u32>; // [count]
@group(0) @binding(1) var<storage, read_write> out: array<u32>; // [count]
#ifdef MODULO
#else
@group(0) @binding(2) var<storage, read> row: array<u32>; // [count]
#endif

fn one(index: u32) {
#ifdef MODULO
  out[index] = sorted[index] % params.width;
#else
  out[index] = row[sorted[index]];
#endif
}

@compute @workgroup_size(WORKGROUP)
#import "each"
