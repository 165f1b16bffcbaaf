//! What goes between host and device, counted for `bench`: kernels launched, reads that wait for the device, bytes sent.
//!
//! Launches are all of the process, as CubeCL tells of them. Reads and bytes are those that pass through [`super`]'s
//! functions, which is all that sampling and training do of their own. What CubeCL sends along with a launch (shapes,
//! strides, numbers) is not counted.

use std::sync::atomic::{AtomicU64, Ordering};

static READS: AtomicU64 = AtomicU64::new(0);
static SENT: AtomicU64 = AtomicU64::new(0);

/// Notes a read that waits for the device.
pub(super) fn note_read() {
    READS.fetch_add(1, Ordering::Relaxed);
}

/// Notes bytes sent to the device.
pub(super) fn note_sent(bytes: usize) {
    SENT.fetch_add(bytes as u64, Ordering::Relaxed);
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
