//! Rotary embedding, rows of a table, and the cache of keys and values.

mod common;

use attn_core::testing::{Values, fill};
use attn_wgpu::cache::KvCache;
use attn_wgpu::embedding::{gather_rows, gather_rows_into};
use attn_wgpu::rope::{Layout, Llama3, Rope, RopeTable, Yarn};
use attn_wgpu::{DType, Error, Gpu, Tensor, wgpu};
use common::rows::{bits, close, floats, round};
use common::{cases, download, gpu, open, upload};
use proptest::prelude::*;

/// Each frequency against numbers computed with 40 decimal digits by another program.
#[test]
fn frequencies() {
    let close = |rope: &Rope, want: &[(usize, f64)]| {
        for &(i, want) in want {
            let got = rope.frequencies[i];
            assert!((got / want - 1.0).abs() < 1e-12, "{i}: {got} {want}");
        }
    };
    let plain = Rope::new(64, 1e5).unwrap();
    close(&plain, &[(0, 1.0), PLAIN_1, PLAIN_31]);
    close(&Rope::linear(64, 1e5, 8.0).unwrap(), &[(0, 0.125), (31, PLAIN_31.1 / 8.0)]);
    let scaling = Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_length: 8192.0,
    };
    close(&Rope::llama3(64, 5e5, &scaling).unwrap(), &LLAMA3);
    let scaling = Yarn {
        factor: 4.0,
        original_length: 32_768.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: None,
    };
    let yarn = Rope::yarn(128, 1e6, &scaling).unwrap();
    close(&yarn, &YARN);
    assert!((yarn.attention_factor - 1.138_629_436_111_989).abs() < 1e-12);
    let given = Yarn { attention_factor: Some(1.5), ..scaling };
    assert_eq!(Rope::yarn(128, 1e6, &given).unwrap().attention_factor, 1.5);
}

const PLAIN_1: (usize, f64) = (1, 0.6978305848598664);
const PLAIN_31: (usize, f64) = (31, 1.4330125702369627e-05);
const LLAMA3: [(usize, f64); 7] = [
    (0, 1.0),
    (10, 0.016560440080994446),
    (13, 0.004839421345719893),
    (15, 0.0012905479282092638),
    (17, 9.708287802627673e-05),
    (20, 8.570255489881478e-06),
    (31, 9.41830672543491e-08),
];
const YARN: [(usize, f64); 10] = [
    (0, 1.0),
    (20, 0.01333521432163324),
    (23, 0.006978305848598663),
    (24, 0.005375321490790102),
    (30, 0.0010643609812470017),
    (35, 0.0002462584069089387),
    (39, 6.490394320837029e-05),
    (40, 4.445698525097307e-05),
    (41, 3.582531425592407e-05),
    (63, 3.102344401879299e-07),
];

