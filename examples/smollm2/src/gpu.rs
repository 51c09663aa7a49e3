//! One wgpu device that Burn and keynorm share.

use anyhow::{Context as _, Result, bail};
use burn::tensor::Device;
use burn::tensor::wgpu::WgpuSetup;
use keynorm::wgpu;

/// The shared device, under Burn's name and under wgpu's.
#[derive(Debug, Clone)]
pub struct Gpu {
    /// As Burn knows it.
    pub burn: Device,
    /// As wgpu knows it.
    pub device: wgpu::Device,
    /// The queue that both submit to.
    pub queue: wgpu::Queue,
    /// What it runs on.
    pub info: wgpu::AdapterInfo,
}

impl Gpu {
    /// Takes the adapter whose name contains `wanted` or that has that number; without it a discrete GPU, else another,
    /// else a CPU.
    ///
    /// # Errors
    /// No such adapter, or a device that cannot be made.
    pub fn new(wanted: Option<&str>) -> Result<Self> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let adapter = pick(pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all())), wanted)?;
        let info = adapter.get_info();
        // What CubeCL asks for itself, less what wgpu calls experimental: that needs `unsafe`.
        let features = adapter
            .features()
            .difference(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS | wgpu::Features::all_experimental_mask());
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("keynorm-smollm2"),
            required_features: features,
            required_limits: adapter.limits(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .with_context(|| format!("{}: no device", info.name))?;
        let backend = info.backend;
        let setup = WgpuSetup { instance, adapter, device: device.clone(), queue: queue.clone(), backend };
        let burn = Device::wgpu_options().setup(setup).init().context("Burn refuses the device")?;
        Ok(Self { burn, device, queue, info })
    }

    /// Waits until everything submitted by Burn and by us is done.
    ///
    /// # Errors
    /// A lost device.
    pub fn sync(&self) -> Result<()> {
        self.burn.sync().map_err(|e| anyhow::anyhow!("{e:?}"))?;
        self.device.poll(wgpu::PollType::wait_indefinitely())?;
        Ok(())
    }

    /// Bytes that wgpu's allocator holds on the device now: Burn's and ours. 0 where the backend does not say.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        self.device.generate_allocator_report().map_or(0, |report| report.total_allocated_bytes)
    }

    /// One line that names adapter, backend and driver.
    #[must_use]
    pub fn describe(&self) -> String {
        let wgpu::AdapterInfo { name, backend, driver, driver_info, .. } = &self.info;
        format!("{name} ({backend:?}, {driver} {driver_info})")
    }

    /// Whether it runs on the CPU, as lavapipe does.
    #[must_use]
    pub fn is_cpu(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }
}

fn pick(adapters: Vec<wgpu::Adapter>, wanted: Option<&str>) -> Result<wgpu::Adapter> {
    let names: Vec<_> = adapters.iter().map(|a| a.get_info().name).collect();
    let rank = |adapter: &wgpu::Adapter| match adapter.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::VirtualGpu => 1,
        wgpu::DeviceType::Other => 2,
        wgpu::DeviceType::Cpu => 3,
    };
    let fits = |ix: usize| match wanted {
        None => true,
        Some(wanted) => wanted.parse() == Ok(ix) || names[ix].to_lowercase().contains(&wanted.to_lowercase()),
    };
    let best = adapters.into_iter().enumerate().filter(|(ix, _)| fits(*ix)).min_by_key(|(_, a)| rank(a));
    match best {
        Some((_, adapter)) => Ok(adapter),
        None if names.is_empty() => bail!("no adapter: install a GPU driver or Mesa's lavapipe (scripts/with-adapter)"),
        None => bail!("no adapter fits --adapter {}; there are {names:?}", wanted.unwrap_or_default()),
    }
}
