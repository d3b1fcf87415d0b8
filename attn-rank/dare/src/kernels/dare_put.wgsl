// What a search hands over: keys and numbers of what a tile keeps, or with LAST the scores themselves. In:
// `out_at`, where the tile's list begins, and `number_of`, which gives the number of an element.
var<private> out_at: u32;

const NONE = 0xffffffffu;
const MASKED: f32 = -3e38;

fn put(place: u32, key: u32, element: u32) {
#ifdef LAST
#ifdef NEWEST
  // Not the score: that is looked up.
  out_keys[out_at + place] = key;
#else
  out_keys[out_at + place] = select(bitcast<u32>(MASKED), bits_of_key(key), key > 0u);
#endif
#else
  out_keys[out_at + place] = key;
#endif
  var number = NONE;
  if key > 0u {
    number = number_of(element);
  }
  out_numbers[out_at + place] = number;
}
