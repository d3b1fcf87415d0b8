//! Devices: choice, limits, failures, memory, and work that has to be split.

mod common;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use attn_core::Mask;
use attn_wgpu::attention::{Attention, Heads, Inputs, Variant};
use attn_wgpu::settings::{KernelKind, Rule, Setting, Settings};
use attn_wgpu::{Clock, DType, DeviceKind, Error, Gpu, Tensor, wgpu};
use common::{Uploaded, attend, check, gpu, judge, masked, normal, open, shape};

/// The adapter that the shared device runs on, to open devices of one's own by hand.
fn adapter(gpu: &Gpu) -> wgpu::Adapter {
    // One for all tests: making them in several threads at once is not safe with every driver.
    static INSTANCE: OnceLock<wgpu::Instance> = OnceLock::new();
    let instance = INSTANCE.get_or_init(|| {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
        wgpu::Instance::new(descriptor)
    });
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let name = &gpu.adapter().name;
    adapters.into_iter().find(|adapter| adapter.get_info().name == *name).unwrap()
}

/// A device as an application opens it that knows nothing of this crate.
fn plain_device(gpu: &Gpu) -> (wgpu::Device, wgpu::Queue) {
    let request = wgpu::DeviceDescriptor::default();
    pollster::block_on(adapter(gpu).request_device(&request)).unwrap()
}

// gfx-rs/wgpu#361: no adapter is a panic; Michael-A-Kuykendall/shimmy#206, cubecl#210: the adapter
// cannot be chosen and is not told.
#[test]
fn adapters_are_chosen_by_index_or_name_and_told() {
    let Some(gpu) = gpu() else { return };
    let adapters = Gpu::adapters();
    assert!(adapters.iter().enumerate().all(|(i, adapter)| adapter.index == i));
    let part: String = gpu.adapter().name.chars().take(4).collect::<String>().to_uppercase();
    for wanted in [gpu.adapter().index.to_string(), part] {
        let chosen = Gpu::builder().adapter(&wanted).build().unwrap();
        assert_eq!(chosen.adapter(), gpu.adapter(), "{wanted}");
    }
    for wanted in ["999", "no such adapter"] {
        match Gpu::builder().adapter(wanted).build() {
            Err(Error::NoAdapter { wanted: Some(name), tried }) => {
                assert_eq!(name, wanted);
                assert_eq!(tried.len(), adapters.len());
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(
        Gpu::builder().backends(wgpu::Backends::empty()).build(),
        Err(Error::NoAdapter { .. })
    ));
}

// gfx-rs/wgpu#6203: tests meant for one adapter ran on another.
#[test]
fn an_adapter_that_was_not_expected_is_an_error() {
    let Some(gpu) = gpu() else { return };
    assert!(Gpu::builder().expect_adapter(gpu.adapter().name.to_lowercase()).build().is_ok());
    let other = Gpu::builder().expect_adapter("some other device").build();
    assert!(matches!(other, Err(Error::NoAdapter { wanted: Some(_), .. })), "{other:?}");
    let none = Gpu::builder().backends(wgpu::Backends::empty()).expect_adapter("any").build();
    assert!(matches!(none, Err(Error::NoAdapter { wanted: Some(_), .. })), "{none:?}");
}

// gfx-rs/wgpu#6221 and its kind: what WebGPU guarantees has to be enough; tracel-ai/burn#4530,
// cubecl#788, #834, cubek#119: kernels need more workgroup memory or invocations than there are.
#[test]
fn webgpu_default_limits_are_enough() {
    let Some(gpu) = open(Gpu::builder().webgpu_limits()) else { return };
    for (dim, n) in [(64, 65), (256, 17), (7, 130)] {
        check(&gpu, &normal(shape([1, 6, 2, n, n, dim, dim]), 1), &masked(Mask::Causal));
    }
    assert_eq!(gpu.device().limits().max_compute_workgroup_storage_size, 16 << 10);
    assert_eq!(gpu.capabilities().immediate_bytes, 0);
}

// ggml-org/llama.cpp#22492, #22199: without subgroups there must be a way too.
#[test]
fn every_optional_feature_can_be_done_without() {
    let all = ["subgroup", "f16", "immediates", "timestamps"];
    for off in all.map(|name| vec![name]).into_iter().chain([all.to_vec()]) {
        let builder = off.iter().fold(Gpu::builder(), |builder, name| builder.disable(name));
        let Some(gpu) = open(builder) else { return };
        let capabilities = gpu.capabilities();
        assert!(!off.contains(&"subgroup") || capabilities.subgroups.is_none());
        assert!(!off.contains(&"immediates") || capabilities.immediate_bytes == 0);
        assert!(!off.contains(&"timestamps") || !capabilities.timestamps);
        check(&gpu, &normal(shape([1, 3, 1, 65, 65, 64, 64]), 2), &masked(Mask::Causal));
        check(&gpu, &normal(shape([1, 3, 1, 5, 65, 40, 24]), 2), &masked(Mask::Full));
    }
}

// tracel-ai/burn#1788, cubecl#211, #355; software-mansion/smelter#2012: no way to share a device.
#[test]
fn a_callers_device_without_optional_features() {
    let Some(shared) = gpu() else { return };
    let (device, queue) = plain_device(&shared);
    let gpu = Gpu::from_wgpu(device.clone(), queue.clone());
    assert_eq!(gpu.capabilities().subgroups, None);
    check(&gpu, &normal(shape([1, 3, 1, 65, 65, 64, 64]), 3), &masked(Mask::Causal));

    // Results reach commands of the caller's own behind a flush.
    let inputs = normal(shape([1, 1, 1, 9, 9, 16, 16]), 4);
    let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
    let attention = Attention::new(&gpu, masked(Mask::Causal)).unwrap();
    let out = attention.forward(uploaded.view()).unwrap().out;
    gpu.flush().unwrap();
    let bytes = (out.len() * 4) as u64;
    let own = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: bytes,
        usage: wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    });
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    encoder.copy_buffer_to_buffer(out.buffer().0, out.buffer().1 as u64 * 4, &own, 0, bytes);
    queue.submit([encoder.finish()]);
    let copied = Tensor::from_buffer(&gpu, own, 0, out.shape(), out.strides(), DType::F32).unwrap();
    assert_eq!(copied.to_vec::<f32>().unwrap(), out.to_vec::<f32>().unwrap());
}

