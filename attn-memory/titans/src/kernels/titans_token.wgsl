// The memory token by token: for each, the gradient u at the weights W* of the start of its chunk, then
//   S <- eta S - theta u,   W <- (1 - alpha) W + S,   y = M(W; q),
// in place, and at the end of a chunk W* <- W. In chunks of one token W* is W, and is not touched.
//
// A workgroup owns a plane. COLUMNS of its lanes own a vec4 of columns each, of a tile of the weights, and
// PARTS lanes share the rows of a column. What lanes tell each other is in 16 * ROOM bytes of workgroup
// memory, and 16 * WORKGROUP more where PARTS are several. Needs three storage buffers.

struct Params {
  // Planes.
  count: u32,
  // Tokens in memory, the first one here, and how many.
  tokens: u32, first: u32, length: u32,
  // Tokens of a chunk, and those before the first one in its chunk.
  chunk: u32, position: u32,
  // vec4s of keys, of what is between the layers (none in a memory of one layer), and of values.
  depth: u32, hidden: u32, width: u32,
  coefficient: f32,
}

#import "activation"
#import "titans_slope"

// Key, query, value and gates, see titans_pack.wgsl.
@group(0) @binding(0) var<storage, read> packed: array<vec4<f32>>; // [planes, tokens, 2 depth + width + 1]
// W, S and W*, of each layer one after the other [4 in, out].
@group(0) @binding(1) var<storage, read_write> state: array<vec4<f32>>; // [planes, 3, ..]
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>; // [planes, tokens, width]

const WORKGROUP = COLUMNS * PARTS;

// Key and query [depth], errors [width]; with two layers what is between them of the key, its errors, and
// that of the query [hidden].
var<workgroup> room: array<vec4<f32>, ROOM>;
#ifdef SHARED
var<workgroup> partial: array<vec4<f32>, WORKGROUP>;
#endif

// A layer [4 rows, columns] with its place in a plane's part of the state.
struct Layer {
  start: u32, rows: u32, columns: u32,
}

// The sum over the lanes of a column. All lanes come here together.
fn gathered(sum: vec4<f32>, lane: u32) -> vec4<f32> {
#ifdef SHARED
  partial[lane] = sum;
  workgroupBarrier();
  var all = vec4<f32>(0.0);
  for (var part = 0u; part < PARTS; part++) {
    all += partial[part * COLUMNS + lane % COLUMNS];
  }
  workgroupBarrier();
  return all;
#else
  return sum;
#endif
}

// Four columns of x W, of the last ones for a column beyond them.
fn across(x: u32, layer: Layer, column: u32, lane: u32) -> vec4<f32> {
  let own = min(column, layer.columns - 1u);
  var sum = vec4<f32>(0.0);
  for (var k = lane / COLUMNS; k < layer.rows; k += PARTS) {
    let values = room[x + k];
    let at = layer.start + 4u * k * layer.columns + own;
    #unroll
    for (var i = 0u; i < 4; i++) {
      sum = fma(vec4<f32>(values[i]), state[at + i * layer.columns], sum);
    }
  }
  return gathered(sum, lane);
}

// Four elements of x W^T, as above.
fn along(x: u32, layer: Layer, row: u32, lane: u32) -> vec4<f32> {
  let at = layer.start + 4u * min(row, layer.rows - 1u) * layer.columns;
  var sum = vec4<f32>(0.0);
  for (var k = lane / COLUMNS; k < layer.columns; k += PARTS) {
    let values = room[x + k];
    #unroll
    for (var i = 0u; i < 4; i++) {
      sum[i] += dot(values, state[at + i * layer.columns + k]);
    }
  }
  return gathered(sum, lane);
}

// How a token changes the state.
struct Step {
  // Theta with the coefficient, eta, 1 - alpha.
  theta: f32, eta: f32, keep: f32,
  // From W to S, and from W to W* where the chunk is at its end, else 0.
  momentum: u32, copy: u32,
}