fn rotate(rope: &Rope, head: &[f32], position: u32) -> Vec<f64> {
    let mut out: Vec<f64> = head.iter().map(|&x| f64::from(x)).collect();
    let pairs = rope.frequencies.len();
    for (i, frequency) in rope.frequencies.iter().enumerate() {
        let (a, b) = match rope.layout {
            Layout::Interleaved => (2 * i, 2 * i + 1),
            _ => (i, i + pairs),
        };
        let (sin, cos) = (f64::from(position) * frequency).sin_cos();
        let (x, y) = (f64::from(head[a]), f64::from(head[b]));
        out[a] = (x * cos - y * sin) * rope.attention_factor;
        out[b] = (y * cos + x * sin) * rope.attention_factor;
    }
    out
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn rotation_is_that_of_f64(
        batch in 1usize..3, heads in 1usize..4, tokens in 1usize..9,
        pairs in prop_oneof![1usize..9, Just(16), Just(32)], rest in 0usize..10,
        interleaved in any::<bool>(), own in any::<bool>(), dtype in floats(), seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let dim = 2 * pairs + rest;
        let mut rope = Rope::new(2 * pairs, 1e4).unwrap();
        rope.attention_factor = 1.25;
        let layout = if interleaved { Layout::Interleaved } else { Layout::Half };
        let rope = rope.with_layout(layout);
        let table = RopeTable::new(&gpu, rope.clone(), 5000).unwrap();
        table.reserve(3000).unwrap();
        prop_assert_eq!(table.positions(), 4096);
        let count = if own { batch * tokens } else { tokens };
        let positions: Vec<u32> = (0..count).map(|i| (seed >> (i % 50)) as u32 % 3000).collect();
        let shape = if own { vec![batch, tokens] } else { vec![tokens] };
        let ids = Tensor::from_slice(&gpu, &positions, &shape).unwrap();
        // [B, N, H, D] in memory.
        let data = round(&fill(seed, 0, Values::Normal, batch * tokens * heads * dim), dtype);
        let x = upload(&gpu, &data, &[batch, tokens, heads, dim], dtype).unwrap();
        let x = x.permute(&[0, 2, 1, 3]).unwrap();
        let got = table.apply(&x, &ids).unwrap();
        let mut want = Vec::new();
        for b in 0..batch {
            for h in 0..heads {
                for n in 0..tokens {
                    let at = ((b * tokens + n) * heads + h) * dim;
                    let position = positions[if own { b * tokens + n } else { n }];
                    want.extend(rotate(&rope, &data[at..at + dim], position));
                }
            }
        }
        close("rope", &got, &want, 1e-6, 1e-6)?;
        // Where nothing rotates, nothing changes.
        let passed = got.narrow(3, 2 * pairs, rest).unwrap();
        prop_assert_eq!(bits(&passed), bits(&x.narrow(3, 2 * pairs, rest).unwrap()));
        // Into a cache, and one token alone.
        let mut cache = KvCache::new(&gpu, batch, heads, dim, 4, DType::F32, 2).unwrap();
        let (slot, _) = cache.slot(tokens).unwrap();
        table.apply_into(&x, &ids, &slot).unwrap();
        close("slot", &cache.keys().unwrap(), &want, 1e-6, 1e-6)?;
        let alone = x.narrow(2, tokens - 1, 1).unwrap();
        let ids = ids.narrow(shape.len() - 1, tokens - 1, 1).unwrap();
        let alone = table.apply(&alone, &ids).unwrap();
        prop_assert_eq!(bits(&alone), bits(&got.narrow(2, tokens - 1, 1).unwrap()));
    }

    #[test]
    fn rows_of_a_table(
        rows in 1usize..40, width in 1usize..20, count in 0usize..30,
        source in floats(), target in floats(), seed in any::<u64>(),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let data = round(&fill(seed, 0, Values::Normal, rows * width), source);
        let table = upload(&gpu, &data, &[rows, width], source).unwrap();
        let ids: Vec<u32> = (0..2 * count)
            .map(|i| match (seed >> (i % 50)) as u32 % (rows as u32 + 2) {
                id if id > rows as u32 => u32::MAX,
                id => id,
            })
            .collect();
        let numbers = Tensor::from_slice(&gpu, &ids, &[2, count]).unwrap();
        let got = gather_rows(&table, &numbers, 3.0, target).unwrap();
        prop_assert_eq!(got.shape(), [2, count, width]);
        check_rows(&got, &data, &ids, width)?;
        let wide = Tensor::uninit(&gpu, &[2, count + 1, width.next_multiple_of(4)], target).unwrap();
        let out = wide.narrow(1, 0, count).unwrap().narrow(2, 0, width).unwrap();
        if width.is_multiple_of(4) || target == DType::F32 {
            gather_rows_into(&table, &numbers, 3.0, &out).unwrap();
            check_rows(&out, &data, &ids, width)?;
        }
    }

    /// Appends, slots, truncations and forks against vectors on the host.
    #[test]
    fn caches_hold_what_was_appended(
        batch in 1usize..3, heads in 1usize..3, dim_k in 1usize..10, dim_v in 1usize..10,
        dtype in floats(), source in floats(), capacity in 0usize..6,
        steps in prop::collection::vec((0usize..4, 0usize..3, any::<u64>()), 1..12),
    ) {
        let Some(gpu) = gpu() else { return Ok(()) };
        let cache = KvCache::new(&gpu, batch, heads, dim_k, dim_v, dtype, capacity).unwrap();
        // Each fork with the tokens it should hold, as their seeds.
        let mut forks = vec![(cache, Vec::<u64>::new())];
        let tokens_of = |seeds: &[u64], dim: usize, stream: u64| -> Vec<f32> {
            let planes = batch * heads;
            let of = |plane: usize| {
                seeds.iter().flat_map(move |&seed| fill(seed, stream + 2 * plane as u64, Values::Normal, dim))
            };
            round(&(0..planes).flat_map(of).collect::<Vec<f32>>(), source)
        };
        for (action, which, seed) in steps {
            let which = which % forks.len();
            match action {
                0 | 1 => {
                    let seeds: Vec<u64> = (0..seed % 5).map(|i| seed.wrapping_add(i)).collect();
                    let tensor = |dim, stream| {
                        let shape = [batch, heads, seeds.len(), dim];
                        upload(&gpu, &tokens_of(&seeds, dim, stream), &shape, source).unwrap()
                    };
                    let (cache, held) = &mut forks[which];
                    cache.append(&tensor(dim_k, 0), &tensor(dim_v, 1)).unwrap();
                    held.extend(seeds);
                }
                2 => {
                    let (cache, held) = &mut forks[which];
                    held.truncate(seed as usize % (held.len() + 1));
                    cache.truncate(held.len()).unwrap();
                }
                _ => {
                    let fork = (forks[which].0.fork(), forks[which].1.clone());
                    forks.push(fork);
                }
            }
        }
        for (cache, held) in &forks {
            prop_assert_eq!(cache.len(), held.len());
            prop_assert!(cache.capacity() >= cache.len());
            for (got, dim, stream) in
                [(cache.keys().unwrap(), dim_k, 0), (cache.values().unwrap(), dim_v, 1)]
            {
                prop_assert_eq!(got.shape(), [batch, heads, held.len(), dim]);
                let want = round(&tokens_of(held, dim, stream), dtype);
                prop_assert_eq!(download(&got).unwrap(), want);
            }
        }
    }
}

