//! Memory that crosses, and in which order: an operation of our own between burn's.

mod common;

use attn_burn::attn_wgpu::{Tensor as Ours, ops};
use attn_burn::{Backward, DType, Error, Gpu, Inputs, Operation, Result, Spec, apply};
use burn::tensor::{Device, Int, Tensor};
use common::{device, normal, read, tensor};

/// `a + b`, and with `more` also `a` as it came and the numbers of its rows.
#[derive(Debug, Clone, Copy)]
struct Sum {
    more: bool,
}

impl Operation for Sum {
    type Saved = ();

    fn name(&self) -> &'static str {
        "sum"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        if inputs[0] != inputs[1] {
            let expected = format!("{:?}, as a", inputs[0].shape);
            return Err(attn_core::Error::shape("b", expected, &inputs[1].shape).into());
        }
        let mut outputs = vec![inputs[0].clone()];
        if self.more {
            outputs.push(inputs[0].clone());
            outputs.push(Spec::new([2], DType::U32));
        }
        Ok(outputs)
    }

    fn forward(&self, gpu: &Gpu, inputs: &[Ours], outputs: &[Ours]) -> Result<()> {
        ops::add_into(&inputs[0], &inputs[1], &outputs[0])?;
        if self.more {
            ops::copy(&inputs[0], &outputs[1])?;
            ops::copy(&Ours::from_slice(gpu, &[7u32, 8], &[2])?, &outputs[2])?;
        }
        Ok(())
    }

    fn backward(&self, _: &Gpu, pass: Backward<'_, ()>) -> Result<()> {
        for target in pass.gradients.iter().flatten() {
            ops::copy(&pass.cotangents[0], target)?;
        }
        Ok(())
    }
}

fn sum<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    let inputs = Inputs::new().float(a).float(b);
    apply(Sum { more: false }, inputs).unwrap().float().unwrap()
}

#[test]
fn layouts_come_as_they_are() {
    let Some(device) = device() else { return };
    let data: Vec<f32> = (0..1024).map(|i| i as f32).collect();
    let x = tensor(&data, [2, 8, 64], &device);
    let ones = |shape: [usize; 3]| Tensor::<3>::ones(shape, &device);
    let check = |x: Tensor<3>| {
        let (want, shape) = (x.clone() + 1.0, x.dims());
        assert_eq!(read(sum(x, ones(shape))), read(want), "{shape:?}");
    };
    check(x.clone());
    check(x.clone().swap_dims(1, 2));
    check(x.clone().permute([2, 0, 1]));
    check(x.clone().slice([1..2, 0..8, 0..64]));
    check(x.clone().slice([0..2, 3..4, 5..9]));
    check(x.clone().slice([0..1, 0..1, 0..64]).expand([3, 5, 64]));
    check(x.slice([0..0, 0..8, 0..64]));
}

#[test]
fn pages_are_shared_by_many_tensors() {
    let Some(device) = device() else { return };
    let all: Vec<_> = (0..20).map(|i| tensor(&normal(37, i), [37], &device)).collect();
    for i in 0..19 {
        let want = read(all[i].clone() + all[i + 1].clone());
        assert_eq!(read(sum(all[i].clone(), all[i + 1].clone())), want);
    }
    // An input twice.
    assert_eq!(read(sum(all[0].clone(), all[0].clone())), read(all[0].clone() * 2.0));
}

/// Exact integers, so that one stale read or one write too late changes every later number.
fn recurrence(device: &Device, seed: u64, steps: usize) {
    let wrap = |x: Tensor<2>| {
        let over = x.clone().greater_equal_elem(4096.0).float();
        x - over * 4096.0
    };
    let start = |seed| -> Vec<f32> {
        normal(64, seed).iter().map(|x| (x.abs() * 1000.0) as u32 as f32).collect()
    };
    let (mut a, mut b) = (start(seed), start(seed + 1));
    let mut x = tensor(&a, [8, 8], device);
    let mut y = tensor(&b, [8, 8], device);
    for step in 0..steps {
        let next = wrap(sum(x.clone().transpose(), y.clone()));
        let churn = Tensor::<1>::full([step % 97 + 1], step as f32, device);
        y = wrap(sum(x, next.clone()));
        x = next + (churn.clone() - churn).sum().reshape([1, 1]);

        let wrapped = |x: f32| if x >= 4096.0 { x - 4096.0 } else { x };
        let next: Vec<_> = (0..64).map(|i| wrapped(a[i % 8 * 8 + i / 8] + b[i])).collect();
        b = (0..64).map(|i| wrapped(a[i] + next[i])).collect();
        a = next;
    }
    assert_eq!(read(x), a);
    assert_eq!(read(y), b);
}

