//! Every kind of damage is refused by the name of what is broken.

use attn_core::plan::{Combine, Entries, Near, Part, PlanShape, Rows, Share, SparsePlan};
use attn_core::{AttentionShape, Error, Mask, dense::Config};
use proptest::prelude::*;

fn name(error: &Error) -> &'static str {
    match error {
        Error::Config { arg, .. } | Error::Data { arg, .. } => arg,
        other => panic!("{other}"),
    }
}

fn part(rows: Rows, entries: Entries) -> SparsePlan {
    let shape = PlanShape::new(1, 2, 1, 6, 10);
    SparsePlan::new(shape, Share::PerHead, true, vec![Part::new(rows, entries)])
}

/// Two planes of two groups each.
fn lists() -> Rows {
    Rows::Lists {
        plane_ptr: vec![0, 2, 4],
        q_ptr: vec![0, 2, 4, 4, 6],
        q_idx: vec![0, 3, 1, 5, 2, 4],
    }
}

fn segments() -> Rows {
    Rows::Ranges { plane_ptr: vec![0, 2, 4], q_start: vec![0, 3, 0, 1], q_len: vec![3, 3, 1, 4] }
}

fn tokens() -> Entries {
    Entries::Tokens { row_ptr: vec![0, 2, 3, 3, 5], k_idx: vec![0, 3, 9, 1, 2] }
}

fn ranges() -> Entries {
    let ranges = vec![[0, 2], [3, 1], [2, 8], [1, 1], [4, 2]];
    Entries::Ranges { row_ptr: vec![0, 2, 3, 3, 5], ranges }
}

fn blocks() -> Entries {
    Entries::Blocks { bk: 3, origin: 1, row_ptr: vec![0, 2, 3, 3, 5], col: vec![0, 1, 2, 0, 1] }
}

fn bits() -> Entries {
    Entries::Bits { bk: 3, origin: 1, words: vec![0b11, 0b100, 0, 0b11] }
}

fn sound() -> Vec<SparsePlan> {
    let plans = [lists(), segments(), Rows::Tiled { bq: 3 }].into_iter().flat_map(|rows| {
        [blocks(), bits(), ranges(), tokens()].map(|entries| part(rows.clone(), entries))
    });
    plans.map(|plan| plan.canonicalise().unwrap()).collect()
}

fn damage_rows(rows: &Rows) -> Vec<(&'static str, Rows)> {
    let mut all = Vec::new();
    let mut with = |arg: &'static str, change: &dyn Fn(&mut Rows)| {
        let mut broken = rows.clone();
        change(&mut broken);
        all.push((arg, broken));
    };
    type Words<'a> = &'a dyn Fn(&mut Vec<u32>);
    let offsets: [Words; 5] = [
        &|v| v[0] = 1,
        &|v| *v.last_mut().unwrap() += 1,
        &|v| v[1] = u32::MAX,
        &|v| v.truncate(v.len() - 1),
        &|v| v.clear(),
    ];
    match rows {
        Rows::Tiled { .. } => with("bq", &|rows| *rows = Rows::Tiled { bq: 0 }),
        Rows::Lists { .. } => {
            for damage in offsets {
                with("plane_ptr", &|rows| {
                    if let Rows::Lists { plane_ptr, .. } = rows {
                        damage(plane_ptr)
                    }
                });
            }
            for damage in &offsets[..3] {
                with("q_ptr", &|rows| {
                    if let Rows::Lists { q_ptr, .. } = rows {
                        damage(q_ptr)
                    }
                });
            }
            with("plane_ptr", &|rows| {
                if let Rows::Lists { q_ptr, .. } = rows {
                    q_ptr.push(6)
                }
            });
            with("q_ptr", &|rows| {
                if let Rows::Lists { q_ptr, .. } = rows {
                    q_ptr.clear()
                }
            });
            with("q_idx", &|rows| {
                if let Rows::Lists { q_idx, .. } = rows {
                    q_idx[2] = 6
                }
            });
            with("q_idx", &|rows| {
                if let Rows::Lists { q_idx, .. } = rows {
                    q_idx.swap(0, 1)
                }
            });
            with("q_idx", &|rows| {
                if let Rows::Lists { q_idx, .. } = rows {
                    q_idx[1] = 0
                }
            });
            with("q_ptr", &|rows| {
                if let Rows::Lists { q_idx, .. } = rows {
                    q_idx.push(0)
                }
            });
            // Query 3 in two groups of one plane.
            with("rows", &|rows| {
                if let Rows::Lists { q_idx, .. } = rows {
                    q_idx[2] = 3
                }
            });
        }
        Rows::Ranges { .. } => {
            for damage in offsets {
                with("plane_ptr", &|rows| {
                    if let Rows::Ranges { plane_ptr, .. } = rows {
                        damage(plane_ptr)
                    }
                });
            }
            with("q_len", &|rows| {
                if let Rows::Ranges { q_len, .. } = rows {
                    q_len.push(0)
                }
            });
            with("q_len", &|rows| {
                if let Rows::Ranges { q_len, .. } = rows {
                    q_len[1] = 4
                }
            });
            with("q_len", &|rows| {
                if let Rows::Ranges { q_len, .. } = rows {
                    q_len[3] = u32::MAX
                }
            });
            with("rows", &|rows| {
                if let Rows::Ranges { q_len, .. } = rows {
                    q_len[0] = 4
                }
            });
        }
        _ => panic!("a new kind of rows"),
    }
    all
}

