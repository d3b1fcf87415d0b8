//! Plans whose rows were chosen on the device, against the same plans from the host.

mod common;

use attn_core::plan::{Combine, Entries, Part, PlanShape, Rows, Share, SparsePlan};
use attn_core::testing::{HostInputs, bits};
use attn_wgpu::plan::{DeviceEntries, DevicePart, DevicePlan, DeviceRows, PlanAttention, Region};
use attn_wgpu::select::{Wanted, gather_lists, top_k_rows};
use attn_wgpu::{Gpu, Tensor, ops};
use common::plans::{blocks, config, gradients, gradients_with, judge, judge_gradients, run};
use common::{Result32, Uploaded, cotangents, gpu, normal, shape};

/// Results and gradients under a plan on the device and under the same from the host: bit for bit, where
/// both are known to take the same kernels.
fn same(
    gpu: &Gpu,
    inputs: &HostInputs,
    device: &DevicePlan,
    plan: &SparsePlan,
    exactly: bool,
) -> Result<(), String> {
    assert_eq!(device.download().unwrap(), *plan);
    let config = config(plan);
    let attention = PlanAttention::new(gpu, config.clone()).unwrap();
    let uploaded = Uploaded::new(gpu, inputs).unwrap();
    let output = attention.forward(uploaded.view(), device).unwrap();
    let (out, lse) = (output.out.to_vec().unwrap(), output.lse.to_vec().unwrap());
    let result = Result32 { out, lse };
    judge(inputs, plan, &config, &result)?;
    let (d_out, _) = cotangents(&inputs.shape, 1);
    let got = gradients_with(&attention, gpu, inputs, device, (&d_out, None));
    judge_gradients(inputs, plan, &config, (&d_out, None), &got)?;
    if exactly {
        assert!(result == run(gpu, inputs, plan, &config));
        assert!(got == gradients(gpu, inputs, plan, &config, (&d_out, None)));
    }
    Ok(())
}

fn write(part: &DevicePart, region: Region, words: &Tensor) {
    let target = part.region(region).unwrap();
    ops::copy(words, &target.narrow(0, 0, words.len()).unwrap()).unwrap();
}

/// Tokens by cluster, each attending to its own, as k-means routing has it; some tokens are in none.
#[test]
fn clusters_of_tokens() {
    let Some(gpu) = gpu() else { return };
    for (n, clusters) in [(67, 5), (200, 3), (40, 60)] {
        let inputs = normal(shape([2, 2, 2, n, n, 16, 16]), 1);
        let extents = PlanShape::from(&inputs.shape);
        let planes = 4;
        let class = |i: usize| (bits(3, 1, i as u64) % (clusters as u64 + 1)) as u32;
        let classes: Vec<u32> = (0..planes * n).map(class).collect();
        let classes = Tensor::from_slice(&gpu, &classes, &[planes, n]).unwrap();
        let lists = gather_lists(&classes, clusters).unwrap();

        let plane_ptr: Vec<u32> = (0..=planes).map(|plane| (plane * clusters) as u32).collect();
        let rows = DeviceRows::Lists { plane_ptr: plane_ptr.clone().into(), queries: planes * n };
        let groups = planes * clusters;
        let part =
            DevicePart::new(&gpu, rows, DeviceEntries::Tokens, groups, planes * n, false).unwrap();
        write(&part, Region::QPtr, &lists.offsets);
        write(&part, Region::RowPtr, &lists.offsets);
        write(&part, Region::QIdx, &lists.positions);
        write(&part, Region::Data, &lists.positions);
        let device = DevicePlan::new(extents, Share::PerHead, false, part.clone()).unwrap();

        let q_ptr = lists.offsets.to_vec::<u32>().unwrap();
        let most = q_ptr.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap() as usize;
        let bounded = part.with_most(most, most);
        let bounded = DevicePlan::new(extents, Share::PerHead, false, bounded).unwrap();
        let mut q_idx = lists.positions.to_vec::<u32>().unwrap();
        q_idx.truncate(q_ptr[groups] as usize);
        let entries = Entries::Tokens { row_ptr: q_ptr.clone(), k_idx: q_idx.clone() };
        let part = Part::new(Rows::Lists { plane_ptr, q_ptr, q_idx }, entries);
        let plan = SparsePlan::new(extents, Share::PerHead, false, vec![part]);
        same(&gpu, &inputs, &device, &plan, false).unwrap();
        same(&gpu, &inputs, &bounded, &plan, true).unwrap();
    }
}

