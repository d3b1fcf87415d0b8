// Keys that a tile of TILE queries visits, in segments; with BY_KEYS, queries that a tile of TILE keys
// is visited by. In a full segment all see all.
struct Segment {
  start: u32,
  end: u32,
  full: bool,
}

// Numbers of the tile's segments: first and behind the last.
fn segments(tile: u32) -> vec2<u32> {
  if params.left < 0 {
    let at = MODIFIER_WORDS + tile;
    return vec2<u32>(table[at], table[at + 1u]);
  }
  return vec2<u32>(0u, 3u);
}

#ifdef BY_KEYS
// The window seen from a key: `position - left <= key <= position + right` solved for the query.
fn visit_start(key: u32) -> u32 {
  let query = i32(key + params.queries) - i32(params.keys);
  return u32(clamp(query - params.right, 0, i32(params.queries)));
}

fn visit_end(key: u32) -> u32 {
  let query = i32(key + params.queries) - i32(params.keys);
  return u32(clamp(query + params.left + 1, 0, i32(params.queries)));
}
#else
fn visit_start(query: u32) -> u32 {
  return window_start(query);
}

fn visit_end(query: u32) -> u32 {
  return window_end(query);
}
#endif

fn segment(tile: u32, number: u32) -> Segment {
#ifdef BY_KEYS
  let length = params.keys;
#else
  let length = params.queries;
#endif
  if params.left < 0 {
    let at = MODIFIER_WORDS + (length + TILE - 1u) / TILE + 1u + number * 3u;
    return Segment(table[at], table[at + 1u], table[at + 2u] != 0u);
  }
  let first = tile * TILE;
  let last = min(first + TILE, length) - 1u;
  let start = visit_start(first);
  let end = max(visit_end(last), start);
  var inner_start = visit_start(last);
  var inner_end = visit_end(first);
  if inner_start >= inner_end {
    inner_start = end;
    inner_end = end;
  }
  switch number {
    case 0u: { return Segment(start, inner_start, false); }
    case 1u: { return Segment(inner_start, inner_end, true); }
    default: { return Segment(inner_end, end, false); }
  }
}
