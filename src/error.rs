//! Errors that users can fix, with advice.

use std::path::{Path, PathBuf};

/// An error caused by user input: files, settings, devices. Programming errors panic instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// A file was read but its content is not what it should be.
    #[error("{path}: {message}")]
    File {
        /// The file, with `:line` where that helps.
        path: String,
        /// The problem, and what to do.
        message: String,
    },
    /// Settings are unknown, malformed or contradictory; one line each.
    #[error("{origin}: {}", problems.join("\n  "))]
    Config {
        /// The file (or "--set") the settings came from.
        origin: String,
        /// Every problem found, each naming key and value.
        problems: Vec<String>,
    },
    /// The device is not compiled in or does not exist.
    #[error("--device {name}: {message}")]
    Device {
        /// The name as typed.
        name: String,
        /// What to do.
        message: String,
    },
    /// A server that samples completions, or a process that shares the work, failed. The state of a run is saved if
    /// there is one.
    #[error("{0}")]
    Engine(String),
    /// A model or its training produced numbers that are not finite. No state is saved.
    #[error("{0}")]
    NotFinite(String),
    /// Any other error that a user can fix.
    #[error("{0}")]
    Invalid(String),
    /// The run was asked to stop (Ctrl-C); its state is saved.
    #[error("interrupted; the state is saved in {checkpoint}: continue with --resume {}", folder(checkpoint))]
    Interrupted {
        /// The newest checkpoint.
        checkpoint: PathBuf,
    },
    /// Interrupted (Ctrl-C) before there was anything to save.
    #[error("interrupted before the first step was finished, so nothing is saved; run the same command to start again")]
    Stopped,
}

/// Return the run folder of a checkpoint.
fn folder(checkpoint: &Path) -> std::path::Display<'_> {
    checkpoint.parent().unwrap_or(checkpoint).display()
}

/// Result type of the library.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Return a closure that creates an I/O error at `path`, for `map_err`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// Create an error about a malformed file.
    pub fn file(path: impl AsRef<Path>, message: impl ToString) -> Self {
        Self::File { path: path.as_ref().display().to_string(), message: message.to_string() }
    }
}
