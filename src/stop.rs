//! Request for an early end, set by a signal and polled by everything that takes long.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// A flag that may be set at any time, to request an early end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stop<'a>(Option<&'a AtomicBool>);

impl<'a> Stop<'a> {
    /// A flag that is never set.
    pub const NEVER: Stop<'static> = Stop(None);

    /// Wrap a flag; true requests an early end.
    pub fn new(flag: &'a AtomicBool) -> Self {
        Self(Some(flag))
    }

    /// Return whether an early end is requested.
    pub fn requested(self) -> bool {
        self.0.is_some_and(|flag| flag.load(Ordering::SeqCst))
    }

    /// Return an error once an early end is requested.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn check(self) -> Result<()> {
        if self.requested() { Err(Error::Stopped) } else { Ok(()) }
    }
}