fn damage_entries(entries: &Entries) -> Vec<(&'static str, Entries)> {
    let mut all = Vec::new();
    let mut with = |arg: &'static str, change: &dyn Fn(&mut Entries)| {
        let mut broken = entries.clone();
        change(&mut broken);
        all.push((arg, broken));
    };
    for damage in [0, 1, 2, 3] {
        with("row_ptr", &|entries| {
            let (Entries::Blocks { row_ptr, .. }
            | Entries::Ranges { row_ptr, .. }
            | Entries::Tokens { row_ptr, .. }) = entries
            else {
                return;
            };
            match damage {
                0 => row_ptr[0] = 1,
                1 => row_ptr[2] = 9,
                2 => row_ptr.truncate(4),
                _ => row_ptr.push(5),
            }
        });
    }
    match entries {
        Entries::Blocks { .. } => {
            with("bk", &|e| {
                if let Entries::Blocks { bk, .. } = e {
                    *bk = 0
                }
            });
            with("col", &|e| {
                if let Entries::Blocks { col, .. } = e {
                    col.swap(0, 1)
                }
            });
            with("col", &|e| {
                if let Entries::Blocks { col, .. } = e {
                    col[1] = col[0]
                }
            });
            with("col", &|e| {
                if let Entries::Blocks { col, .. } = e {
                    col[2] = 3
                }
            });
            with("col", &|e| {
                if let Entries::Blocks { origin, .. } = e {
                    *origin = u32::MAX
                }
            });
            with("row_ptr", &|e| {
                if let Entries::Blocks { col, .. } = e {
                    col.push(0)
                }
            });
        }
        Entries::Bits { .. } => {
            all.retain(|_| false);
            let mut with = |arg: &'static str, change: &dyn Fn(&mut Vec<u32>, &mut u32)| {
                let mut broken = entries.clone();
                if let Entries::Bits { words, bk, .. } = &mut broken {
                    change(words, bk);
                }
                all.push((arg, broken));
            };
            with("bk", &|_, bk| *bk = 0);
            with("words", &|words, _| words.push(0));
            with("words", &|words, _| words.truncate(3));
            with("words", &|words, _| words[1] |= 1 << 3);
        }
        Entries::Ranges { .. } => {
            with("ranges", &|e| {
                if let Entries::Ranges { ranges, .. } = e {
                    ranges.swap(0, 1)
                }
            });
            with("ranges", &|e| {
                if let Entries::Ranges { ranges, .. } = e {
                    ranges[0][1] = 3
                }
            });
            with("ranges", &|e| {
                if let Entries::Ranges { ranges, .. } = e {
                    ranges[0][1] = 4
                }
            });
            with("ranges", &|e| {
                if let Entries::Ranges { ranges, .. } = e {
                    ranges[0][1] = 0
                }
            });
            with("ranges", &|e| {
                if let Entries::Ranges { ranges, .. } = e {
                    ranges[2][1] = 9
                }
            });
            with("ranges", &|e| {
                if let Entries::Ranges { ranges, .. } = e {
                    ranges[2] = [u32::MAX; 2]
                }
            });
        }
        Entries::Tokens { .. } => {
            with("k_idx", &|e| {
                if let Entries::Tokens { k_idx, .. } = e {
                    k_idx.swap(0, 1)
                }
            });
            with("k_idx", &|e| {
                if let Entries::Tokens { k_idx, .. } = e {
                    k_idx[1] = k_idx[0]
                }
            });
            with("k_idx", &|e| {
                if let Entries::Tokens { k_idx, .. } = e {
                    k_idx[2] = 10
                }
            });
        }
        _ => panic!("a new kind of entries"),
    }
    all
}