/// Features and limits that the crate asks for are offered to callers who open devices themselves.
#[test]
fn a_callers_device_with_everything_wanted() {
    let Some(shared) = gpu() else { return };
    let adapter = adapter(&shared);
    let (required_features, required_limits) = Gpu::wanted(&adapter);
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
        required_features,
        required_limits,
        ..wgpu::DeviceDescriptor::default()
    }))
    .unwrap();
    let gpu = Gpu::from_wgpu(device, queue);
    check(&gpu, &normal(shape([1, 3, 1, 65, 65, 64, 64]), 3), &masked(Mask::Causal));
}

/// The caller's handlers see what the caller did, and nothing of ours replaces them.
#[test]
fn a_callers_handlers_stay() {
    let Some(shared) = gpu() else { return };
    let (device, queue) = plain_device(&shared);
    let seen = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    device.on_uncaptured_error(Arc::new(move |_| {
        count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }));
    let gpu = Gpu::from_wgpu(device.clone(), queue);
    check(&gpu, &normal(shape([1, 1, 1, 5, 5, 16, 16]), 3), &masked(Mask::Causal));
    assert_eq!(seen.load(std::sync::atomic::Ordering::SeqCst), 0);
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::STORAGE;
    let bad = wgpu::BufferDescriptor { label: None, size: 4, usage, mapped_at_creation: false };
    let _ = device.create_buffer(&bad);
    assert_eq!(seen.load(std::sync::atomic::Ordering::SeqCst), 1);
}

// splat-transform#293, raspberrypi/linux#6660: a lost device has to come back as an error, and a
// new one has to work.
#[test]
fn a_device_destroyed_in_mid_run_is_an_error_for_ever_after() {
    let Some(shared) = gpu() else { return };
    for own in [true, false] {
        let gpu = match own {
            true => open(Gpu::builder()).unwrap(),
            false => {
                let (device, queue) = plain_device(&shared);
                Gpu::from_wgpu(device, queue)
            }
        };
        let inputs = normal(shape([1, 2, 1, 40, 40, 16, 16]), 5);
        let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
        let attention = Attention::new(&gpu, masked(Mask::Causal)).unwrap();
        attention.forward(uploaded.view()).unwrap();
        gpu.flush().unwrap();
        let recorded = attention.forward(uploaded.view()).unwrap();
        gpu.device().destroy();
        let lost = recorded.out.to_vec::<f32>();
        assert!(matches!(lost, Err(Error::DeviceLost { .. })), "own {own}: {lost:?}");
        let again = attention.forward(uploaded.view());
        assert!(matches!(again, Err(Error::DeviceLost { .. })), "own {own}: {again:?}");
        assert!(matches!(gpu.sync(), Err(Error::DeviceLost { .. })), "own {own}");
    }
    check(&shared, &normal(shape([1, 1, 1, 5, 5, 16, 16]), 3), &masked(Mask::Causal));
}

