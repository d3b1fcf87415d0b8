//! Speed of plans against dense attention. Run by hand.
mod common;
use attn_core::dense::Config;
use attn_core::plan::*;
use attn_core::testing::{HostInputs, Values, bits};
use attn_core::{AttentionShape, Mask};
use attn_wgpu::attention::Attention;
use attn_wgpu::plan::{DevicePlan, PlanAttention};
use common::{Uploaded, gpu};

fn cpu() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

#[test]
#[ignore]
fn speed() {
    let Some(gpu) = gpu() else { return };
    let n: usize = std::env::var("N").map_or(8192, |n| n.parse().unwrap());
    let shape = AttentionShape {
        batch: 1,
        heads: 9,
        heads_kv: 3,
        queries: n,
        keys: n,
        dim_qk: 64,
        dim_v: 64,
    };
    let inputs = HostInputs::random(shape, 1, Values::Normal);
    let up = Uploaded::new(&gpu, &inputs).unwrap();
    let config = Config::new().with_mask(Mask::Causal);
    let time = |f: &dyn Fn()| {
        let c0 = cpu();
        f();
        let first = cpu() - c0;
        let (t0, c0) = (std::time::Instant::now(), cpu());
        f();
        (first, t0.elapsed().as_secs_f64(), cpu() - c0)
    };
    let dense = Attention::new(&gpu, config.clone()).unwrap();
    let (first, dense_wall, dense_cpu) = time(&|| {
        dense.forward(up.view()).unwrap();
        gpu.sync().unwrap();
    });
    println!("dense first cpu {first:.2} wall {dense_wall:.3} cpu {dense_cpu:.3}");
    let attention = PlanAttention::new(&gpu, config.clone()).unwrap();
    let pshape = PlanShape::from(&shape);
    let causal_pairs = 9.0 * n as f64 * (n as f64 + 1.0) / 2.0;
    let blocks = |bq: u32, bk: u32, share: Share, percent: u64| {
        let heads = if share == Share::PerHead { 9 } else { 3 };
        let (mut row_ptr, mut col) = (vec![0u32], Vec::new());
        for g in 0..heads * n.div_ceil(bq as usize) {
            let tile = g % n.div_ceil(bq as usize);
            let last = ((tile + 1) * bq as usize).min(n) - 1;
            for j in 0..=(last / bk as usize) as u32 {
                let own = j == (last / bk as usize) as u32;
                if own || bits(5, g as u64, u64::from(j)) % 100 < percent {
                    col.push(j);
                }
            }
            row_ptr.push(col.len() as u32);
        }
        let executed =
            col.len() as f64 * f64::from(bq * bk) * if share == Share::PerHead { 1.0 } else { 3.0 };
        let part = Part::new(Rows::Tiled { bq }, Entries::Blocks { bk, origin: 0, row_ptr, col });
        (SparsePlan::new(pshape, share, true, vec![part]), executed)
    };
    let only = std::env::var("ONLY").unwrap_or_default();
    for (name, bq, bk, share, percent, convert) in [
        ("blocks 64 full", 64, 64, Share::PerHead, 100, 0),
        ("blocks 64 25%", 64, 64, Share::PerHead, 25, 0),
        ("bits 64 25%", 64, 64, Share::PerHead, 25, 1),
        ("blocks 32 25%", 32, 32, Share::PerHead, 25, 0),
        ("blocks 2 25% bq64", 64, 2, Share::PerHead, 25, 0),
        ("tokens 25% bq64", 64, 1, Share::PerHead, 25, 2),
        ("tokens 6% bq64", 64, 1, Share::PerHead, 6, 2),
        ("tokens 6% bq64 kv", 64, 1, Share::PerKvHead, 6, 2),
        ("tokens 3% bq8", 8, 1, Share::PerHead, 3, 2),
        ("blocks 64 25% kv", 64, 64, Share::PerKvHead, 25, 0),
    ] {
        if !name.contains(&only) {
            continue;
        }
        let (mut plan, executed) = blocks(bq, bk, share, percent);
        let entries = std::mem::replace(
            &mut plan.parts[0].entries,
            Entries::Tokens { row_ptr: vec![], k_idx: vec![] },
        );
        let Entries::Blocks { row_ptr, col, .. } = entries.clone() else { panic!() };
        plan.parts[0].entries = match convert {
            2 => Entries::Tokens { row_ptr, k_idx: col },
            1 => {
                let width = n.div_ceil(64).div_ceil(32);
                let mut words = vec![0u32; (row_ptr.len() - 1) * width];
                for g in 0..row_ptr.len() - 1 {
                    for &j in &col[row_ptr[g] as usize..row_ptr[g + 1] as usize] {
                        words[g * width + j as usize / 32] |= 1 << (j % 32);
                    }
                }
                Entries::Bits { bk, origin: 0, words }
            }
            _ => entries,
        };
        let plan = DevicePlan::upload(&gpu, &plan).unwrap();
        let (first, wall, cpu) = time(&|| {
            attention.forward(up.view(), &plan).unwrap();
            gpu.sync().unwrap();
        });
        let density = executed / causal_pairs;
        println!(
            "{name}: executed density {density:.3} first {first:.2} wall {wall:.3} cpu {cpu:.3} efficiency cpu {:.2} wall {:.2}",
            dense_cpu / cpu * density,
            dense_wall / wall * density
        );
        if std::env::var("PROFILE").is_ok() {
            let (_, profile) = gpu.profile(|| attention.forward(up.view(), &plan)).unwrap();
            for time in &profile.kernels {
                println!("   {:?}", time);
            }
        }
    }
}