#[test]
fn a_thousand_interleaved_operations_are_in_order() {
    let Some(device) = device() else { return };
    recurrence(&device, 1, 500);
}

#[test]
fn threads_do_not_disturb_each_other() {
    let Some(device) = device() else { return };
    std::thread::scope(|scope| {
        for seed in [10, 20, 30] {
            let device = device.clone();
            scope.spawn(move || recurrence(&device, seed, 60));
        }
    });
}

/// Our own commands that are still recorded are submitted before an operation's.
#[test]
fn work_recorded_by_hand_comes_first() {
    let Some(device) = device() else { return };
    let gpu = attn_burn::gpu(&device).unwrap();
    let x = common::ours(&gpu, &[1.0, 2.0, 3.0], &[3]);
    let twice = ops::add(&x, &x).unwrap();
    let crossed = attn_burn::ops::upload::<1>(&twice, &device).unwrap();
    assert_eq!(read(crossed * 10.0), [20.0, 40.0, 60.0]);
}

#[test]
fn outputs_may_be_several_and_not_differentiable() {
    let Some(device) = device() else { return };
    let device = device.autodiff();
    let a = tensor(&normal(12, 1), [3, 4], &device).require_grad();
    let b = tensor(&normal(12, 2), [3, 4], &device);
    let inputs = Inputs::new().float(a.clone()).float(b.clone());
    let mut outputs = apply(Sum { more: true }, inputs).unwrap();
    let (sum, same) = (outputs.float::<2>().unwrap(), outputs.float::<2>().unwrap());
    let words: Tensor<1, Int> = outputs.int().unwrap();
    assert_eq!(words.into_data().iter::<i64>().collect::<Vec<_>>(), [7, 8]);
    assert_eq!(read(same.clone()), read(a.clone()));
    assert!(outputs.float::<2>().is_err());
    // The second output is a constant: only the first hands on a gradient.
    let grads = (sum * 3.0 + same * 100.0).sum().backward();
    assert_eq!(read(a.grad(&grads).unwrap()), [3.0; 12]);
    assert!(b.grad(&grads).is_none());
}

#[test]
fn gradients_add_up() {
    let Some(device) = device() else { return };
    let device = device.autodiff();
    let a = tensor(&normal(6, 1), [6], &device).require_grad();
    let middle = a.clone() * 2.0;
    let grads = sum(middle.clone(), middle.clone().exp()).sum().backward();
    let want: Vec<_> = read(middle).iter().map(|x| 2.0 + 2.0 * x.exp()).collect();
    assert!(common::deviation(&read(a.grad(&grads).unwrap()), &want) < 1e-6);
}

/// Gradients have no graph of their own in burn: it says so before our backward pass is asked for its own.
#[test]
fn second_derivatives_are_refused() {
    let Some(device) = device() else { return };
    let a = tensor(&normal(6, 1), [6], &device.autodiff()).require_grad();
    let grads = sum(a.clone() * a.clone(), a.clone()).sum().backward();
    let first = a.grad(&grads).unwrap();
    assert!(!first.is_autodiff());
    let refused = std::panic::catch_unwind(move || first.sum().backward());
    let message = refused.map(|_| ()).unwrap_err();
    let message = message.downcast_ref::<&str>().unwrap();
    assert!(message.contains("requires a tracked autodiff tensor"), "{message}");
}