/// The budget refuses, names the figures, and leaves the device as it was.
#[test]
fn out_of_memory_is_an_error_and_leaves_the_device_healthy() {
    let budget = 8 << 20;
    let Some(gpu) = open(Gpu::builder().memory_budget(budget)) else { return };
    let kept = Tensor::full(&gpu, &[1 << 20], 1f32).unwrap();
    match Tensor::uninit(&gpu, &[2 << 20], DType::F32) {
        Err(Error::OutOfMemory { requested, in_use, budget: told }) => {
            assert_eq!((requested, told), (8 << 20, budget));
            assert_eq!(in_use, gpu.memory().in_use);
        }
        other => panic!("{other:?}"),
    }
    // Free memory that the pool keeps makes room.
    drop(Tensor::uninit(&gpu, &[1 << 18], DType::F32).unwrap());
    assert!(gpu.memory().cached > 0);
    let large = Tensor::uninit(&gpu, &[900 << 10], DType::F32).unwrap();
    drop((kept, large));
    check(&gpu, &normal(shape([1, 2, 1, 65, 65, 64, 64]), 6), &masked(Mask::Causal));
    assert!(gpu.memory().peak <= budget);
}

/// What stays takes no more than its elements, even where a larger buffer is free.
#[test]
fn resident_tensors_waste_nothing() {
    let Some(gpu) = open(Gpu::builder()) else { return };
    drop(Tensor::uninit(&gpu, &[80_000], DType::F16).unwrap());
    for (elements, dtype, bytes) in
        [(80_000, DType::F16, 160_000), (69_123, DType::F16, 138_256), (3, DType::F32, 16)]
    {
        let before = gpu.memory().in_use;
        let kept = Tensor::resident(&gpu, &[elements], dtype).unwrap();
        assert_eq!(Tensor::resident_bytes(elements, dtype), bytes);
        assert_eq!(gpu.memory().in_use - before, bytes, "{elements} of {}", dtype.name());
        assert_eq!(kept.shape(), [elements]);
    }
    assert!(Tensor::resident(&gpu, &[usize::MAX, 2], DType::F32).is_err());
    let huge = Tensor::resident(&gpu, &[usize::MAX / 4], DType::F32);
    assert!(matches!(huge, Err(Error::Limit { .. })), "{huge:?}");
}

#[test]
fn a_tensor_over_the_buffer_limit_is_refused_with_the_limit() {
    let Some(gpu) = gpu() else { return };
    let elements = gpu.capabilities().max_buffer_bytes / 4 + 1;
    let Ok(elements) = usize::try_from(elements) else { return };
    if gpu.memory().budget < elements as u64 * 4 {
        return;
    }
    match Tensor::uninit(&gpu, &[elements], DType::F32) {
        Err(Error::Limit { limit: "maxBufferSize", needed, .. }) => {
            assert_eq!(needed, elements as u64 * 4);
        }
        other => panic!("{other:?}"),
    }
    assert!(Tensor::uninit(&gpu, &[usize::MAX, 3], DType::F32).is_err());
}

