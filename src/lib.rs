//! Makes reasoning language models concise without making them worse.

pub mod bench;
pub mod cli;
pub mod config;
pub mod data;
pub mod device;
pub mod error;
pub mod eval;
mod files;
pub mod generate;
pub mod metrics;
pub mod model;
pub mod noise;
pub mod objective;
pub mod ops;
pub mod optim;
pub mod problems;
pub mod report;
pub mod reward;
pub mod tasks;
pub mod text;
pub mod train;

pub use error::{Error, Result};
