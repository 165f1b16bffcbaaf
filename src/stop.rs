//! A request to end early, made by a signal and looked at by everything that takes long.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// A flag that somebody else may set, at any time, to ask for an early end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stop<'a>(Option<&'a AtomicBool>);

impl<'a> Stop<'a> {
    /// A request that never comes.
    pub const NEVER: Stop<'static> = Stop(None);

    /// The request that `flag` stands for: made when it is true.
    pub fn new(flag: &'a AtomicBool) -> Self {
        Self(Some(flag))
    }

    /// Whether an early end is asked for.
    pub fn requested(self) -> bool {
        self.0.is_some_and(|flag| flag.load(Ordering::SeqCst))
    }

    /// Fails once an early end is asked for.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn check(self) -> Result<()> {
        if self.requested() { Err(Error::Stopped) } else { Ok(()) }
    }
}
