//! Small models whose matrices are blocks of every type that is read, with random contents.

use half::f16;

use super::write::{Gguf, f32_bytes};

/// Numbers of the types in GGUF.
pub const F32: u32 = 0;
pub const F16: u32 = 1;
pub const Q4_0: u32 = 2;
pub const Q4_1: u32 = 3;
pub const Q5_0: u32 = 6;
pub const Q5_1: u32 = 7;
pub const Q8_0: u32 = 8;
pub const Q4_K: u32 = 12;
pub const Q5_K: u32 = 13;
pub const Q6_K: u32 = 14;

const HIDDEN: usize = 256;
const MLP: usize = 512;
const VOCABULARY: usize = 96;
const HEADS: usize = 4;
const HEADS_KV: usize = 2;
const HEAD_DIM: usize = 64;

/// Types of embedding, queries, keys, values, output, gate, up and down in two layers, and of the head:
/// neighbours that share one, neighbours that do not, and types that are unpacked at load beside others.
const EMBEDDING: u32 = Q6_K;
const LAYERS: [[u32; 7]; 2] =
    [[Q4_K, Q4_K, Q6_K, Q4_0, Q4_1, Q5_K, Q6_K], [Q8_0, Q5_1, Q8_0, Q4_K, Q8_0, Q8_0, Q5_0]];
const HEAD: u32 = Q4_1;

/// A model of architecture `llama`, tied and without biases, or of `qwen2`, with a head and biases.
pub fn model(arch: &str) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut gguf = Gguf::default();
    let key = |name: &str| format!("{arch}.{name}");
    gguf.string("general.architecture", arch);
    for (name, value) in [
        ("block_count", LAYERS.len()),
        ("context_length", 512),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", MLP),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", HEADS_KV),
    ] {
        gguf.u32(&key(name), value as u32);
    }
    gguf.f32(&key("attention.layer_norm_rms_epsilon"), 1e-5);
    gguf.f32(&key("rope.freq_base"), 1e4);
    let (all, all_kv) = (HEADS * HEAD_DIM, HEADS_KV * HEAD_DIM);
    let mut matrix = |gguf: &mut Gguf, name: &str, rows: usize, width: usize, kind: u32| {
        let bytes = blocks(&mut random, kind, rows * width, (width as f32).powf(-0.5));
        gguf.tensor(&format!("{name}.weight"), &[rows, width], kind, &bytes);
    };
    let vector = |gguf: &mut Gguf, name: &str, len: usize, middle: f32| {
        let values: Vec<f32> =
            (0..len).map(|i| middle + ((i * 37 % 64) as f32 - 32.0) / 256.0).collect();
        gguf.tensor(name, &[len], F32, &f32_bytes(&values));
    };
    matrix(&mut gguf, "token_embd", VOCABULARY, HIDDEN, EMBEDDING);
    vector(&mut gguf, "output_norm.weight", HIDDEN, 1.0);
    if arch == "qwen2" {
        matrix(&mut gguf, "output", VOCABULARY, HIDDEN, HEAD);
    }
    for (layer, kinds) in LAYERS.into_iter().enumerate() {
        let name = |name: &str| format!("blk.{layer}.{name}");
        vector(&mut gguf, &name("attn_norm.weight"), HIDDEN, 1.0);
        vector(&mut gguf, &name("ffn_norm.weight"), HIDDEN, 1.0);
        let shapes = [
            ("attn_q", all, HIDDEN),
            ("attn_k", all_kv, HIDDEN),
            ("attn_v", all_kv, HIDDEN),
            ("attn_output", HIDDEN, all),
            ("ffn_gate", MLP, HIDDEN),
            ("ffn_up", MLP, HIDDEN),
            ("ffn_down", HIDDEN, MLP),
        ];
        for (&(part, rows, width), kind) in shapes.iter().zip(kinds) {
            matrix(&mut gguf, &name(part), rows, width, kind);
        }
        if arch == "qwen2" {
            for (part, rows, _) in &shapes[..3] {
                vector(&mut gguf, &name(&format!("{part}.bias")), *rows, 0.0);
            }
        }
    }
    gguf.bytes()
}

/// Blocks of random numbers, which stand for values of about this size on both sides of 0.
pub fn blocks(random: &mut fastrand::Rng, kind: u32, values: usize, size: f32) -> Vec<u8> {
    // Values of a block, its bytes, the numbers that each value is a multiple of the scale by, and where
    // its scale and its minimum are.
    let (count, bytes, spread, scale, least) = match kind {
        Q4_0 => (32, 18, 4.6, 0, None),
        Q4_1 => (32, 20, 4.6, 0, Some((2, -7.5))),
        Q5_0 => (32, 22, 9.2, 0, None),
        Q5_1 => (32, 24, 9.2, 0, Some((2, -15.5))),
        Q8_0 => (32, 34, 74.0, 0, None),
        Q4_K => (256, 144, 260.0, 0, Some((2, 7.5))),
        Q5_K => (256, 176, 530.0, 0, Some((2, 15.5))),
        Q6_K => (256, 210, 1370.0, 208, None),
        _ => panic!("type {kind}"),
    };
    let mut all = Vec::new();
    for _ in 0..values / count {
        let start = all.len();
        all.extend((0..bytes).map(|_| random.u8(..)));
        let own = size / spread * (0.75 + 0.5 * random.f32());
        let mut put = |at: usize, value: f32| {
            all[start + at..start + at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
        };
        put(scale, own);
        if let Some((at, factor)) = least {
            put(at, own * factor);
        }
    }
    all
}
