//! Transfers between host and device, and counts of transfers and kernel launches for `bench`.
//!
//! Launches are those of the whole process, as CubeCL reports them. Reads and bytes are those of the functions below,
//! which are all the explicit transfers of sampling and training. Data that CubeCL sends with a launch (shapes,
//! strides, scalars) is not counted.

use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::kind::Basic;
use burn::tensor::{Device, Int, Tensor, TensorData, Transaction};

static READS: AtomicU64 = AtomicU64::new(0);
static SENT: AtomicU64 = AtomicU64::new(0);

/// Count a blocking read from the device.
fn note_read() {
    READS.fetch_add(1, Ordering::Relaxed);
}

/// Count bytes sent to the device.
pub(super) fn note_sent(bytes: usize) {
    SENT.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// Return a tensor's values on the host, copied if they are on another device.
///
/// # Panics
/// If the tensor is not f32.
pub(crate) fn to_host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    note_read();
    values(x.into_data())
}

/// Return the values of several tensors, with one read.
///
/// # Panics
/// If a tensor is not f32.
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

/// Send `data` to the device, in the device's default format for its kind.
pub(crate) fn to_device<const D: usize, K: Basic>(data: TensorData, device: &Device) -> Tensor<D, K> {
    let tensor = Tensor::from_data(data, device);
    note_sent(tensor.shape().num_elements() * tensor.dtype().size());
    tensor
}

/// Send indices to the device.
pub(super) fn index(indices: &[i64], device: &Device) -> Tensor<1, Int> {
    to_device(TensorData::from(indices), device)
}

/// Cumulative counts; the difference of two is that of an interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Kernels launched.
    pub launches: u64,
    /// Blocking reads from the device, each of one or several tensors.
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

/// Counts kernel launches while it is alive.
pub(crate) struct Counter {
    #[cfg(feature = "gpu")]
    launches: std::sync::Arc<gpu::Launches>,
    #[cfg(feature = "gpu")]
    _observation: cubecl::logging::LaunchObservation,
}

impl Counter {
    /// Start to count launches.
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

    /// Return the counts so far.
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