// gfx-rs/wgpu#2337, #2929, microsoft/onnxruntime#25962: bindings over a limit fail although the
// memory is there.
#[test]
fn a_binding_limit_of_one_mebibyte() {
    let limits =
        wgpu::Limits { max_storage_buffer_binding_size: 1 << 20, ..wgpu::Limits::default() };
    let Some(gpu) = open(Gpu::builder().limits(limits)) else { return };
    assert_eq!(gpu.capabilities().max_binding_bytes, 1 << 20);
    // 2.2 MiB of queries, 0.6 MiB of keys in each of two heads; batch 2.
    let inputs = normal(shape([2, 4, 2, 2300, 2300, 64, 64]), 7);
    let small = normal(shape([2, 4, 2, 300, 300, 64, 64]), 7);
    check(&gpu, &small, &masked(Mask::Causal));
    let split = attend(&gpu, &inputs, &masked(Mask::Window { left: 20, right: 3 })).unwrap();
    judge("split", &inputs, &masked(Mask::Window { left: 20, right: 3 }), &split).unwrap();
    // Splitting changes no bit: every row is the work of one dispatch.
    let Some(whole) = open(Gpu::builder()) else { return };
    let whole = attend(&whole, &inputs, &masked(Mask::Window { left: 20, right: 3 })).unwrap();
    assert!(split.bits() == whole.bits());
    // Token-major layout: the window of one head spans the others, so it is refused with the limit
    // or packed; here all keys of a head exceed it.
    let inputs = normal(shape([1, 1, 1, 2, 4200, 64, 64]), 8);
    match attend(&gpu, &inputs, &masked(Mask::Full)) {
        Err(Error::Limit { limit: "maxStorageBufferBindingSize", needed, available, .. }) => {
            assert_eq!((needed, available), (4200 * 64 * 4, 1 << 20));
        }
        other => panic!("{:?}", other.map(|_| ())),
    }
}

/// Large tensors in token-major layout, whose heads interleave, are packed instead of refused.
#[test]
fn interleaved_heads_over_the_binding_limit_are_packed() {
    let limits =
        wgpu::Limits { max_storage_buffer_binding_size: 1 << 20, ..wgpu::Limits::default() };
    let Some(gpu) = open(Gpu::builder().limits(limits)) else { return };
    let inputs = normal(shape([1, 4, 4, 1500, 1500, 64, 64]), 9);
    let config = masked(Mask::Window { left: 9, right: 0 });
    let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
    let token_major = |tensor: &Tensor| {
        let copy = tensor.permute(&[0, 2, 1, 3]).unwrap().contiguous().unwrap();
        copy.permute(&[0, 2, 1, 3]).unwrap()
    };
    let [q, k, v] = [&uploaded.q, &uploaded.k, &uploaded.v].map(token_major);
    let attention = Attention::new(&gpu, config.clone()).unwrap();
    let got = attention.forward(Inputs::new(&q, &k, &v)).unwrap();
    let want = attention.forward(uploaded.view()).unwrap();
    assert_eq!(got.out.to_vec::<f32>().unwrap(), want.out.to_vec::<f32>().unwrap());
}

// tensorflow/tfjs#8373, ggml-org/llama.cpp#19965, sonos/tract#2820, pytorch/executorch#20583:
// 65,535 workgroups in one dimension.
#[test]
fn workgroups_around_the_limit_of_one_dimension() {
    let Some(gpu) = gpu() else { return };
    let k = Tensor::from_slice(&gpu, &[1f32, 0.0, 0.0, 0.0], &[1, 1, 1, 4]).unwrap();
    let attention = Attention::new(&gpu, masked(Mask::Full)).unwrap();
    for batch in [65_534, 65_535, 65_536] {
        // One key: the output of batch entry b is its value, b.
        let values: Vec<f32> = (0..batch * 4).map(|i| (i / 4) as f32).collect();
        let v = Tensor::from_slice(&gpu, &values, &[batch, 1, 1, 4]).unwrap();
        let keys = k.expand(&[batch, 1, 1, 4]).unwrap();
        let output = attention.forward(Inputs::new(&keys, &keys, &v)).unwrap();
        assert_eq!(output.out.to_vec::<f32>().unwrap(), values, "{batch}");
        assert!(output.lse.to_vec::<f32>().unwrap().iter().all(|&x| (x - 0.5).abs() < 1e-6));
    }
}

// tensorflow/tfjs#8373: element-wise work on 4,194,241 elements.
#[test]
fn fill_and_copy_of_four_million_elements() {
    let Some(gpu) = gpu() else { return };
    for elements in [4_194_240, 4_194_241] {
        let tensor = Tensor::full(&gpu, &[1, elements], 3u32).unwrap();
        assert!(tensor.to_vec::<u32>().unwrap().iter().all(|&x| x == 3));
        let numbers: Vec<u32> = (0..elements as u32).collect();
        let source = Tensor::from_slice(&gpu, &numbers, &[elements, 1]).unwrap();
        let target = Tensor::uninit(&gpu, &[elements, 2], DType::U32).unwrap();
        attn_wgpu::ops::copy(&source, &target).unwrap();
        let copied = target.narrow(1, 0, 1).unwrap().to_vec::<u32>().unwrap();
        assert_eq!(copied, numbers);
        let padding = target.narrow(1, 1, 1).unwrap().to_vec::<u32>().unwrap();
        assert!(padding.iter().all(|&x| x == 0));
    }
}

