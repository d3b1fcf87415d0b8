// The way back through the shares of a piece, column by column: what each share gives to the gates of
// its row. The recurrences of titans_shares in reverse; nothing is divided.
// An invocation owns one column of a piece: column 0 is what was before it, column s its token s - 1. A
// column has no use for its diagonal, where column 0 leaves what it gives.
// No workgroup memory; needs seven storage buffers.

struct Params {
  count: u32,
  tokens: u32,
  // Pieces, their tokens, and those of the first one.
  pieces: u32, chunk: u32, lead: u32,
  // Elements of a row of shares.
  width: u32,
  // Rows of weights of all layers, and planes.
  rows: u32, planes: u32,
}

// C_m, omega, eta and alpha.
@group(0) @binding(0) var<storage, read> tail: array<vec4<f32>>; // [planes, tokens]
@group(0) @binding(1) var<storage, read> shares: array<f32>; // [planes, tokens, width]
// beta, kappa, omega and the step.
@group(0) @binding(2) var<storage, read> ends: array<vec4<f32>>; // [planes, tokens]
// Cotangents of beta and kappa, and of C_m and omega but for the step, negative.
@group(0) @binding(3) var<storage, read> d_ends: array<vec4<f32>>; // [planes, tokens]
@group(0) @binding(4) var<storage, read> state: array<vec4<f32>>; // [pieces, planes, rows]
// Cotangents of C but for the step, negative; then what the gates forget of the column.
@group(0) @binding(5) var<storage, read_write> keeps: array<f32>; // [planes, tokens, width]
@group(0) @binding(6) var<storage, read_write> moves: array<f32>; // [planes, tokens, width]

// What was before the piece: beta, kappa and the momentum.
fn before(start: u32, length: u32, state_row: u32) {
  let width = params.width;
  var sums = vec4<f32>(0.0);
  for (var row = 0u; row < params.rows; row++) {
    sums += state[state_row * params.rows + row];
  }
  var left = 1.0;
  for (var t = 0u; t < length; t++) {
    moves[(start + t) * width + t] = left;
    left *= tail[start + t].z;
  }
  var by_beta = sums.x;
  var by_kappa = sums.y;
  var by_left = sums.z;
  for (var n = length; n > 0u; n--) {
    let t = n - 1u;
    let cell = (start + t) * width + t;
    let gates = tail[start + t];
    by_beta += d_ends[start + t].x;
    by_kappa += d_ends[start + t].y;
    by_left += by_kappa;
    let earlier = select(vec4<f32>(1.0, 0.0, 0.0, 0.0), ends[start + max(t, 1u) - 1u], t > 0u);
    keeps[cell] = fma(by_beta, earlier.x, by_kappa * earlier.y);
    moves[cell] *= by_left;
    by_beta *= 1.0 - gates.w;
    by_kappa *= 1.0 - gates.w;
    by_left *= gates.z;
  }
}

// A token's own column.
fn within(start: u32, length: u32, own: u32) {
  let width = params.width;
  var left = 1.0;
  for (var t = own + 1u; t < length; t++) {
    moves[(start + t) * width + own] = left;
    left *= tail[start + t].z;
  }
  let step = -ends[start + own].w;
  var by_share = step * d_ends[start + own].z;
  var by_left = step * d_ends[start + own].w;
  for (var t = length - 1u; t > own; t--) {
    let cell = (start + t) * width + own;
    let gates = tail[start + t];
    by_share = fma(step, keeps[cell], by_share);
    by_left += by_share;
    keeps[cell] = by_share * shares[cell - width];
    moves[cell] *= by_left;
    by_share *= 1.0 - gates.w;
    by_left *= gates.z;
  }
}

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
  if column == 0u {
    before(start, length, piece * given.planes + plane);
  } else if column <= length {
    within(start, length, column - 1u);
  }
}

@compute @workgroup_size(WORKGROUP)
#import "each"