#[test]
fn rows_and_entries() {
    for plan in sound() {
        plan.validate().unwrap();
        for (arg, rows) in damage_rows(&plan.parts[0].rows) {
            let mut broken = plan.clone();
            broken.parts[0].rows = rows;
            let error = broken.validate().unwrap_err();
            assert_eq!(name(&error), arg, "{error} in {broken:?}");
        }
        for (arg, entries) in damage_entries(&plan.parts[0].entries) {
            let mut broken = plan.clone();
            broken.parts[0].entries = entries;
            let error = broken.validate().unwrap_err();
            assert_eq!(name(&error), arg, "{error} in {broken:?}");
        }
    }
}

/// An entry that no query of the group can see is no part of a canonical plan.
#[test]
fn entries_out_of_sight() {
    for plan in sound() {
        // All queries are before all keys.
        let moved = |q_off| {
            let mut plan = plan.clone();
            plan.shape.q_off = q_off;
            plan
        };
        let near = |sink, window| plan.clone().with_near(Near { sink, window, grow: false });
        let (future, far) = (moved(-9), moved(40).with_max_dist(3));
        let (near, sinks) = (near(0, 20), near(10, 0));
        for plan in [future, near, sinks, far] {
            plan.check().unwrap();
            let error = plan.validate().unwrap_err();
            assert!(["col", "words", "ranges", "k_idx"].contains(&name(&error)), "{error}");
            let canonical = plan.canonicalise().unwrap();
            assert_eq!(canonical.parts[0].entries.nnz(), 0);
            canonical.validate().unwrap();
        }
    }
}

#[test]
fn settings() {
    for plan in sound() {
        let refused = |arg: &str, change: &dyn Fn(&mut SparsePlan)| {
            let mut broken = plan.clone();
            change(&mut broken);
            let error = broken.check().unwrap_err();
            assert_eq!(name(&error), arg, "{error}");
            assert_eq!(broken.canonicalise(), Err(error.clone()));
            assert_eq!(broken.validate(), Err(error.clone()));
            assert_eq!(broken.to_dense_mask(0, 0), Err(error.clone()));
            assert_eq!(broken.stats(Default::default()), Err(error));
        };
        refused("heads_kv", &|p| p.shape.heads_kv = 3);
        refused("heads_kv", &|p| p.shape.heads_kv = 0);
        refused("built_keys", &|p| p.shape.built_keys = 11);
        refused("q_off", &|p| p.shape.q_off = i64::MIN);
        refused("q_off", &|p| p.shape.q_off = i64::MAX);
        refused("queries", &|p| p.shape.queries = usize::MAX);
        refused("keys", &|p| p.shape.keys = usize::MAX);
        refused("planes", &|p| p.shape.batch = usize::MAX);
        refused("near", &|p| (p.causal, p.near.sink) = (false, 1));
        refused("near", &|p| (p.causal, p.near.window) = (false, 1));
        refused("q_slot", &|p| p.parts[0].q_slot = Some(vec![0; 5]));
        refused("gate", &|p| p.combine = Combine::Gate(Vec::new()));
        refused("gate", &|p| p.combine = Combine::Gate(vec![Some(vec![0.0; 5])]));
        let rows =
            if let Rows::Lists { q_idx, .. } = &plan.parts[0].rows { q_idx.len() } else { 12 };
        let rows = if let Rows::Ranges { .. } = &plan.parts[0].rows { 11 } else { rows };
        refused("gate", &|p| p.combine = Combine::Gate(vec![Some(vec![f32::NAN; rows])]));
        refused("rows", &|p| p.parts.push(p.parts[0].clone()));
        let bits = matches!(plan.parts[0].entries, Entries::Bits { .. });
        refused("bias", &|p| p.parts[0].bias = Some(vec![0.0; 9]));
        let nnz = plan.parts[0].entries.nnz();
        for bad in [f32::NAN, f32::INFINITY] {
            refused("bias", &|p| p.parts[0].bias = Some(vec![bad; nnz]));
        }
        let mut masked = plan.clone();
        masked.parts[0].bias = Some(vec![-2e30; nnz]);
        assert_eq!(masked.check().is_ok(), !bits);
        assert_eq!(name(&masked.validate().unwrap_err()), "bias");
    }
    let tiles = Rows::Tiled { bq: 1 };
    let mut huge = part(tiles, Entries::Tokens { row_ptr: vec![0], k_idx: vec![] });
    (huge.shape.queries, huge.shape.keys) = (u32::MAX as usize, u32::MAX as usize);
    assert_eq!(name(&huge.check().unwrap_err()), "bq", "two planes of 2^32 - 1 groups");
    huge.parts.clear();
    assert_eq!(name(&huge.to_dense_mask(0, 0).unwrap_err()), "plan", "2^64 bits");
}