// ALaggyDev/CoordsFinder#14, playcanvas/splat-transform#22: long dispatches lose the device.
#[test]
fn work_above_the_cap_is_split_and_changes_no_bit() {
    let Some(whole) = gpu() else { return };
    let inputs = normal(shape([2, 4, 2, 600, 600, 64, 64]), 10);
    let config = masked(Mask::Causal);
    let want = attend(&whole, &inputs, &config).unwrap();
    let total = inputs.shape.flops(&Mask::Full);
    let Some(capped) = open(Gpu::builder().max_work_per_dispatch(total / 20.0)) else { return };
    assert!(attend(&capped, &inputs, &config).unwrap().bits() == want.bits());
    let stats = capped.stream_stats();
    assert!(stats.dispatches >= 20 && stats.submissions >= 20, "{stats:?}");
    // A cap below one row tile still computes, a tile at a time.
    let Some(capped) = open(Gpu::builder().max_work_per_dispatch(1.0)) else { return };
    assert!(attend(&capped, &inputs, &config).unwrap().bits() == want.bits());
}

// tracel-ai/burn#2042, #4792, #1492, tensorflow/tfjs#6970: memory and pipelines grow.
#[test]
fn three_thousand_calls_with_changing_lengths_stay_flat() {
    let Some(gpu) = open(Gpu::builder()) else { return };
    let longest = 97;
    let inputs = normal(shape([1, 2, 1, longest, longest, 16, 16]), 11);
    let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
    let attention = Attention::new(&gpu, masked(Mask::Causal)).unwrap();
    let table = Attention::new(&gpu, masked(Mask::PrefixLm { prefix: 3 })).unwrap();
    let mut settled = None;
    for call in 0..3000 {
        let (m, n) = (1 + call * 7 % longest, 1 + call * 13 % longest);
        let (q, k) = (uploaded.q.narrow(2, 0, m).unwrap(), uploaded.k.narrow(2, 0, n).unwrap());
        let v = uploaded.v.narrow(2, 0, n).unwrap();
        let which = if call % 5 == 0 { &table } else { &attention };
        let output = which.forward(Inputs::new(&q, &k, &v)).unwrap();
        if call % 16 == 0 {
            assert!(output.out.to_vec::<f32>().unwrap().iter().all(|x| x.is_finite()));
        }
        drop(output);
        let memory = gpu.memory();
        let (held, pipelines) = (memory.in_use + memory.cached, gpu.pipelines());
        if call == 1000 {
            settled = Some((held, pipelines));
        }
        if let Some((held_then, pipelines_then)) = settled {
            assert!(held <= held_then * 5 / 4, "call {call}: {memory:?}");
            assert_eq!(pipelines, pipelines_then, "call {call}");
        }
    }
    // Forward, decode for 2, 4, 6 and 8 rows, merge, and the fill of poisoned buffers.
    assert!(gpu.pipelines() <= 7, "{}", gpu.pipelines());
}

// huggingface/transformers.js#1242: scores are stored.
#[test]
fn peak_memory_is_linear_in_tokens() {
    let Some(gpu) = open(Gpu::builder()) else { return };
    let mut peaks = Vec::new();
    for n in [512, 1024, 2048] {
        let inputs = normal(shape([1, 4, 2, n, n, 16, 16]), 12);
        let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
        gpu.reset_peak();
        let attention = Attention::new(&gpu, masked(Mask::Window { left: 9, right: 0 })).unwrap();
        let output = attention.forward(uploaded.view()).unwrap();
        gpu.sync().unwrap();
        drop(output);
        peaks.push(gpu.memory().peak);
    }
    assert!(peaks[1] <= 2 * peaks[0] + 65_536 && peaks[2] <= 2 * peaks[1] + 65_536, "{peaks:?}");
}

