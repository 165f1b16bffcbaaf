//! The `tempering` binary.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use tempering::cli::{Cli, exit_code, message, run};
use tempering::ranks;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    keep_freed_pages();
    join_thread_pool();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .log_internal_errors(false)
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()))
        .init();
    // With several ranks only rank 0 prints; the others have sent it their errors.
    let prints = ranks::RankInfo::here().is_none_or(|info| info.rank == 0);
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(_) if !prints => return ExitCode::SUCCESS,
        Err(error) => error.exit(),
    };
    match run(cli) {
        Err(_) if !prints => ExitCode::SUCCESS,
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed, or on a full disk.
            let _ = writeln!(std::io::stderr(), "error: {}", message(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Keep freed pages in the process. A step allocates and frees the same large buffers repeatedly; returning their
/// pages to the system costs a page fault each (measured: a quarter of a training step).
#[allow(unsafe_code)]
fn keep_freed_pages() {
    // `mi_option_purge_delay` of the C header, which the crate does not export; so Cargo.toml pins its version.
    const PURGE_DELAY: i32 = 15;
    // SAFETY: sets an integer option of the allocator; called first, while there is one thread.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}

/// Add this thread to the rayon pool. Otherwise it would sleep and wake for each of the hundreds of parallel
/// operations of a decoding step, each of tens of microseconds (measured: a fifth of a small step).
///
/// Never wait on it for a thread outside the pool that needs the pool: with one core the pool has no other thread.
fn join_thread_pool() {
    let pool = rayon::ThreadPoolBuilder::new().use_current_thread();
    let pool = match ranks::threads() {
        Some(threads) => pool.num_threads(threads),
        None => pool,
    };
    pool.build_global().expect("nothing has used the pool yet");
}
