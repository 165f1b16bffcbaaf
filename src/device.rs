//! Maps `--device NAME` to a Burn device and describes it. The only file that knows which backends are compiled in.

use burn::tensor::{Device, FloatDType};
use serde::Serialize;

use crate::error::{Error, Result};

/// Supported device names, each with the Cargo feature that provides it.
const KNOWN: [(&str, &str); 8] = [
    ("cpu", "built in"),
    ("ndarray", "ndarray"),
    ("cuda", "cuda"),
    ("rocm", "rocm"),
    ("vulkan", "vulkan"),
    ("metal", "metal"),
    ("wgpu", "wgpu"),
    ("cubecl-cpu", "cubecl-cpu"),
];

/// Kinds of graphics adapter that can be given in place of an index.
const ADAPTER_KINDS: [&str; 3] = ["integrated", "virtual", "cpu"];

/// Devices that exist only once and take no index.
const SINGLE: [&str; 4] = ["cpu", "ndarray", "metal", "cubecl-cpu"];

/// Parse `cpu`, `ndarray`, `cuda[:n]`, `rocm[:n]`, `vulkan[:n]`, `metal`, `wgpu[:n]`, `cubecl-cpu`.
///
/// For `vulkan` and `wgpu` the index counts discrete GPUs; `wgpu:integrated`, `wgpu:virtual` and `wgpu:cpu` (Mesa's
/// llvmpipe, for testing without a GPU) take the first adapter of that kind. Without an index the driver chooses.
///
/// # Errors
/// An unknown name, an index that is not a number, a device whose feature is not compiled in, or one that this machine
/// does not have; the message says what to do.
pub fn parse(name: &str) -> Result<Device> {
    let fail = |message: String| Error::Device { name: name.to_string(), message };
    if let Some((first, _)) = name.split_once(',') {
        let kind = first.split(':').next().unwrap_or_default();
        return Err(fail(format!(
            "one process uses one device: start one process per GPU, `mpirun -n 2 tempering train … --device {kind}`, \
             with a binary built with `--features mpi`"
        )));
    }
    let name = &crate::ranks::own_device(name);
    let (kind, index) = name.split_once(':').map_or((name.as_str(), None), |(kind, index)| (kind, Some(index)));
    let Some((_, feature)) = KNOWN.iter().find(|(known, _)| *known == kind) else {
        let known: Vec<&str> = KNOWN.iter().map(|(known, _)| *known).collect();
        return Err(fail(format!("unknown device; choose from {}", known.join(", "))));
    };
    if index.is_some() && SINGLE.contains(&kind) {
        return Err(fail(format!("{kind} has no index: write --device {kind}")));
    }
    let graphics = matches!(kind, "vulkan" | "wgpu");
    if let Some(index) = index
        && index.parse::<u16>().is_err()
        && !(graphics && ADAPTER_KINDS.contains(&index))
    {
        let kinds = if graphics { format!(" or one of {}", ADAPTER_KINDS.join(", ")) } else { String::new() };
        return Err(fail(format!("the index after ':' must be a number, as in {kind}:0{kinds}")));
    }
    let device = open(kind, index).ok_or_else(|| {
        fail(format!("not compiled into this binary; build with `cargo build --release --features {feature}`"))
    })?;
    if let Some(present) = devices_like(kind) {
        let names: Vec<&str> = present.iter().map(|(name, _)| name.as_str()).collect();
        if names.is_empty() {
            return Err(fail(absent(kind)));
        }
        if index.is_some() && !names.contains(&name.as_str()) {
            return Err(fail(format!("no such device; this machine has {}", names.join(", "))));
        }
    }
    Ok(device)
}

/// Return the message for a backend without a device, with advice.
fn absent(kind: &str) -> String {
    let driver = match kind {
        "cuda" => "NVIDIA's driver (`nvidia-smi` shows it; in a container it is mounted from the host)",
        "rocm" => "AMD's driver and ROCm (`rocminfo` shows them)",
        "vulkan" | "wgpu" => "a Vulkan driver (`vulkaninfo --summary` shows it)",
        _ => "its driver",
    };
    format!("no such device on this machine: it needs {driver}. `--device cpu` needs no driver")
}

/// Return the names of the compiled backends, as `--device` takes them.
pub fn compiled() -> Vec<&'static str> {
    let opt_in = [
        ("cuda", cfg!(feature = "cuda")),
        ("rocm", cfg!(feature = "rocm")),
        ("vulkan", cfg!(feature = "vulkan")),
        ("metal", cfg!(feature = "metal")),
        ("wgpu", cfg!(feature = "wgpu")),
        ("cubecl-cpu", cfg!(feature = "cubecl-cpu")),
    ];
    let built = |feature: &str| opt_in.iter().all(|&(name, built)| name != feature || built);
    KNOWN.iter().filter(|(_, feature)| built(feature)).map(|(name, _)| *name).collect()
}