/// Rows by number times 3, NaN where there is no such row.
fn check_rows(got: &Tensor, data: &[f32], ids: &[u32], width: usize) -> Result<(), TestCaseError> {
    let values = download(got).unwrap();
    for (row, &id) in values.chunks(width).zip(ids) {
        for (i, &x) in row.iter().enumerate() {
            match data.get((id as usize).saturating_mul(width) + i) {
                None => prop_assert!(x.is_nan(), "{id}: {x}"),
                Some(&want) => prop_assert_eq!(x, round(&[3.0 * want], got.dtype())[0]),
            }
        }
    }
    Ok(())
}

#[test]
fn tables_over_the_binding_limit() {
    if gpu().is_none() {
        return;
    }
    let limits = wgpu::Limits { max_storage_buffer_binding_size: 4096, ..wgpu::Limits::default() };
    let Some(small) = open(Gpu::builder().limits(limits)) else { return };
    let (rows, width) = (301, 20);
    let data = fill(5, 0, Values::Normal, rows * width);
    let table = Tensor::from_slice(&small, &data, &[rows, width]).unwrap();
    let ids: Vec<u32> = (0..350).map(|i| i * 7 % 305).collect();
    let numbers = Tensor::from_slice(&small, &ids, &[350]).unwrap();
    let got = gather_rows(&table, &numbers, 3.0, DType::F32).unwrap();
    check_rows(&got, &data, &ids, width).unwrap();

    let rope = RopeTable::new(&small, Rope::new(8, 1e4).unwrap(), 100).unwrap();
    rope.reserve(70).unwrap();
    let data = fill(5, 1, Values::Normal, 3 * 70 * 20);
    let x = Tensor::from_slice(&small, &data, &[1, 3, 70, 20]).unwrap();
    let positions: Vec<u32> = (0..70).collect();
    let positions = Tensor::from_slice(&small, &positions, &[70]).unwrap();
    let got = rope.apply(&x, &positions).unwrap();
    let want: Vec<f64> = data
        .chunks(20)
        .enumerate()
        .flat_map(|(i, head)| rotate(rope.rope(), head, (i % 70) as u32))
        .collect();
    close("rope in parts", &got, &want, 1e-6, 1e-6).unwrap();

    let mut cache = KvCache::new(&small, 1, 3, 20, 20, DType::F32, 8).unwrap();
    cache.append(&x, &x).unwrap();
    cache.append(&x, &x).unwrap();
    let keys = cache.keys().unwrap();
    assert_eq!(bits(&keys.narrow(2, 70, 70).unwrap()), bits(&x));
    assert_eq!(bits(&keys.narrow(2, 0, 70).unwrap()), bits(&x));
}

