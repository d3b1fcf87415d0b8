// How much of each token is left at each later one of its piece, from the gates alone: C, and of each
// token beta, kappa, omega and the step with its coefficient; see the reference's products.
// An invocation owns one column of a piece: column 0 is what was before it, column s its token s - 1.
// Nothing is divided, and no row reads gates of later tokens. No workgroup memory; needs six storage buffers.

struct Params {
  count: u32,
  tokens: u32,
  // Pieces, their tokens, and those of the first one.
  pieces: u32, chunk: u32, lead: u32,
  // Elements of a row of shares.
  width: u32,
  coefficient: f32,
}

@group(0) @binding(0) var<storage, read> theta: array<f32>; // [planes, tokens]
@group(0) @binding(1) var<storage, read> eta: array<f32>; // [planes, tokens]
@group(0) @binding(2) var<storage, read> alpha: array<f32>; // [planes, tokens]
@group(0) @binding(3) var<storage, read_write> shares: array<f32>; // [planes, tokens, width]
@group(0) @binding(4) var<storage, read_write> ends: array<f32>; // [planes, tokens, 4]
@group(0) @binding(5) var<storage, read_write> momentum: array<f32>; // [planes, pieces]

fn one(index: u32) {
  let given = params;
  let columns = given.chunk + 1u;
  let piece_item = index / columns;
  let column = index - piece_item * columns;
  let plane = piece_item / given.pieces;
  let piece = piece_item - plane * given.pieces;
  let first = select(given.lead + (piece - 1u) * given.chunk, 0u, piece == 0u);
  let length = min(select(given.chunk, given.lead, piece == 0u), given.tokens - first);
  let start = plane * given.tokens + first;
  if column > length {
    return;
  }
  if column == 0u {
    var beta = 1.0;
    var kappa = 0.0;
    var left = 1.0;
    for (var t = 0u; t < length; t++) {
      let at = start + t;
      let keep = 1.0 - alpha[at];
      left *= eta[at];
      kappa = fma(keep, kappa, left);
      beta *= keep;
      ends[4u * at] = beta;
      ends[4u * at + 1u] = kappa;
      ends[4u * at + 3u] = given.coefficient * theta[at];
    }
    momentum[piece_item] = left;
    return;
  }
  let own = column - 1u;
  var share = 1.0;
  var left = 1.0;
  shares[(start + own) * given.width + own] = share;
  for (var t = own + 1u; t < length; t++) {
    let at = start + t;
    left *= eta[at];
    share = fma(1.0 - alpha[at], share, left);
    shares[at * given.width + own] = share;
  }
  ends[4u * (start + own) + 2u] = left;
}

@compute @workgroup_size(WORKGROUP)
#import "each"
