//! From `--device NAME` to a Burn device. The only file that knows which backends are compiled in.

use burn::tensor::Device;

use crate::error::{Error, Result};

/// Every device name understood, with the Cargo feature that brings it.
const KNOWN: [(&str, &str); 7] = [
    ("cpu", "built in"),
    ("ndarray", "built in"),
    ("cuda", "cuda"),
    ("rocm", "rocm"),
    ("vulkan", "vulkan"),
    ("metal", "metal"),
    ("wgpu", "wgpu"),
];

/// Parses `cpu`, `ndarray`, `cuda[:n]`, `rocm[:n]`, `vulkan[:n]`, `metal`, `wgpu[:n]`.
///
/// `wgpu:cpu` picks the software adapter (Mesa's llvmpipe), for testing without a GPU.
///
/// # Errors
/// An unknown name, an index that is no number, or a device whose feature is not compiled in; the message says what to
/// build with.
pub fn parse(name: &str) -> Result<Device> {
    let fail = |message: String| Error::Device { name: name.to_string(), message };
    let (kind, index) = name.split_once(':').map_or((name, None), |(kind, index)| (kind, Some(index)));
    let Some((_, feature)) = KNOWN.iter().find(|(known, _)| *known == kind) else {
        let known: Vec<&str> = KNOWN.iter().map(|(known, _)| *known).collect();
        return Err(fail(format!("unknown device; known are {}", known.join(", "))));
    };
    if index.is_some() && matches!(kind, "cpu" | "ndarray" | "metal") {
        return Err(fail(format!("{kind} takes no index")));
    }
    if index.is_some_and(|index| index.parse::<usize>().is_err() && !(kind == "wgpu" && index == "cpu")) {
        return Err(fail("the index after ':' must be a number, as in cuda:0".to_string()));
    }
    open(kind, index).ok_or_else(|| {
        fail(format!("not compiled into this binary; build with `cargo build --release --features {feature}`"))
    })
}

#[allow(unused_variables, unreachable_patterns, reason = "depends on the features compiled in")]
fn open(kind: &str, index: Option<&str>) -> Option<Device> {
    match kind {
        "cpu" => Some(Device::flex()),
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
        _ => None,
    }
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
        Some("cpu") => DeviceKind::Cpu,
        Some(index) => DeviceKind::DiscreteGpu(index.parse().unwrap_or(0)),
    }
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
        assert!(parse("cpu").is_ok() && parse("ndarray").is_ok());
        assert!(parse("gpu").unwrap_err().to_string().contains("known are cpu"));
        assert!(parse("cuda:x").unwrap_err().to_string().contains("number"));
        assert!(parse("cpu:1").unwrap_err().to_string().contains("no index"));
    }
}
