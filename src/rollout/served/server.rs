//! Availability and load of the servers, and the choice of a server for a request.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::http::ServerClient;
use crate::error::Result;
use crate::stop::Stop;

/// Interval at which a waiting thread checks for a request to end early.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Serialises the decisions that compare several servers.
static SELECTION: Mutex<()> = Mutex::new(());

/// A server with its state and load.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) client: ServerClient,
    /// Whether both the server, by its own report, and our model compute in float32.
    pub(super) is_f32: bool,
    /// Number of in-flight requests.
    in_flight: AtomicUsize,
    /// Number of consecutive failed requests.
    failures: AtomicUsize,
    state: Mutex<ServerState>,
}

#[derive(Debug)]
enum ServerState {
    /// Gets requests.
    Available,
    /// Gets no requests until the next step, for this reason.
    Suspended(String),
    /// Gets no requests until it is restarted, for this reason: an update of its weights failed half-way.
    Broken(String),
}

impl Server {
    /// Create an available server without requests.
    pub(super) fn new(client: ServerClient, is_f32: bool) -> Self {
        let (in_flight, failures) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { client, is_f32, in_flight, failures, state: Mutex::new(ServerState::Available) }
    }

    /// Whether the server gets requests.
    pub(super) fn is_available(&self) -> bool {
        matches!(*lock(&self.state), ServerState::Available)
    }

    /// Whether the server may be reinstated without a restart.
    pub(super) fn is_suspended(&self) -> bool {
        matches!(*lock(&self.state), ServerState::Suspended(_))
    }

    /// Make the server available again.
    pub(super) fn reinstate(&self) {
        self.failures.store(0, Ordering::SeqCst);
        *lock(&self.state) = ServerState::Available;
    }

    /// Suspend the server until the next step. A broken server stays broken: a late request may still fail on it.
    pub(super) fn suspend(&self, reason: &str) {
        let mut state = lock(&self.state);
        if !matches!(*state, ServerState::Broken(_)) {
            *state = ServerState::Suspended(reason.to_string());
        }
    }

    /// Exclude the server until it is restarted.
    pub(super) fn mark_broken(&self, reason: &str) {
        *lock(&self.state) = ServerState::Broken(reason.to_string());
    }

    /// Record that the server does not run. A broken server that answers again was therefore restarted.
    pub(super) fn mark_ended(&self) {
        let mut state = lock(&self.state);
        if let ServerState::Broken(reason) = &mut *state {
            *state = ServerState::Suspended(std::mem::take(reason));
        }
    }

    /// Record whether a request succeeded, and return the number of consecutive failures.
    pub(super) fn record_outcome(&self, success: bool) -> usize {
        if success {
            self.failures.store(0, Ordering::SeqCst);
            return 0;
        }
        self.failures.fetch_add(1, Ordering::SeqCst) + 1
    }
}

/// Counts a request as in flight until it is dropped.
#[derive(Debug)]
pub(super) struct InFlight<'a>(&'a Server);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Return the index of the available server with the fewest in-flight requests, and count one more for it. Server
/// `avoid` is chosen only if no other one is available.
pub(super) fn reserve_least_busy(servers: &[Server], avoid: Option<usize>) -> Option<(usize, InFlight<'_>)> {
    // Concurrent requests would all choose the same server before any of them is counted.
    let _selection = lock(&SELECTION);
    let available = (0..servers.len()).filter(|&index| servers[index].is_available());
    let load = |&index: &usize| (Some(index) == avoid, servers[index].in_flight.load(Ordering::SeqCst));
    let index = available.min_by_key(load)?;
    servers[index].in_flight.fetch_add(1, Ordering::SeqCst);
    Some((index, InFlight(&servers[index])))
}

/// Whether a server other than `index` is available.
pub(super) fn has_other(servers: &[Server], index: usize) -> bool {
    servers.iter().enumerate().any(|(other, server)| other != index && server.is_available())
}

/// Suspends server `index` if another one is available, and returns whether one is. If the last two servers fail at the
/// same time, one of them stays available.
pub(super) fn suspend_unless_last(servers: &[Server], index: usize, reason: &str) -> bool {
    let _selection = lock(&SELECTION);
    let others = has_other(servers, index);
    if others {
        servers[index].suspend(reason);
    }
    others
}

/// Return the error message for a run without an available server, with a line for each server.
pub(super) fn unavailable_summary(servers: &[Server]) -> String {
    let line = |server: &Server| match &*lock(&server.state) {
        ServerState::Available => format!("\n  {}: available", server.client.url),
        ServerState::Suspended(reason) => format!("\n  {reason}"),
        ServerState::Broken(reason) => {
            format!("\n  {reason}\n  Its weights may be incomplete: restart it.")
        }
    };
    format!("no server of rollout.urls is available:{}", servers.iter().map(line).collect::<String>())
}

/// Call `work` for each of `items` on a thread of its own, and return the results in the order of the items.
pub(super) fn in_parallel<I: Send, T: Send>(
    items: impl IntoIterator<Item = I>,
    work: impl Fn(I) -> T + Sync,
) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = items.into_iter().map(|item| scope.spawn(move || work(item))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread for a server panicked")).collect()
    })
}

/// Return the result of `work`, which runs on a thread of its own, or fail as soon as an early end is requested. The thread
/// is then left alone: the timeout of its request ends it, unless the process ends before.
pub(super) fn until_stopped<T: Send + 'static>(stop: Stop, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    stop.check()?;
    let (send, result) = channel();
    std::thread::spawn(move || send.send(work()));
    loop {
        match result.recv_timeout(POLL_INTERVAL) {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Timeout) => stop.check()?,
            Err(RecvTimeoutError::Disconnected) => panic!("a thread for a request panicked"),
        }
    }
}

/// Sleeps for `time`; fails as soon as an early end is requested.
pub(super) fn pause(time: Duration, stop: Stop) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        stop.check()?;
        std::thread::sleep(POLL_INTERVAL.min(end.saturating_duration_since(Instant::now())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_servers() -> [Server; 2] {
        [(); 2].map(|()| Server::new(ServerClient::new("http://127.0.0.1:1", None, Duration::from_secs(1)), true))
    }

    #[test]
    fn concurrent_requests_are_spread_evenly() {
        let servers = two_servers();
        let reserve = || reserve_least_busy(&servers, None).unwrap();
        let in_flight: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(reserve)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(in_flight.iter().filter(|(index, _)| *index == 0).count(), 8);
    }

    #[test]
    fn a_late_failure_does_not_bring_a_broken_server_back() {
        let servers = two_servers();
        servers[0].mark_broken("half of its weights are lost");
        assert!(suspend_unless_last(&servers, 0, "no connection"));
        assert!(!servers[0].is_available() && !servers[0].is_suspended());
        assert!(!suspend_unless_last(&servers, 1, "no connection") && servers[1].is_available());
    }
}
