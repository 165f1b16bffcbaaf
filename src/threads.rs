//! Division of a batch among CPU threads.
//!
//! An operation of a small model takes tens of microseconds. Dividing each of them among threads costs about as much as it
//! saves, because the threads wait for each other at every one. So each thread computes all operations for a part of the
//! batch instead: operations are divided among the threads of the current rayon pool, and here every thread is a pool of
//! its own.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::ThreadPool;

/// Maximum parameters of a model whose batches are divided (measured: LOG.md). Larger weights do not fit into the caches, so
/// threads that read them apart wait for memory.
pub(crate) const MAX_PARAMETERS: usize = 20_000_000;

/// Return the number of threads among which a batch can be divided: 1 in a part of one.
pub(crate) fn available() -> usize {
    rayon::current_num_threads()
}

/// Return `count` pools of one thread each, which stay until the process ends.
fn pools(count: usize) -> Vec<&'static ThreadPool> {
    static POOLS: Mutex<Vec<&'static ThreadPool>> = Mutex::new(Vec::new());
    let mut pools = POOLS.lock().expect("no thread has panicked here");
    for index in pools.len()..count {
        let builder = rayon::ThreadPoolBuilder::new().num_threads(1).thread_name(move |_| format!("part-{index}"));
        pools.push(Box::leak(Box::new(builder.build().expect("a thread can be started"))));
    }
    pools[..count].to_vec()
}

/// Call `work` with each of `items` on a thread of its own, and `meanwhile` on the calling thread. Return the results in the
/// order of the items.
pub(crate) fn on_each<I: Send, T: Send>(
    items: Vec<I>,
    work: impl Fn(I) -> T + Sync,
    meanwhile: impl FnOnce(),
) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let started = |(item, pool): (I, &'static ThreadPool)| scope.spawn(move || pool.install(|| work(item)));
        let pools = pools(items.len());
        let threads: Vec<_> = items.into_iter().zip(pools).map(started).collect();
        meanwhile();
        let result =
            |thread: std::thread::ScopedJoinHandle<T>| thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        threads.into_iter().map(result).collect()
    })
}

/// Call `work` for each index below `count`, on `threads` threads at a time, and `take` with the results in the order of the
/// indices. With one thread, `work` may use all threads of the current pool.
pub(crate) fn in_order<T: Send>(
    threads: usize,
    count: usize,
    work: impl Fn(usize) -> T + Sync,
    mut take: impl FnMut(T) + Send,
) {
    let threads = threads.min(count);
    if threads < 2 {
        return (0..count).map(work).for_each(take);
    }
    let next = AtomicUsize::new(0);
    // The index of the result to take next, results that came before their turn, and `take`.
    let order = Mutex::new((0, BTreeMap::new(), &mut take));
    let run = |()| {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            let result = work(index);
            let mut order = order.lock().expect("no thread has panicked");
            let (first, early, take) = &mut *order;
            early.insert(index, result);
            while let Some(result) = early.remove(first) {
                take(result);
                *first += 1;
            }
        }
    };
    on_each(vec![(); threads], run, || ());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_taken_in_order() {
        for threads in [1, available().min(2)] {
            let mut taken = Vec::new();
            let slow_first = |index: usize| {
                std::thread::sleep(std::time::Duration::from_millis(if index == 0 { 20 } else { 0 }));
                index
            };
            in_order(threads, 9, slow_first, |index| taken.push(index));
            assert_eq!(taken, (0..9).collect::<Vec<_>>());
        }
        in_order(2, 0, |index| index, |_| panic!("nothing to take"));
    }

    #[test]
    fn operations_of_a_part_stay_on_its_thread() {
        let seen =
            on_each(vec![7], |item| (item, available(), std::thread::current().name().map(str::to_string)), || ());
        assert_eq!(seen, [(7, 1, Some("part-0".to_string()))]);
    }
}