#[test]
fn wrong_arguments_are_errors_of_the_call() {
    let Some(device) = device() else { return };
    let (a, b) = (Tensor::<1>::ones([3], &device), Tensor::<1>::ones([4], &device));
    let bad = apply(Sum { more: false }, Inputs::new().float(a.clone()).float(b));
    match bad {
        Err(Error::Core(attn_core::Error::Shape { arg, .. })) => assert_eq!(arg, "b"),
        other => panic!("{other:?}"),
    }
    let none = apply(Sum { more: false }, Inputs::new());
    assert!(matches!(none, Err(Error::Core(attn_core::Error::Config { .. }))), "{none:?}");
    assert_eq!(read(sum(a.clone(), a)), [2.0; 3]);
}

/// An operation that fails on the device: burn says so, and goes on.
#[derive(Debug)]
struct Broken;

impl Operation for Broken {
    type Saved = ();

    fn name(&self) -> &'static str {
        "broken"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        Ok(inputs.to_vec())
    }

    fn forward(&self, _: &Gpu, inputs: &[Ours], outputs: &[Ours]) -> Result<()> {
        // The output overlaps itself as an input.
        ops::add_into(&inputs[0], &outputs[0], &outputs[0])
    }

    fn backward(&self, _: &Gpu, _: Backward<'_, ()>) -> Result<()> {
        Ok(())
    }
}

#[test]
fn failures_on_the_device_are_told_and_survived() {
    let Some(device) = device() else { return };
    let x = Tensor::<1>::ones([8], &device);
    let given = x.clone();
    let failed = std::panic::catch_unwind(move || {
        let out = apply(Broken, Inputs::new().float(given)).unwrap().float::<1>().unwrap();
        out.try_into_data().map(|_| ()).map_err(|error| format!("{error:?}"))
    });
    let message = match failed {
        Ok(told) => told.unwrap_err(),
        Err(panic) => panic.downcast_ref::<String>().unwrap().clone(),
    };
    assert!(message.contains("overlap"), "{message}");
    assert_eq!(read(sum(x.clone(), x)), [2.0; 8]);
}

#[test]
fn devices_that_are_not_shared_are_refused() {
    if device().is_none() {
        return;
    }
    // Burn's device, but not opened by this crate.
    let other = Device::wgpu(burn::tensor::DeviceKind::Cpu);
    match attn_burn::gpu(&other) {
        Err(Error::Core(attn_core::Error::Config { arg, expected, .. })) => {
            assert_eq!(arg, "device");
            assert!(expected.contains("attn_burn::device"), "{expected}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn poor_devices_are_refused_and_rich_ones_shared() {
    use attn_burn::wgpu;
    use burn::tensor::wgpu::WgpuSetup;
    if device().is_none() {
        return;
    }
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = pollster::block_on(instance.request_adapter(&Default::default())).unwrap();
    let open = |required_features| {
        let descriptor = wgpu::DeviceDescriptor {
            required_features,
            required_limits: adapter.limits(),
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
        let (instance, adapter) = (instance.clone(), adapter.clone());
        let backend = adapter.get_info().backend;
        WgpuSetup { instance, adapter, device, queue, backend }
    };
    let poor = open(wgpu::Features::empty());
    let device = Device::default();
    assert!(matches!(
        attn_burn::share(&device, &poor),
        Err(Error::Core(attn_core::Error::Config { arg: "setup", .. }))
    ));
    let apart = wgpu::Features::MAPPABLE_PRIMARY_BUFFERS | wgpu::Features::all_experimental_mask();
    let rich = open(adapter.features() - apart);
    let device = Device::wgpu_options().setup(rich.clone()).init().unwrap();
    let x = Tensor::<1>::ones([5], &device);
    let apart = apply(Sum { more: false }, Inputs::new().float(x.clone()).float(x.clone()));
    assert!(matches!(apart, Err(Error::Core(attn_core::Error::Config { arg: "device", .. }))));
    attn_burn::share(&device, &rich).unwrap();
    assert_eq!(read(sum(x.clone(), x)), [2.0; 5]);
}