/// Return the kernel compiler of the CUDA backend; `None` without that backend.
pub fn cuda_compiler() -> Option<&'static str> {
    match (cfg!(feature = "cuda"), cfg!(feature = "cuda-nvrtc")) {
        (false, _) => None,
        (true, false) => Some("LLVM (in the binary)"),
        (true, true) => Some("NVRTC (of the CUDA toolkit)"),
    }
}

/// Return the number formats a device computes in, among those of models and products.
pub fn float_formats(device: &Device) -> Vec<&'static str> {
    let formats = [("f32", FloatDType::F32), ("f16", FloatDType::F16), ("bf16", FloatDType::BF16)];
    let formats = formats.into_iter().filter(|(_, dtype)| device.supports_dtype(*dtype)).map(|(name, _)| name);
    formats.chain(has_tf32(device).then_some("tf32")).collect()
}

/// Return whether the device can multiply f32 on tensor cores, with operands rounded to TF32 (10 bits of mantissa).
pub fn has_tf32(device: &Device) -> bool {
    identity(device).is_some_and(|identity| identity.target.starts_with("ptx"))
}

/// A device found on this machine.
#[derive(Debug, Clone, Serialize)]
pub struct Adapter {
    /// Name for `--device`.
    pub device: String,
    /// Name that the hardware reports.
    pub name: String,
    /// Driver and its version, if the graphics API reports it.
    pub driver: Option<String>,
    /// Number formats it computes in.
    pub floats: Vec<&'static str>,
}

/// Open and describe every device of the compiled GPU backends.
///
/// Queries the graphics API in addition to Burn; call it while nothing else opens devices.
pub fn adapters() -> Vec<Adapter> {
    let found = compiled().into_iter().filter_map(devices_like).flatten();
    let describe = |(device, handle): (String, Device)| {
        let name = identity(&handle).map(|identity| identity.name).unwrap_or_default();
        Adapter { driver: driver(&name), floats: float_formats(&handle), device, name }
    };
    found.map(describe).collect()
}

/// Properties that a device reports.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Name, such as `NVIDIA H100 PCIe`.
    pub name: String,
    /// Compilation target of its kernels, such as `ptx_sm90`.
    pub target: String,
    /// PCI address, as in `/sys/bus/pci/devices`.
    pub pci_address: Option<String>,
}

#[allow(unused_variables, unreachable_patterns, reason = "depends on the features compiled in")]
fn open(kind: &str, index: Option<&str>) -> Option<Device> {
    #[cfg(feature = "gpu")]
    keep_kernels();
    match kind {
        "cpu" => Some(Device::flex()),
        #[cfg(feature = "ndarray")]
        #[allow(
            deprecated,
            reason = "Burn 0.23 drops ndarray; 0.22.1 is pinned, and a second CPU backend checks the first"
        )]
        "ndarray" => Some(Device::ndarray()),
        #[cfg(feature = "cuda")]
        "cuda" => Some(Device::cuda(ordinal(index))),
        #[cfg(feature = "rocm")]
        "rocm" => Some(Device::rocm(ordinal(index))),
        #[cfg(feature = "vulkan")]
        "vulkan" => Some(Device::vulkan(graphics(index))),
        #[cfg(feature = "metal")]
        "metal" => Some(Device::metal(graphics(index))),
        #[cfg(feature = "wgpu")]
        "wgpu" => Some(Device::wgpu(graphics(index))),
        #[cfg(feature = "cubecl-cpu")]
        "cubecl-cpu" => Some(Device::cpu()),
        _ => None,
    }
}

/// Make the GPU backends cache compiled kernels in the user's cache directory, for all processes.
///
/// By default they do not keep kernels, and put other caches below the nearest Cargo workspace. A `cubecl.toml` applies
/// except for these two settings; it may name a directory. Call it before a backend reads its settings.
#[cfg(feature = "gpu")]
fn keep_kernels() {
    use cubecl::config::cache::CacheConfig;
    use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        config.compilation.cache = true;
        if matches!(config.environment.path, CacheConfig::Target) {
            config.environment.path = CacheConfig::Global;
        }
        CubeClRuntimeConfig::try_set(config);
    });
}

/// Return the file in which the GPU backends cache compiled kernels; `None` without a GPU backend.
#[cfg(feature = "gpu")]
pub fn kernel_cache() -> Option<std::path::PathBuf> {
    keep_kernels();
    Some(cubecl::environment::path())
}

/// Return the file in which the GPU backends cache compiled kernels; `None` without a GPU backend.
#[cfg(not(feature = "gpu"))]
pub fn kernel_cache() -> Option<std::path::PathBuf> {
    None
}

#[cfg(any(feature = "cuda", feature = "rocm"))]
fn ordinal(index: Option<&str>) -> usize {
    index.and_then(|index| index.parse().ok()).unwrap_or(0)
}

