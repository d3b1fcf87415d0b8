// How many keys of its cluster each query sees. Both are listed by rising token, so these are the first
// ones: with CAUSAL those up to the query's token, else all; NONE is behind the last one of either.
// An invocation owns one query. No workgroup memory; needs three storage buffers.

struct Params {
  count: u32, width: u32,
}

const NONE = 0xffffffffu;

@group(0) @binding(0) var<storage, read> queries: array<u32>; // [clusters, width]
@group(0) @binding(1) var<storage, read> keys: array<u32>; // [clusters, width]
@group(0) @binding(2) var<storage, read_write> limits: array<u32>; // [clusters, width]

fn one(index: u32) {
  let query = queries[index];
  let first = index / params.width * params.width;
#ifdef CAUSAL
  let last = query;
#else
  let last = NONE - 1u;
#endif
  var low = 0u;
  var high = params.width;
  while low < high {
    let middle = (low + high) / 2u;
    if keys[first + middle] <= last {
      low = middle + 1u;
    } else {
      high = middle;
    }
  }
  limits[index] = select(low, 0u, query == NONE);
}

@compute @workgroup_size(WORKGROUP)
#import "each"