/// Elements that no kernel wrote would be NaN here, and so would reads of what nobody wrote.
#[test]
fn poisoned_buffers() {
    let Some(gpu) = open(Gpu::builder().poison(true)) else { return };
    let raw = Tensor::uninit(&gpu, &[3, 5], DType::F32).unwrap();
    assert!(raw.to_vec::<f32>().unwrap().iter().all(|x| x.is_nan()));
    for (dim, n) in [(64, 65), (63, 17), (3, 1)] {
        for mask in [Mask::Causal, Mask::GlobalWindow { window: 3, global: 2 }] {
            check(&gpu, &normal(shape([2, 6, 2, n, n, dim, dim]), 13), &masked(mask));
        }
    }
    check(&gpu, &normal(shape([1, 2, 1, 70, 6, 40, 7]), 14), &masked(Mask::Causal));
}

/// One handle from many threads: every result is the one of its own inputs.
#[test]
fn many_threads_share_one_device() {
    let Some(gpu) = gpu() else { return };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let gpu = &gpu;
            scope.spawn(move || {
                for round in 0..20 {
                    let n = 1 + (thread * 31 + round * 17) % 90;
                    let inputs =
                        normal(shape([1, 2, 1, n, n, 16, 16]), (thread * 100 + round) as u64);
                    check(gpu, &inputs, &masked(Mask::Causal));
                }
            });
        }
    });
}

// gfx-rs/wgpu#2266, #117: reading back without blocking never resolves.
#[test]
fn reading_without_blocking() {
    let Some(gpu) = gpu() else { return };
    let tensor = Tensor::full(&gpu, &[1000], 2.5f32).unwrap();
    let view = tensor.narrow(0, 3, 500).unwrap();
    let data = pollster::block_on(view.to_vec_async::<f32>()).unwrap();
    assert_eq!(data, vec![2.5; 500]);
    let opened = pollster::block_on(Gpu::new_async()).unwrap();
    assert_eq!(opened.adapter().name, gpu.adapter().name);
}

/// A wait that is too short is an error; the device goes on.
#[test]
fn a_timeout_is_an_error_and_the_device_goes_on() {
    let Some(gpu) = open(Gpu::builder().timeout(Duration::from_nanos(1))) else { return };
    // A fast device must not be done before it is asked.
    let is_cpu = gpu.capabilities().kind == DeviceKind::Cpu;
    let (tokens, calls) = if is_cpu { (700, 1) } else { (4096, 10) };
    let inputs = normal(shape([1, 8, 8, tokens, tokens, 64, 64]), 15);
    let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
    let attention = Attention::new(&gpu, masked(Mask::Full)).unwrap();
    for _ in 0..calls {
        attention.forward(uploaded.view()).unwrap();
    }
    let outcome = gpu.sync();
    assert!(matches!(outcome, Err(Error::Timeout { .. })), "{outcome:?}");
    attention.forward(uploaded.view()).unwrap();
    gpu.flush().unwrap();
}

// gfx-rs/wgpu#9414, wgpu-native#625: timestamps may be zero; then the wall clock serves.
#[test]
fn profiles_name_kernels_and_times() {
    for (builder, clock) in
        [(Gpu::builder(), None), (Gpu::builder().disable("timestamps"), Some(Clock::Wall))]
    {
        let Some(gpu) = open(builder) else { return };
        let inputs = normal(shape([1, 2, 1, 100, 100, 63, 64]), 16);
        let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
        let attention = Attention::new(&gpu, masked(Mask::Causal)).unwrap();
        let want = attention.forward(uploaded.view()).unwrap().out.to_vec::<f32>().unwrap();
        let (output, profile) = gpu.profile(|| attention.forward(uploaded.view())).unwrap();
        assert_eq!(output.out.to_vec::<f32>().unwrap(), want);
        let names: Vec<_> = profile.kernels.iter().map(|kernel| kernel.kernel.as_str()).collect();
        // Keys of 63 elements are packed, visibly.
        assert!(names.iter().filter(|name| name.starts_with("copy")).count() >= 2, "{names:?}");
        assert!(names.iter().any(|name| name.starts_with("attention_forward")), "{names:?}");
        assert!(profile.total() > Duration::ZERO);
        let clocks = profile.kernels.iter().map(|kernel| kernel.clock);
        assert!(clocks.into_iter().all(|have| clock.is_none_or(|want| have == want)));
    }
}

