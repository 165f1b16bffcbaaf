//! What goes between host and device: sending and reading, and the counts of both for `bench`, with the kernels launched.
//!
//! Launches are all of the process, as CubeCL tells of them. Reads and bytes are those that pass through these
//! functions, which is all that sampling and training do of their own. What CubeCL sends along with a launch (shapes,
//! strides, numbers) is not counted.

use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::kind::Basic;
use burn::tensor::{Device, Int, Tensor, TensorData, Transaction};

static READS: AtomicU64 = AtomicU64::new(0);
static SENT: AtomicU64 = AtomicU64::new(0);

/// Notes a read that waits for the device.
fn note_read() {
    READS.fetch_add(1, Ordering::Relaxed);
}

/// Notes bytes sent to the device.
pub(super) fn note_sent(bytes: usize) {
    SENT.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// A tensor's values, copied to the host where they are not there already.
///
/// # Panics
/// When the tensor is not f32.
pub(crate) fn to_host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    note_read();
    values(x.into_data())
}

/// The values of several tensors, in one read.
///
/// # Panics
/// When a tensor is not f32.
pub(crate) fn to_host_together(tensors: Vec<Tensor<1>>) -> Vec<Vec<f32>> {
    if tensors.is_empty() {
        return Vec::new();
    }
    note_read();
    let all = tensors.into_iter().fold(Transaction::default(), Transaction::register);
    all.execute().into_iter().map(values).collect()
}

fn values(data: TensorData) -> Vec<f32> {
    data.try_into_vec().unwrap_or_else(|error| panic!("tensor is not f32: {error:?}"))
}

/// A tensor on the device, of the device's own format for its kind.
pub(crate) fn to_device<const D: usize, K: Basic>(data: TensorData, device: &Device) -> Tensor<D, K> {
    let tensor = Tensor::from_data(data, device);
    note_sent(tensor.shape().num_elements() * tensor.dtype().size());
    tensor
}

/// Indices on the device.
pub(super) fn index(indices: &[i64], device: &Device) -> Tensor<1, Int> {
    to_device(TensorData::from(indices), device)
}

/// Counts, each since some beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Kernels launched.
    pub launches: u64,
    /// Reads that wait for the device, of one tensor or of several at once.
    pub reads: u64,
    /// Bytes sent to the device.
    pub sent: u64,
}

impl std::ops::Sub for Traffic {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            launches: self.launches - earlier.launches,
            reads: self.reads - earlier.reads,
            sent: self.sent - earlier.sent,
        }
    }
}

/// Counts for as long as it lives.
pub(crate) struct Counter {
    #[cfg(feature = "gpu")]
    launches: std::sync::Arc<gpu::Launches>,
    #[cfg(feature = "gpu")]
    _observation: cubecl::logging::LaunchObservation,
}

impl Counter {
    /// Begins to count launches.
    pub(crate) fn new() -> Self {
        #[cfg(feature = "gpu")]
        let launches = std::sync::Arc::new(gpu::Launches::default());
        Self {
            #[cfg(feature = "gpu")]
            _observation: cubecl::logging::LaunchObservation::new(launches.clone()),
            #[cfg(feature = "gpu")]
            launches,
        }
    }

    /// The counts so far.
    pub(crate) fn now(&self) -> Traffic {
        Traffic {
            #[cfg(feature = "gpu")]
            launches: self.launches.0.load(Ordering::Relaxed),
            #[cfg(not(feature = "gpu"))]
            launches: 0,
            reads: READS.load(Ordering::Relaxed),
            sent: SENT.load(Ordering::Relaxed),
        }
    }
}

#[cfg(feature = "gpu")]
mod gpu {
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(Default)]
    pub(super) struct Launches(pub(super) AtomicU64);

    impl cubecl::logging::LaunchObserver for Launches {
        fn launched(&self, _kernel: &'static str) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}