// Stores x with the errors `error` in W and S, and returns four columns of what `query` reads then.
fn store(x: u32, error: u32, query: u32, layer: Layer, step: Step, column: u32, lane: u32) -> vec4<f32> {
  let own = min(column, layer.columns - 1u);
  let by = step.theta * room[error + own];
  var sum = vec4<f32>(0.0);
  for (var k = lane / COLUMNS; k < layer.rows; k += PARTS) {
    let values = room[x + k];
    let queries = room[query + k];
    #unroll
    for (var i = 0u; i < 4; i++) {
      let at = layer.start + (4u * k + i) * layer.columns + own;
      let moving = fma(vec4<f32>(-values[i]), by, step.eta * state[at + step.momentum]);
      let weights = fma(vec4<f32>(step.keep), state[at], moving);
      // Lanes beyond the last column must not write.
      if column < layer.columns {
        state[at + step.momentum] = moving;
        state[at] = weights;
        if step.copy > 0u {
          state[at + step.copy] = weights;
        }
      }
      sum = fma(vec4<f32>(queries[i]), weights, sum);
    }
  }
  return gathered(sum, lane);
}

fn together() {
  workgroupBarrier();
  storageBarrier();
}

@compute @workgroup_size(WORKGROUP)
fn titans_token(
  @builtin(workgroup_id) workgroup: vec3<u32>,
  @builtin(num_workgroups) counts: vec3<u32>,
  @builtin(local_invocation_index) lane: u32,
) {
  // The host folds any number of workgroups into three dimensions.
  let plane = workgroup.x + counts.x * (workgroup.y + counts.y * workgroup.z);
  if plane >= params.count {
    return;
  }
  let depth = params.depth;
  let width = params.width;
  let chunk = params.chunk;
  let own = lane % COLUMNS;
  let writes = lane < COLUMNS;
  let query = depth;
  let error = 2u * depth;
  let item = 2u * depth + width + 1u;
#ifdef LAST
  let weights = 4u * depth * width;
  let first = Layer(3u * weights * plane, depth, width);
#else
  let hidden = params.hidden;
  let between = error + width;
  let back = between + hidden;
  let read = back + hidden;
  let weights = 4u * hidden * (depth + width);
  let first = Layer(3u * weights * plane, depth, hidden);
  let last = Layer(first.start + 4u * depth * hidden, hidden, width);
#endif
  // From W to W*.
  let start = select(2u * weights, 0u, chunk == 1u);

  for (var t = 0u; t < params.length; t++) {
    let row = plane * params.tokens + params.first + t;
    let at = row * item;
    for (var i = lane; i < 2u * depth; i += WORKGROUP) {
      room[i] = packed[at + i];
    }
    let gates = packed[at + item - 1u];
    let ends = (params.position + t + 1u) % chunk == 0u;
    let step = Step(
      params.coefficient * gates.x, gates.y, 1.0 - gates.z, weights, select(0u, start, ends));
    together();
#ifdef LAST
    let before = Layer(first.start + start, depth, width);
    for (var tile = 0u; tile < width; tile += COLUMNS) {
      let column = tile + own;
      let sum = across(0u, before, column, lane);
      if writes && column < width {
        room[error + column] = sum - packed[at + 2u * depth + column];
      }
    }
    together();
    for (var tile = 0u; tile < width; tile += COLUMNS) {
      let column = tile + own;
      let sum = store(0u, error, query, first, step, column, lane);
      if writes && column < width {
        y[row * width + column] = sum;
      }
    }
#else
    let before = Layer(first.start + start, depth, hidden);
    let last_before = Layer(last.start + start, hidden, width);
    for (var tile = 0u; tile < hidden; tile += COLUMNS) {
      let column = tile + own;
      let sum = across(0u, before, column, lane);
      if writes && column < hidden {
        room[between + column] = activate(sum);
        room[back + column] = slope(sum);
      }
    }
    together();
    for (var tile = 0u; tile < width; tile += COLUMNS) {
      let column = tile + own;
      let sum = across(between, last_before, column, lane);
      if writes && column < width {
        room[error + column] = sum - packed[at + 2u * depth + column];
      }
    }
    together();
    for (var tile = 0u; tile < hidden; tile += COLUMNS) {
      let column = tile + own;
      let sum = along(error, last_before, column, lane);
      if writes && column < hidden {
        room[back + column] *= sum;
      }
    }
    together();
    for (var tile = 0u; tile < hidden; tile += COLUMNS) {
      let column = tile + own;
      let sum = store(0u, back, query, first, step, column, lane);
      if writes && column < hidden {
        room[read + column] = activate(sum);
      }
    }
    together();
    for (var tile = 0u; tile < width; tile += COLUMNS) {
      let column = tile + own;
      let sum = store(between, error, read, last, step, column, lane);
      if writes && column < width {
        y[row * width + column] = sum;
      }
    }
#endif
    // The next token overwrites what this one read.
    together();
  }
}