#[test]
fn positions_beyond_the_table_are_nan() {
    let Some(gpu) = gpu() else { return };
    let table = RopeTable::new(&gpu, Rope::new(4, 1e4).unwrap(), 100).unwrap();
    let x = Tensor::full(&gpu, &[1, 1, 3, 6], 1f32).unwrap();
    let ids = Tensor::from_slice(&gpu, &[0u32, 99, u32::MAX], &[3]).unwrap();
    let nan = |tensor: &Tensor| -> Vec<bool> {
        tensor
            .to_vec::<f32>()
            .unwrap()
            .chunks(6)
            .map(|row| row.iter().all(|x| x.is_nan()))
            .collect()
    };
    assert_eq!(nan(&table.apply(&x, &ids).unwrap()), [true, true, true]);
    table.reserve(1).unwrap();
    assert_eq!(nan(&table.apply(&x, &ids).unwrap()), [false, true, true]);
    table.clone().reserve(65).unwrap();
    assert_eq!(table.positions(), 100);
    assert_eq!(nan(&table.apply(&x, &ids).unwrap()), [false, false, true]);
    assert!(matches!(table.reserve(101), Err(Error::Core(_))));
}

#[test]
fn wrong_calls_are_refused() {
    let Some(gpu) = gpu() else { return };
    let x = Tensor::zeros(&gpu, &[1, 2, 3, 8], DType::F32).unwrap();
    let ids = Tensor::zeros(&gpu, &[3], DType::U32).unwrap();
    let short = Tensor::zeros(&gpu, &[2], DType::U32).unwrap();
    let table = RopeTable::new(&gpu, Rope::new(8, 1e4).unwrap(), 10).unwrap();
    let wide = RopeTable::new(&gpu, Rope::new(10, 1e4).unwrap(), 10).unwrap();
    let mut cache = KvCache::new(&gpu, 1, 2, 8, 8, DType::F16, 0).unwrap();
    let flat = x.reshape(&[6, 8]).unwrap();
    for (arg, result) in [
        ("positions", table.apply(&x, &short)),
        ("positions", table.apply(&x, &flat)),
        ("x", wide.apply(&x, &ids)),
        ("x", table.apply(&flat, &ids)),
        ("out", table.apply_into(&x, &ids, &flat).map(|()| x.clone())),
        ("ids", gather_rows(&flat, &flat, 1.0, DType::F32)),
        ("table", gather_rows(&x, &ids, 1.0, DType::F32)),
        ("dtype", gather_rows(&flat, &ids, 1.0, DType::U32)),
        ("k", cache.append(&flat, &x).map(|()| x.clone())),
        ("v", cache.append(&x, &x.narrow(2, 0, 2).unwrap()).map(|()| x.clone())),
        ("len", cache.truncate(1).map(|()| x.clone())),
        ("dims", Rope::new(7, 1e4).map(|_| x.clone())),
        ("theta", Rope::new(8, f64::NAN).map(|_| x.clone())),
        ("factor", Rope::linear(8, 1e4, 0.0).map(|_| x.clone())),
    ] {
        match result {
            Err(Error::Core(error)) => {
                assert!(error.to_string().contains(&format!("`{arg}`")), "{error}")
            }
            other => panic!("{arg}: {other:?}"),
        }
    }
    assert!(cache.is_empty());
    cache.append(&x, &x).unwrap();
    assert_eq!((cache.len(), cache.dtype()), (3, DType::F16));
    assert_eq!(cache.bytes(), 2 * 2 * 16 * 8 * 2);
}
