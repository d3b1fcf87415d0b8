  // In an entry point: absorbs the keys of `chunk` of a group's walk into the rows of `tile`. Needs
  // plan_step, `absorb` and `rows`; with SPLIT, groups of lanes take turns at the keys.
  // Queries of the tile, and keys of the chunk, among those of the group.
  let first_member = tile * TILE / params.pack;
  let last_member = (min(tile * TILE + TILE, count) - 1u) / params.pack;
  var chunk_start = chunk * params.chunk;
  var chunk_end = chunk_start + params.chunk;
  for (var phase = EXPLICIT; phase < PHASES; phase++) {
    let whole = hull_of(phase, members, 0u, members.count - 1u);
    var length = whole.y - whole.x;
    if phase == EXPLICIT {
      length = listed_of(work.at);
    }
    let start = min(chunk_start, length);
    let end = min(chunk_end, length);
    chunk_start -= start;
    chunk_end -= end;

    #unroll
    for (var r = 0u; r < ROWS; r++) {
      let seen = seen_at(phase, rows[r].position);
      rows[r].start = seen.x;
      rows[r].end = seen.y;
    }
    let low = seen_at(phase, position_of(query_of(members, first_member)));
    let high = seen_at(phase, position_of(query_of(members, last_member)));
    let sight = Sight(vec2<u32>(low.x, high.y), vec2<u32>(high.x, low.y));
#ifdef SPLIT
    let mine = start + group_number;
#else
    let mine = start;
#endif
    var cursor = cursor_in(whole.x + mine);
    if phase == EXPLICIT {
      cursor = cursor_at(group, mine);
    }
#ifdef SPLIT
    for (var done = start; done < end; done += STEP) {
      let left = select(0u, end - done - group_number, done + group_number < end);
      absorb(take_step(&cursor, left, sight).keys, true, k_start, v_start);
    }
#else
    var done = start;
    var taken = take_step(&cursor, end - done, sight);
    while done < end {
      while done < end && taken.seen_by == NONE {
        done += STEP;
        taken = take_step(&cursor, end - min(done, end), sight);
      }
      while done < end && taken.seen_by == SOME {
        absorb(taken.keys, true, k_start, v_start);
        done += STEP;
        taken = take_step(&cursor, end - min(done, end), sight);
      }
      while done < end && taken.seen_by == ALL {
        absorb(taken.keys, false, k_start, v_start);
        done += STEP;
        taken = take_step(&cursor, end - min(done, end), sight);
      }
    }
#endif
  }
