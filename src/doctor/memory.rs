//! Memory of a device, queried from the system, since the tensor library does not provide it.

use std::path::Path;
use std::process::Command;

use burn::tensor::Device;
use serde::Serialize;

use crate::device::{self, Identity};

/// Memory of a device in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DeviceMemory {
    /// Total memory.
    pub total: u64,
    /// Memory that is not in use.
    pub free: u64,
}

/// Return the memory of a device: of the host for CPU backends, software adapters and Apple's shared memory; of the
/// card for AMD (from the kernel's `amdgpu` driver) and NVIDIA (from `nvidia-smi`). `None` if no source provides it.
pub fn memory(device: &Device) -> Option<DeviceMemory> {
    match device::identity(device) {
        None => host(),
        Some(Identity { pci_address: Some(address), .. }) => {
            amd(Path::new("/sys/bus/pci/devices"), &address).or_else(|| nvidia(&address))
        }
        Some(_) => host(),
    }
}

/// Return the host's memory. On Linux it is limited by the control group; on macOS all of it counts as free.
fn host() -> Option<DeviceMemory> {
    if cfg!(target_os = "macos") {
        let total = output("sysctl", &["-n", "hw.memsize"])?.trim().parse().ok()?;
        return Some(DeviceMemory { total, free: total });
    }
    let mut memory = meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
    let group = |name: &str| number(&Path::new("/sys/fs/cgroup").join(name));
    if let (Some(limit), Some(used)) = (group("memory.max"), group("memory.current")) {
        memory.total = memory.total.min(limit);
        memory.free = memory.free.min(limit.saturating_sub(used));
    }
    Some(memory)
}

/// Parse `MemTotal` and `MemAvailable` of `/proc/meminfo`. The latter includes reclaimable caches.
fn meminfo(text: &str) -> Option<DeviceMemory> {
    let field = |name: &str| -> Option<u64> {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    Some(DeviceMemory { total: field("MemTotal")?, free: field("MemAvailable")? })
}

fn amd(devices: &Path, address: &str) -> Option<DeviceMemory> {
    let total = number(&devices.join(address).join("mem_info_vram_total"))?;
    let used = number(&devices.join(address).join("mem_info_vram_used"))?;
    Some(DeviceMemory { total, free: total.saturating_sub(used) })
}

fn nvidia(address: &str) -> Option<DeviceMemory> {
    let id = format!("--id={address}");
    let query = "--query-gpu=memory.total,memory.free";
    mebibytes(&output("nvidia-smi", &[&id, query, "--format=csv,noheader,nounits"])?)
}

/// Parse total and free memory in MiB, as in `81559, 80994`.
fn mebibytes(line: &str) -> Option<DeviceMemory> {
    let (total, free) = line.trim().split_once(',')?;
    let bytes = |text: &str| text.trim().parse::<u64>().ok().map(|mebibytes| mebibytes << 20);
    Some(DeviceMemory { total: bytes(total)?, free: bytes(free)? })
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_prints_is_read() {
        let text = "MemTotal:       24604212 kB\nMemFree:         1000 kB\nMemAvailable:   23018852 kB\n";
        assert_eq!(meminfo(text), Some(DeviceMemory { total: 24_604_212 << 10, free: 23_018_852 << 10 }));
        assert_eq!(meminfo("MemTotal: many"), None);
        assert_eq!(mebibytes("81559, 80994\n"), Some(DeviceMemory { total: 81_559 << 20, free: 80_994 << 20 }));
        assert_eq!(mebibytes("No devices were found"), None);
    }

    #[test]
    fn an_amd_card_is_found_by_its_address() {
        let devices = tempfile::tempdir().unwrap();
        let card = devices.path().join("0000:03:00.0");
        std::fs::create_dir(&card).unwrap();
        std::fs::write(card.join("mem_info_vram_total"), "17163091968\n").unwrap();
        std::fs::write(card.join("mem_info_vram_used"), "163091968\n").unwrap();
        let found = amd(devices.path(), "0000:03:00.0");
        assert_eq!(found, Some(DeviceMemory { total: 17_163_091_968, free: 17_000_000_000 }));
        assert_eq!(amd(devices.path(), "0000:04:00.0"), None);
    }
}
