//! Check whether a run fits into the memory of a device, with advice if it does not.

use super::DeviceMemory;
use super::estimate::MemoryEstimate;

/// Return a line that says whether the run fits and, if not, which setting to change for the largest adjustable part. A
/// run that fits the device may not fit what other programs leave of it.
///
/// The estimate is for the `cpu` device. On other devices, operations that are not fused need somewhat more memory.
pub fn fit(estimate: &MemoryEstimate, memory: Option<DeviceMemory>) -> String {
    let gigabytes = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let peak = estimate.peak() as u64;
    let Some(DeviceMemory { total, free }) = memory else {
        return format!("unknown whether {:.1} GiB fit: the device does not report its memory", gigabytes(peak));
    };
    let sizes = format!("{:.1} GiB of the device's {:.1} GiB", gigabytes(peak), gigabytes(total));
    if peak <= free {
        return format!("it fits: {sizes}");
    }
    if peak <= total {
        let free = gigabytes(free);
        return format!(
            "it fits the device but not the memory that is free now: {sizes}, of which {free:.1} GiB are free; end \
             other programs"
        );
    }
    format!("it does not fit: {sizes}; {}", advice(estimate))
}

fn advice(estimate: &MemoryEstimate) -> &'static str {
    let MemoryEstimate { gradients, optimizer, activations, head, cache, .. } = *estimate;
    if cache > gradients + activations + head {
        return "lower train.generation_cache_tokens (0 means unlimited) or train.generation_rows";
    }
    if activations.max(head) >= gradients + optimizer {
        return "lower train.tokens_per_microbatch, or set train.activation_checkpointing = \"block\"";
    }
    "train adapters ([lora] r = 16), set optim.adam_moments = \"bf16\", or use a smaller model"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_is_for_the_largest_part() {
        let memory = Some(DeviceMemory { total: 8 << 30, free: 8 << 30 });
        let gibibyte = 1 << 30;
        let base = MemoryEstimate {
            weights: 2 * gibibyte,
            gradients: gibibyte,
            optimizer: 2 * gibibyte,
            ..MemoryEstimate::default()
        };
        assert!(fit(&base, memory).starts_with("it fits: 5.1 GiB of the device's 8.0"));
        assert!(fit(&base, None).starts_with("unknown whether 5.1 GiB fit"));
        let shared = fit(&base, Some(DeviceMemory { total: 8 << 30, free: 4 << 30 }));
        assert!(
            shared.starts_with("it fits the device but not the memory that is free now")
                && shared.contains("4.0 GiB are free")
        );
        for (estimate, setting) in [
            (MemoryEstimate { activations: 6 * gibibyte, ..base }, "train.tokens_per_microbatch"),
            (MemoryEstimate { cache: 9 * gibibyte, ..base }, "train.generation_cache_tokens"),
            (MemoryEstimate { optimizer: 20 * gibibyte, ..base }, "[lora]"),
        ] {
            let line = fit(&estimate, memory);
            assert!(line.starts_with("it does not fit") && line.contains(setting), "{line}");
        }
    }
}