#[cfg(any(feature = "vulkan", feature = "metal", feature = "wgpu"))]
fn graphics(index: Option<&str>) -> burn::tensor::DeviceKind {
    use burn::tensor::DeviceKind;
    match index {
        None => DeviceKind::DefaultDevice,
        Some("integrated") => DeviceKind::IntegratedGpu(0),
        Some("virtual") => DeviceKind::VirtualGpu(0),
        Some("cpu") => DeviceKind::Cpu,
        Some(index) => DeviceKind::DiscreteGpu(index.parse().unwrap_or(0)),
    }
}

/// Return the devices of a GPU backend on this machine, with their names; `None` for the two CPU backends.
#[cfg(feature = "gpu")]
fn devices_like(kind: &str) -> Option<Vec<(String, Device)>> {
    use burn::tensor::DeviceType;
    let backend = match kind {
        #[cfg(feature = "cuda")]
        "cuda" => DeviceType::Cuda,
        #[cfg(feature = "rocm")]
        "rocm" => DeviceType::Rocm,
        #[cfg(feature = "vulkan")]
        "vulkan" => DeviceType::Vulkan,
        #[cfg(feature = "metal")]
        "metal" => DeviceType::Metal,
        #[cfg(feature = "wgpu")]
        "wgpu" => DeviceType::Wgpu,
        #[cfg(feature = "cubecl-cpu")]
        "cubecl-cpu" => DeviceType::Cpu,
        _ => return None,
    };
    let found = Device::enumerate(backend).into_vec();
    // A device does not know its name for `--device`: it is the one that opens it.
    let mut indices: Vec<String> = (0..found.len()).map(|index| index.to_string()).collect();
    if matches!(kind, "vulkan" | "wgpu") {
        indices.extend(ADAPTER_KINDS.map(str::to_string));
    }
    let name = |device: &Device| {
        if SINGLE.contains(&kind) {
            return kind.to_string();
        }
        let index = indices.iter().find(|index| open(kind, Some(index)).as_ref() == Some(device));
        index.map_or(kind.to_string(), |index| format!("{kind}:{index}"))
    };
    Some(found.into_iter().map(|device| (name(&device), device)).collect())
}

#[cfg(not(feature = "gpu"))]
fn devices_like(_kind: &str) -> Option<Vec<(String, Device)>> {
    None
}

/// Open a device and read its identity; `None` for the two CPU backends.
#[cfg(feature = "gpu")]
pub fn identity(device: &Device) -> Option<Identity> {
    let identity = device.identity()?;
    let pci_address = identity.physical.and_then(|card| card.pci_address).map(|address| address.to_string());
    Some(Identity { name: identity.name, target: identity.fingerprint, pci_address })
}

/// Open a device and read its identity; `None` for the two CPU backends.
#[cfg(not(feature = "gpu"))]
pub fn identity(_device: &Device) -> Option<Identity> {
    None
}

/// Return the driver of a device as the graphics API reports it; `None` without that API.
#[cfg(any(feature = "vulkan", feature = "metal", feature = "wgpu"))]
fn driver(part: &str) -> Option<String> {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let mut adapters = pin!(instance.enumerate_adapters(wgpu::Backends::all()));
    // Outside a browser the list is available immediately.
    let Poll::Ready(adapters) = adapters.as_mut().poll(&mut Context::from_waker(Waker::noop())) else { return None };
    let info = adapters.iter().map(wgpu::Adapter::get_info).find(|info| info.name == part)?;
    Some(format!("{} {}, {}", info.driver, info.driver_info, info.backend).trim_start().to_string())
}

#[cfg(not(any(feature = "vulkan", feature = "metal", feature = "wgpu")))]
fn driver(_part: &str) -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_compiled_in_names_the_feature_to_build_with() {
        let message = parse("rocm:1").unwrap_err().to_string();
        assert!(message.contains("--features rocm"), "{message}");
    }

    #[test]
    fn names_and_indices_are_checked() {
        assert!(parse("cpu").is_ok());
        assert!(parse("gpu").unwrap_err().to_string().contains("choose from cpu"));
        assert!(parse("cuda:x").unwrap_err().to_string().contains("number"));
        assert!(parse("wgpu:x").unwrap_err().to_string().contains("integrated"));
        assert!(parse("cuda:cpu").unwrap_err().to_string().contains("number"));
        assert!(parse("cpu:1").unwrap_err().to_string().contains("no index"));
    }

    /// Found with `Device::enumerate`; the first tensor operation once panicked deep in the driver's initialisation.
    #[test]
    #[cfg(feature = "wgpu")]
    fn an_adapter_that_is_not_there_is_an_error_that_lists_those_that_are() {
        let message = parse("wgpu:997").unwrap_err().to_string();
        assert!(message.contains("this machine has wgpu") || message.contains("driver"), "{message}");
    }
}
