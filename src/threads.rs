//! Division of a batch among CPU threads.
//!
//! An operation of a small model takes tens of microseconds. Dividing each of them among threads costs about as much as it
//! saves, because the threads wait for each other at every one. So each thread computes all operations for a part of the
//! batch instead: operations are divided among the threads of the current rayon pool, and here every thread is a pool of
//! its own.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::ScopedJoinHandle;

use rayon::ThreadPool;

/// Maximum parameters of a model whose batches are divided (measured: LOG.md). Larger weights do not fit into the caches, so
/// threads that read them apart wait for memory.
pub(crate) const MAX_PARAMETERS: usize = 20_000_000;

/// Return the number of threads among which a batch can be divided: 1 in a part of one.
pub(crate) fn available() -> usize {
    rayon::current_num_threads()
}

/// Return the number of threads for a batch that can be divided into `parts`: 1 if most threads would be idle, which may then
/// share every operation.
pub(crate) fn used(parts: usize) -> usize {
    let threads = available().min(parts);
    if 2 * threads < available() { 1 } else { threads.max(1) }
}

/// A pool of one thread, taken from those that are idle and put back when dropped: a call from within a part, or two at a
/// time, do not wait for each other.
struct Lent(Option<ThreadPool>);

static IDLE: Mutex<Vec<ThreadPool>> = Mutex::new(Vec::new());

impl Lent {
    fn take() -> Self {
        let idle = IDLE.lock().expect("no thread has panicked here").pop();
        let new = || rayon::ThreadPoolBuilder::new().num_threads(1).thread_name(|_| "part".to_string()).build();
        Self(Some(idle.unwrap_or_else(|| new().expect("a thread can be started"))))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        IDLE.lock().expect("no thread has panicked here").extend(self.0.take());
    }
}

/// Call `work` with each of `items` on a thread of its own, and `meanwhile` on the calling thread. Return the results in the
/// order of the items.
pub(crate) fn on_each<I: Send, T: Send>(
    items: Vec<I>,
    work: impl Fn(I) -> T + Sync,
    meanwhile: impl FnOnce(),
) -> Vec<T> {
    let work = &work;
    let pools: Vec<Lent> = items.iter().map(|_| Lent::take()).collect();
    std::thread::scope(|scope| {
        let mut threads = Vec::with_capacity(pools.len());
        for (item, pool) in items.into_iter().zip(&pools) {
            let pool = pool.0.as_ref().expect("a pool until it is dropped");
            threads.push(scope.spawn(move || pool.install(|| work(item))));
        }
        meanwhile();
        let result = |thread: ScopedJoinHandle<T>| thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        threads.into_iter().map(result).collect()
    })
}

/// Results that are taken in the order of their indices.
struct InOrder<'a, T, F> {
    /// Index of the result to take next; `None` after a panic.
    first: Option<usize>,
    /// Results that came before their turn.
    early: BTreeMap<usize, T>,
    take: &'a mut F,
}

/// Call `work` for each index below `count`, on `threads` threads at a time, and `take` with the results in the order of the
/// indices. At most `2 · threads` results are computed or wait for their turn at a time. With one thread, `work` may use all
/// threads of the current pool.
pub(crate) fn in_order<T: Send, F: FnMut(T) + Send>(
    threads: usize,
    count: usize,
    work: impl Fn(usize) -> T + Sync,
    mut take: F,
) {
    let threads = threads.min(count);
    if threads < 2 {
        return (0..count).map(work).for_each(take);
    }
    let next = AtomicUsize::new(0);
    let order = Mutex::new(InOrder { first: Some(0), early: BTreeMap::new(), take: &mut take });
    let moved = Condvar::new();
    let lock = || order.lock().unwrap_or_else(PoisonError::into_inner);
    /// Lets the others end when this thread panics.
    struct OnPanic<G: Fn()>(G);
    impl<G: Fn()> Drop for OnPanic<G> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                (self.0)();
            }
        }
    }
    let run = |()| {
        let _guard = OnPanic(|| {
            lock().first = None;
            moved.notify_all();
        });
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let is_early = |order: &mut InOrder<T, F>| order.first.is_some_and(|first| index >= first + 2 * threads);
            if index >= count || moved.wait_while(lock(), is_early).is_ok_and(|order| order.first.is_none()) {
                return;
            }
            let result = work(index);
            let mut order = lock();
            let InOrder { first: Some(first), early, take } = &mut *order else { return };
            early.insert(index, result);
            while let Some(result) = early.remove(first) {
                take(result);
                *first += 1;
            }
            moved.notify_all();
        }
    };
    on_each(vec![(); threads], run, || ());
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;
    use std::time::Duration;

    use super::*;

    #[test]
    fn results_are_taken_in_order_and_few_wait() {
        for threads in [1, 2, 3] {
            let (mut taken, begun) = (Vec::new(), AtomicUsize::new(0));
            let slow_first = |index: usize| {
                begun.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(if index == 0 { 50 } else { 0 }));
                (index, if index == 0 { begun.load(Ordering::SeqCst) } else { 0 })
            };
            in_order(threads, 40, slow_first, |result| taken.push(result));
            assert_eq!(taken.iter().map(|(index, _)| *index).collect::<Vec<_>>(), (0..40).collect::<Vec<_>>());
            assert!(taken[0].1 <= 2 * threads, "{} of {threads} threads", taken[0].1);
        }
        in_order(2, 0, |index| index, |_| panic!("nothing to take"));
    }

    #[test]
    fn a_panic_ends_all_threads() {
        for bad in [0, 5] {
            let work = |index: usize| assert!(index != bad, "index {bad}");
            assert!(catch_unwind(|| in_order(2, 100, work, |()| ())).is_err());
        }
    }

    /// A watcher of sampling may itself sample.
    #[test]
    fn calls_within_calls_do_not_wait_for_each_other() {
        let inner = |item: usize| on_each(vec![item; 3], |item| item + available(), || ());
        assert_eq!(on_each(vec![1, 2], inner, || drop(inner(3))), [[2; 3], [3; 3]]);
        let inside = on_each(vec![()], |()| (available(), std::thread::current().name().map(str::to_string)), || ());
        assert_eq!(inside, [(1, Some("part".to_string()))]);
    }
}
