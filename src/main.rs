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
    join_the_pool();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .log_internal_errors(false)
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()))
        .init();
    // Of the processes that train together rank 0 speaks; the others have told it what they have to say.
    let speaks = ranks::Place::here().is_none_or(|place| place.rank == 0);
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(_) if !speaks => return ExitCode::SUCCESS,
        Err(error) => error.exit(),
    };
    match run(cli) {
        Err(_) if !speaks => ExitCode::SUCCESS,
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be gone, or on a full disk.
            let _ = writeln!(std::io::stderr(), "error: {}", message(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// A step allocates and frees the same large buffers again and again; giving their pages back to the system in between
/// costs a page fault each (a quarter of a training step was measured to be that).
#[allow(unsafe_code)]
fn keep_freed_pages() {
    // `mi_option_purge_delay` of the header, which the crate does not name: Cargo.toml holds the crate's version for it.
    const PURGE_DELAY: i32 = 15;
    // SAFETY: sets an integer option of the allocator; called first, while there is one thread.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}

/// Makes this thread one of the pool's. Otherwise it would sleep and be woken again for each of the hundreds of parallel
/// operations of a decoding step, each of tens of microseconds (a fifth of a small step was measured to be that).
///
/// So no thread outside the pool may be waited for that needs the pool: with one core there would be no other thread in it.
fn join_the_pool() {
    let pool = rayon::ThreadPoolBuilder::new().use_current_thread();
    let pool = match ranks::threads() {
        Some(threads) => pool.num_threads(threads),
        None => pool,
    };
    pool.build_global().expect("nothing has used the pool yet");
}
