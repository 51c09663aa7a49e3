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
    /// Takes the adapter that has the number `wanted`, else one whose name contains it; without it a discrete GPU, else
    /// another, else a CPU.
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

fn pick(mut adapters: Vec<wgpu::Adapter>, wanted: Option<&str>) -> Result<wgpu::Adapter> {
    let infos: Vec<_> = adapters.iter().map(|a| a.get_info()).collect();
    let names: Vec<_> = infos.iter().map(|i| i.name.clone()).collect();
    let ranks: Vec<_> = infos.iter().map(|i| rank(i.device_type)).collect();
    Ok(adapters.swap_remove(choose(&names, &ranks, wanted)?))
}

const fn rank(device_type: wgpu::DeviceType) -> u8 {
    match device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::VirtualGpu => 1,
        wgpu::DeviceType::Other => 2,
        wgpu::DeviceType::Cpu => 3,
    }
}

/// The index of the adapter that is wanted: that number, if there is such an adapter; else of those whose name contains
/// it, in either case, the first of lowest rank.
fn choose(names: &[String], ranks: &[u8], wanted: Option<&str>) -> Result<usize> {
    let number = wanted.and_then(|w| w.parse::<usize>().ok());
    if let Some(ix) = number.filter(|&ix| ix < names.len()) {
        return Ok(ix);
    }
    let part = wanted.unwrap_or_default().to_lowercase();
    let fits = |&ix: &usize| names[ix].to_lowercase().contains(&part);
    match (0..names.len()).filter(fits).min_by_key(|&ix| ranks[ix]) {
        Some(ix) => Ok(ix),
        None if names.is_empty() => bail!("no adapter: install a GPU driver or Mesa's lavapipe (scripts/with-adapter)"),
        None => {
            let list: Vec<_> = names.iter().enumerate().map(|(ix, name)| format!("{ix}: {name}")).collect();
            bail!("no adapter fits --adapter {}; there are {}", wanted.unwrap_or_default(), list.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::choose;

    #[test]
    fn a_number_is_an_index_before_it_is_a_name() {
        let names = ["llvmpipe", "NVIDIA H100"].map(str::to_owned);
        let ix = |wanted| choose(&names, &[3, 0], wanted).ok();
        assert_eq!(ix(Some("0")), Some(0), "a 0 is in the other's name too");
        assert_eq!(ix(Some("1")), Some(1));
        assert_eq!(ix(Some("h100")), Some(1));
        assert_eq!(ix(Some("100")), Some(1), "no such index, but part of a name");
        assert_eq!(ix(Some("LLVM")), Some(0));
        assert_eq!(ix(None), Some(1), "the discrete one");
        let error = choose(&names, &[3, 0], Some("7")).unwrap_err().to_string();
        assert!(error.contains("--adapter 7") && error.contains("llvmpipe"), "{error}");
        assert!(choose(&[], &[], None).is_err());
    }
}