#[test]
fn calls_that_a_plan_is_not_for() {
    let plan = &sound()[0];
    let shape = AttentionShape {
        batch: 1,
        heads: 2,
        heads_kv: 1,
        queries: 6,
        keys: 10,
        dim_qk: 3,
        dim_v: 2,
    };
    let config = |mask| Config::new().with_mask(mask);
    plan.check_call(&shape, &config(Mask::Causal)).unwrap();
    let refused = |arg: &str, plan: &SparsePlan, shape: AttentionShape, mask: Mask| {
        let error = plan.check_call(&shape, &config(mask)).unwrap_err();
        assert_eq!(name(&error), arg, "{error}");
    };
    for other in [
        AttentionShape { batch: 2, ..shape },
        AttentionShape { heads: 3, ..shape },
        AttentionShape { heads_kv: 2, ..shape },
        AttentionShape { queries: 5, ..shape },
        AttentionShape { keys: 11, ..shape },
    ] {
        refused("plan", plan, other, Mask::Causal);
    }
    let window = |right| Mask::Window { left: 3, right };
    for mask in [Mask::Full, window(1), Mask::PrefixLm { prefix: 2 }] {
        refused("mask", plan, shape, mask);
    }
    plan.check_call(&shape, &config(window(0))).unwrap();
    let mut both = plan.clone();
    both.causal = false;
    refused("mask", &both, shape, Mask::Causal);
    both.check_call(&shape, &config(window(1))).unwrap();
    let mut moved = plan.clone();
    moved.shape.q_off += 1;
    moved.check_call(&shape, &config(Mask::Causal)).unwrap();
    refused("q_off", &moved, shape, window(0));
    let bits = Mask::Bits(attn_core::BitMask::from_fn(6, 10, |_, _| true));
    moved.check_call(&shape, &config(bits)).unwrap();
    let mut bad = plan.clone();
    bad.parts[0].rows = Rows::Tiled { bq: 0 };
    refused("bq", &bad, shape, Mask::Causal);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever the words are: an answer or an error, and no panic.
    #[test]
    fn any_words_at_all(
        rows in 0..3_usize, entries in 0..4_usize, sizes in prop::array::uniform5(0..4_usize),
        words in prop::collection::vec(prop_oneof![4 => 0..7_u32, 1 => any::<u32>()], 60),
        q_off in prop_oneof![-9..9_i64, any::<i64>()], causal in any::<bool>(), lse in any::<bool>(),
    ) {
        let mut words = words.into_iter();
        let mut take = |n: usize| words.by_ref().take(n).collect::<Vec<u32>>();
        let rows = match rows {
            0 => Rows::Tiled { bq: take(1)[0] },
            1 => Rows::Lists { plane_ptr: take(3), q_ptr: take(5), q_idx: take(6) },
            _ => Rows::Ranges { plane_ptr: take(3), q_start: take(4), q_len: take(4) },
        };
        let [bk, origin] = [take(1)[0], take(1)[0]];
        let entries = match entries {
            0 => Entries::Blocks { bk, origin, row_ptr: take(5), col: take(6) },
            1 => Entries::Bits { bk, origin, words: take(4) },
            2 => Entries::Ranges { row_ptr: take(5), ranges: take(6).into_iter().map(|x| [x, x / 2]).collect() },
            _ => Entries::Tokens { row_ptr: take(5), k_idx: take(6) },
        };
        let [batch, heads, heads_kv, queries, keys] = sizes;
        let mut shape = PlanShape::new(batch, heads, heads_kv, queries, keys);
        shape.q_off = q_off;
        let mut plan = SparsePlan::new(shape, Share::PerHead, causal, vec![Part::new(rows, entries)]);
        plan.near = Near { sink: take(1)[0], window: take(1)[0], grow: true };
        plan.max_dist = take(1).pop();
        if lse {
            plan.combine = Combine::Lse;
        }
        plan.keys_of(0, 0, 0);
        plan.groups_of(batch, heads, queries);
        let _ = plan.to_dense_mask(0, 0);
        let _ = plan.stats(Default::default());
        match plan.canonicalise() {
            Ok(canonical) => prop_assert_eq!(canonical.validate(), Ok(())),
            Err(error) => prop_assert_eq!(plan.check(), Err(error)),
        }
    }
}
