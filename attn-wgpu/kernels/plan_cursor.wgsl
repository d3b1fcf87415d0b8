// Walks over the keys that a group lists, in the order of its entries. Needs plan_groups.
//
// A cursor lives in a variable of the function that uses it, so that compilers see that its values are
// those of the whole workgroup.

struct Cursor {
  // The entry and the one behind the last; a run of keys that is no entry has 0 behind the last.
  entry: u32,
  behind: u32,
  // First key and number of keys of the entry, and which of them is meant.
  start: u32,
  length: u32,
  offset: u32,
#ifdef BLOCK_BITS
  // Bits of the entry's word that are not done yet, the entry's own among them.
  bits: u32,
#endif
}

fn key_at(cursor: ptr<function, Cursor>) -> u32 {
  return (*cursor).start + (*cursor).offset;
}

// Reads the keys of the cursor's entry.
fn load_entry(cursor: ptr<function, Cursor>) {
#ifdef BLOCKS
  (*cursor).start = params.origin + plan[params.at_data + (*cursor).entry] * params.bk;
#endif
#ifdef TOKENS
  (*cursor).start = plan[params.at_data + (*cursor).entry];
#endif
#ifdef SPANS
  (*cursor).start = plan[params.at_data + 2u * (*cursor).entry];
  (*cursor).length = plan[params.at_data + 2u * (*cursor).entry + 1u];
#endif
#ifdef BLOCK_BITS
  // `entry` and `behind` are words.
  while (*cursor).bits == 0u && (*cursor).entry + 1u < (*cursor).behind {
    (*cursor).entry++;
    (*cursor).bits = plan[(*cursor).entry];
  }
  let first = (*cursor).behind - params.group_words;
  let block = ((*cursor).entry - first) * 32u + firstTrailingBit((*cursor).bits);
  (*cursor).start = params.origin + block * params.bk;
#endif
}

fn next_entry(cursor: ptr<function, Cursor>) {
#ifdef BLOCK_BITS
  (*cursor).bits &= (*cursor).bits - 1u;
#else
  (*cursor).entry++;
#endif
  load_entry(cursor);
}

// The key with this number among those of the group.
fn cursor_at(group: u32, number: u32) -> Cursor {
  var cursor: Cursor;
#ifdef BLOCK_BITS
  cursor.entry = params.at_data + group * params.group_words;
  cursor.behind = cursor.entry + params.group_words;
  cursor.length = params.bk;
  var rank = number / params.bk;
  cursor.offset = number % params.bk;
  cursor.bits = plan[cursor.entry];
  while rank >= countOneBits(cursor.bits) && cursor.entry + 1u < cursor.behind {
    rank -= countOneBits(cursor.bits);
    cursor.entry++;
    cursor.bits = plan[cursor.entry];
  }
  while rank > 0u {
    cursor.bits &= cursor.bits - 1u;
    rank--;
  }
#else
#ifdef ENTRIES
  cursor.entry = plan[params.at_row_ptr + group];
  cursor.behind = plan[params.at_row_ptr + group + 1u];
#endif
#endif
#ifdef BLOCKS
  cursor.length = params.bk;
  cursor.entry += number / params.bk;
  cursor.offset = number % params.bk;
#endif
#ifdef TOKENS
  cursor.length = 1u;
  cursor.entry += number;
#endif
#ifdef SPANS
  cursor.offset = number;
#endif
  load_entry(&cursor);
#ifdef SPANS
  advance(&cursor, 0u);
#endif
  return cursor;
}

// A cursor in a run of keys that is no entry.
fn cursor_in(start: u32) -> Cursor {
  var cursor: Cursor;
  cursor.start = start;
  return cursor;
}

fn advance(cursor: ptr<function, Cursor>, keys: u32) {
#ifdef TOKENS
  if (*cursor).behind > 0u {
    (*cursor).entry += keys;
    (*cursor).start = plan[params.at_data + (*cursor).entry];
  } else {
    (*cursor).offset += keys;
  }
#else
  (*cursor).offset += keys;
#ifdef SPANS
  // Entries may be empty: the last one is the last, however far the cursor goes.
  while (*cursor).offset >= (*cursor).length && (*cursor).entry + 1u < (*cursor).behind {
#else
  while (*cursor).offset >= (*cursor).length && (*cursor).behind > 0u {
#endif
    (*cursor).offset -= (*cursor).length;
    next_entry(cursor);
  }
#endif
}