/// The best queries of every cluster, and a tiled part beside them: queries in several groups.
#[test]
fn the_best_queries_of_clusters() {
    let Some(gpu) = gpu() else { return };
    let (n, clusters, most, planes) = (70, 6, 20, 2);
    let inputs = normal(shape([1, 4, 2, n, n, 16, 16]), 2);
    let extents = PlanShape::from(&inputs.shape);
    let scores = normal(shape([1, 1, 1, planes * clusters, 1, n, 1]), 3).q;
    let scores = Tensor::from_slice(&gpu, &scores, &[planes * clusters, n]).unwrap();
    let chosen = top_k_rows(&scores, Wanted::Same(most), most).unwrap().indices;
    let groups = planes * clusters;
    let ptr: Vec<u32> = (0..=groups).map(|group| (group * most) as u32).collect();
    let plane_ptr = vec![0, clusters as u32, 2 * clusters as u32];
    let indices = chosen.reshape(&[groups * most]).unwrap();
    for rows_are_ranges in [false, true] {
        let starts: Vec<u32> = (0..groups).map(|group| 9 * group as u32 % 40).collect();
        let lens: Vec<u32> = (0..groups).map(|group| 5 + group as u32 % 7).collect();
        let plane_words: std::sync::Arc<[u32]> = plane_ptr.clone().into();
        let rows = match rows_are_ranges {
            true => DeviceRows::Ranges { plane_ptr: plane_words },
            false => DeviceRows::Lists { plane_ptr: plane_words, queries: groups * most },
        };
        let up = |words: &[u32]| Tensor::from_slice(&gpu, words, &[words.len()]).unwrap();
        let listed =
            DevicePart::new(&gpu, rows, DeviceEntries::Tokens, groups, groups * most, false)
                .unwrap();
        write(&listed, Region::RowPtr, &up(&ptr));
        write(&listed, Region::Data, &indices);
        if rows_are_ranges {
            write(&listed, Region::QStart, &up(&starts));
            write(&listed, Region::QLen, &up(&lens));
        } else {
            write(&listed, Region::QPtr, &up(&ptr));
            write(&listed, Region::QIdx, &indices);
        }
        let k_idx = indices.to_vec::<u32>().unwrap();
        let rows = match rows_are_ranges {
            true => Rows::Ranges { plane_ptr: plane_ptr.clone(), q_start: starts, q_len: lens },
            false => Rows::Lists {
                plane_ptr: plane_ptr.clone(),
                q_ptr: ptr.clone(),
                q_idx: k_idx.clone(),
            },
        };
        let own = Part::new(rows, Entries::Tokens { row_ptr: ptr.clone(), k_idx });
        let tiles = blocks(extents, Share::PerKvHead, false, [16, 8], 30);
        let tiled = DevicePlan::upload(&gpu, &tiles).unwrap().parts()[0].clone();
        for combine in [Combine::Lse, Combine::Mean] {
            let parts = vec![own.clone(), tiles.parts[0].clone()];
            let plan = SparsePlan::new(extents, Share::PerKvHead, false, parts)
                .with_combine(combine.clone());
            let parts = vec![listed.clone(), tiled.clone()];
            let device =
                DevicePlan::from_parts(extents, Share::PerKvHead, false, parts, combine).unwrap();
            same(&gpu, &inputs, &device, &plan, rows_are_ranges).unwrap();
        }
    }
}

#[test]
fn wrong_parts() {
    let Some(gpu) = gpu() else { return };
    let extents = PlanShape::new(1, 2, 2, 9, 9);
    let part = |plane_ptr: Vec<u32>, groups| {
        let rows = DeviceRows::Lists { plane_ptr: plane_ptr.into(), queries: 9 };
        DevicePart::new(&gpu, rows, DeviceEntries::Tokens, groups, 4, false).unwrap()
    };
    let refused = |parts, combine, arg: &str| {
        let plan = DevicePlan::from_parts(extents, Share::PerHead, false, parts, combine);
        let message = plan.unwrap_err().to_string();
        assert!(message.contains(arg), "{arg}: {message}");
    };
    refused(vec![part(vec![0, 2], 2)], Combine::Single, "plane_ptr");
    refused(vec![part(vec![0, 3, 2], 2)], Combine::Single, "plane_ptr");
    refused(vec![part(vec![0, 1, 1], 2)], Combine::Single, "plane_ptr");
    refused(Vec::new(), Combine::Single, "parts");
    refused(vec![part(vec![0, 1, 2], 2)], Combine::Gate(vec![None]), "combine");
}
