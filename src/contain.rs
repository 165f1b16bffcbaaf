//! Containment of panics in third-party readers of user files.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Run `work`, which reads a file with a third-party library. Return `None` if it panics: the file is malformed. The
/// panic prints nothing.
pub(crate) fn contained<T>(work: impl FnOnce() -> T) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    let outer = QUIET.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    QUIET.set(outer);
    outcome.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_none_and_the_next_call_is_as_before() {
        assert_eq!(contained(|| "[]".parse::<u32>().expect("a number")), None);
        assert_eq!(contained(|| contained(|| "7".parse::<u32>().expect("a number"))), Some(Some(7)));
        assert!(!QUIET.get());
    }
}