// tensorflow/tfjs#6970, bambulab/BambuStudio#11848: a hundred shaders are compiled before the first
// result.
#[test]
fn one_model_needs_few_pipelines_and_none_after_warming_up() {
    let Some(gpu) = open(Gpu::builder()) else { return };
    for mask in [Mask::Causal, Mask::Window { left: 6, right: 0 }] {
        let attention = Attention::new(&gpu, masked(mask)).unwrap();
        let heads = Heads { heads: 9, heads_kv: 3, dim_qk: 64, dim_v: 64, dtype: DType::F32 };
        let before = gpu.pipelines();
        let warm = attention.warm_up(&heads).unwrap();
        // Masks are data: the second one finds everything compiled.
        assert_eq!(warm.pipelines > 0, before == 0, "{warm:?}");
        let before = gpu.pipelines();
        // A prompt, its decoding, and another prompt: nothing more is compiled.
        for (queries, keys) in [(20, 20), (1, 21), (1, 22), (70, 92)] {
            let inputs = normal(shape([1, 9, 3, queries, keys, 64, 64]), 1);
            let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
            attention.forward(uploaded.view()).unwrap();
        }
        assert_eq!(gpu.pipelines(), before);
        // A few queries at once, as when drafts are verified, take some more variants of decode.
        for queries in 1..=9 {
            let inputs = normal(shape([1, 9, 3, queries, 33, 64, 64]), 1);
            let uploaded = Uploaded::new(&gpu, &inputs).unwrap();
            attention.forward(uploaded.view()).unwrap();
        }
        gpu.sync().unwrap();
    }
    println!("{} pipelines", gpu.pipelines());
    assert!(gpu.pipelines() <= 8, "{}", gpu.pipelines());
}

#[test]
fn repeated_work_creates_no_bind_group() {
    let Some(gpu) = open(Gpu::builder()) else { return };
    let attention = Attention::new(&gpu, masked(Mask::Causal)).unwrap();
    let cache = normal(shape([1, 4, 2, 1, 200, 16, 16]), 1);
    let cache = Uploaded::new(&gpu, &cache).unwrap();
    let view = cache.view();
    // One query more after each key more: the views grow within their buffers.
    let step = |keys: usize| {
        let (k, v) = (view.k.narrow(2, 0, keys).unwrap(), view.v.narrow(2, 0, keys).unwrap());
        attention.forward(Inputs::new(view.q, &k, &v)).unwrap().out.to_vec::<f32>().unwrap()
    };
    (100..104).for_each(|keys| drop(step(keys)));
    let before = gpu.stream_stats();
    let outs: Vec<_> = (100..120).map(step).collect();
    let after = gpu.stream_stats();
    assert_eq!(after.bind_groups, before.bind_groups);
    assert_eq!(after.submissions - before.submissions, 20);
    // And they are the right ones: a new device gives the same bits.
    let Some(other) = open(Gpu::builder()) else { return };
    let fresh = normal(shape([1, 4, 2, 1, 200, 16, 16]), 1);
    let fresh = Uploaded::new(&other, &fresh).unwrap();
    let attention = Attention::new(&other, masked(Mask::Causal)).unwrap();
    let view = fresh.view();
    for (keys, out) in (100..120).zip(outs) {
        let (k, v) = (view.k.narrow(2, 0, keys).unwrap(), view.v.narrow(2, 0, keys).unwrap());
        let again = attention.forward(Inputs::new(view.q, &k, &v)).unwrap().out;
        assert_eq!(again.to_vec::<f32>().unwrap(), out);
    }
}

#[test]
fn measured_settings_are_loaded_for_their_adapter_alone() {
    let Some(gpu) = gpu() else { return };
    let subgroups = gpu.capabilities().subgroups.is_some();
    let setting = Setting { dim_per_lane: 32, max_lanes: 2, max_rows: 3, keys: 2, workgroup: 24 };
    let rule = |kernel| Rule { kernel, subgroups, max_dim: 256, setting };
    let settings = Settings::new(KernelKind::ALL.map(rule).to_vec()).unwrap();
    let Some(tuned) = open(Gpu::builder().settings(settings.clone())) else { return };
    let variant = Variant::forward(64, 64, tuned.capabilities());
    assert_eq!((variant.lanes, variant.rows, variant.keys, variant.workgroup), (2, 3, 2, 24));
    for (queries, keys, dim) in [(33, 33, 64), (1, 70, 64), (9, 12, 20)] {
        check(&tuned, &normal(shape([1, 4, 2, queries, keys, dim, dim]), 5), &masked(Mask::Causal));
    }
    let same = gpu.with_settings(settings);
    check(&same, &normal(shape([1, 2, 1, 17, 17, 16, 16]), 6), &masked(Mask::Causal));
}
