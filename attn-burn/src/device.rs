//! Devices that burn and `attn-wgpu` share: one `wgpu` device, one queue.

use std::sync::{Mutex, MutexGuard, PoisonError};

use attn_core::Error as CoreError;
use attn_wgpu::{Error, Gpu, Result};
use burn::backend::DispatchDevice;
use burn::tensor::Device;
use burn::tensor::wgpu::{WgpuInitError, WgpuOptions, WgpuSetup};

/// The shared devices, and which of them is [`device`]'s.
#[derive(Default)]
struct Shared {
    devices: Vec<(DispatchDevice, Gpu)>,
    default: Option<Device>,
}

static SHARED: Mutex<Shared> = Mutex::new(Shared { devices: Vec::new(), default: None });

/// A panic elsewhere leaves the list as it was.
fn shared() -> MutexGuard<'static, Shared> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Burn's default wgpu device, shared with the kernels of this workspace. The first call opens it, later
/// ones return the same. `.autodiff()` on the result turns on gradients, as always in burn.
///
/// # Errors
/// As [`init`].
pub fn device() -> Result<Device> {
    let mut shared = shared();
    if let Some(device) = &shared.default {
        return Ok(device.clone());
    }
    let device = open(&mut shared, Device::wgpu_options())?;
    shared.default = Some(device.clone());
    Ok(device)
}

/// A wgpu device that burn opens with these options (kind of adapter, graphics API, memory, tasks), shared
/// with the kernels of this workspace.
///
/// # Errors
/// [`Error::NoAdapter`] where no adapter fits; [`Error::Kernel`] for devices that burn has opened before,
/// for example because a tensor was made on it: burn gives away device and queue only when it opens them.
pub fn init(options: WgpuOptions) -> Result<Device> {
    open(&mut shared(), options)
}

fn open(shared: &mut Shared, options: WgpuOptions) -> Result<Device> {
    let (device, setup) = options.init_with_setup().map_err(|error| match &error {
        WgpuInitError::AdapterUnavailable { .. } => {
            Error::NoAdapter { wanted: None, tried: Vec::new() }
        }
        _ => Error::Kernel { kernel: "open the device".into(), reason: error.to_string() },
    })?;
    let gpu = Gpu::from_wgpu(setup.device, setup.queue);
    shared.devices.push((inner(&device), gpu));
    Ok(device)
}

/// Shares a device that the caller opened and gave to burn:
/// `Device::wgpu_options().setup(setup.clone()).init()`, once for each setup. Its `Gpu` is returned.
///
/// Burn replaces the device's handlers of errors and loss by its own, and `attn-wgpu` leaves those alone.
///
/// # Errors
/// [`attn_core::Error::Config`] where the device lacks features that its adapter has: burn looks at the
/// adapter when it writes its kernels, and these would fail later.
pub fn share(device: &Device, setup: &WgpuSetup) -> Result<Gpu> {
    // Burn asks for neither of these.
    let apart = wgpu::Features::MAPPABLE_PRIMARY_BUFFERS | wgpu::Features::all_experimental_mask();
    let missing = setup.adapter.features() - apart - setup.device.features();
    if !missing.is_empty() {
        let got = format!("a device without {missing}");
        return Err(CoreError::config("setup", "all features of the adapter", got).into());
    }
    let gpu = Gpu::from_wgpu(setup.device.clone(), setup.queue.clone());
    shared().devices.push((inner(device), gpu.clone()));
    Ok(gpu)
}

/// The handle by which the kernels of this workspace use `device`.
///
/// # Errors
/// [`attn_core::Error::Config`] for a device that [`device`], [`init`] or [`share`] does not know.
pub fn gpu(device: &Device) -> Result<Gpu> {
    find(&inner(device))
}

/// The same for the device of a backend.
pub(crate) fn find(device: &DispatchDevice) -> Result<Gpu> {
    let known =
        shared().devices.iter().find(|(known, _)| known == device).map(|(_, gpu)| gpu.clone());
    known.ok_or_else(|| {
        let expected = "a device from attn_burn::device, init or share";
        CoreError::config("device", expected, format!("{device:?}")).into()
    })
}

/// Without the wrapper that turns on gradients.
fn inner(device: &Device) -> DispatchDevice {
    match device.as_dispatch() {
        DispatchDevice::Autodiff(autodiff) => autodiff.clone().inner(),
        other => other.clone(),
    }
}
