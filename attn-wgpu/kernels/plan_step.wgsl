// The next keys of a walk over a group, and who sees them. Needs plan_cursor, STEP and STRIDE: how far
// the keys of a lane are from each other.

// Rows that see the keys of a step.
const NONE = 0u;
const SOME = 1u;
const ALL = 2u;

// What all rows of a tile see, and what at least one does.
struct Sight {
  hull: vec2<u32>,
  full: vec2<u32>,
}

struct Step {
  keys: array<u32, KEYS>,
  seen_by: u32,
}

// Takes the keys of one step, `left` of which there are at most, and moves the cursor behind them.
fn take_step(cursor: ptr<function, Cursor>, left: u32, sight: Sight) -> Step {
  var taken: Step;
  var none = true;
  var all = true;
  #unroll
  for (var b = 0u; b < KEYS; b++) {
    let key = key_at(cursor);
    let exists = b * STRIDE < left;
    taken.keys[b] = select(NO_KEY, key, exists);
    none = none && !(exists && sight.hull.x <= key && key < sight.hull.y);
    all = all && exists && sight.full.x <= key && key < sight.full.y;
#ifdef KEY_BIAS
    var bias = 0.0;
    if (*cursor).behind > 0u {
      bias = bitcast<f32>(plan[params.at_bias + (*cursor).entry]);
    }
    key_bias[b] = bias;
    all = all && bias > MASKED;
#endif
    advance(cursor, STRIDE);
  }
#ifdef MODIFIER
  all = false;
#endif
  taken.seen_by = select(select(SOME, ALL, all), NONE, none);
#ifdef SPLIT
  taken.seen_by = SOME;
#endif
  return taken;
}
