//! The choice of an adapter.

use crate::Failure;

/// An adapter in one line.
pub fn describe(info: &wgpu::AdapterInfo) -> String {
    let driver = [info.driver.as_str(), info.driver_info.as_str()].join(" ");
    let driver = if driver.trim().is_empty() { "unknown" } else { driver.trim() };
    format!("{} ({}, {:?}, driver {driver})", info.name, info.backend, info.device_type)
}

const NO_ADAPTER: &str = "no adapter found: install a Vulkan driver (scripts/with-adapter does), or see WGPU_BACKEND";

/// Every adapter of every backend.
pub fn adapters() -> Result<Vec<wgpu::Adapter>, Failure> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    if adapters.is_empty() { Err(NO_ADAPTER.to_owned()) } else { Ok(adapters) }
}

/// The one of that number, else the first whose name contains `name`, in any case; without a name, wgpu's choice of the fastest.
pub fn choose_adapter(name: Option<&str>) -> Result<wgpu::Adapter, Failure> {
    let Some(name) = name else {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let fastest = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        return pollster::block_on(instance.request_adapter(&fastest)).map_err(|_| NO_ADAPTER.to_owned());
    };
    let mut adapters = adapters().map_err(|e| format!("--adapter {name}: {e}"))?;
    if let Some(number) = name.parse().ok().filter(|&number: &usize| number < adapters.len()) {
        return Ok(adapters.swap_remove(number));
    }
    let wanted = name.to_lowercase();
    let names: Vec<String> = adapters.iter().map(|a| a.get_info().name).collect();
    let found = adapters.into_iter().zip(&names).find(|(_, n)| n.to_lowercase().contains(&wanted));
    found
        .map(|f| f.0)
        .ok_or_else(|| format!("--adapter {name}: no adapter has this in its name; there are: {}", names.join(", ")))
}
