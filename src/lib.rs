//! Makes reasoning language models concise without making them worse.
//!
//! Reinforcement learning with verifiable rewards makes chains of thought long; penalising length makes them short and
//! often wrong. The method here (after arXiv 2511.14258) works in two stages: *compress*, with a hard length clip and
//! absolute positive-only advantages, then *enhance*, group-relative and at a higher temperature, inside the compact
//! mode. Stage 1 follows a third-party summary of the paper, stage 2 is a reconstruction.
//!
//! # Reading order
//!
//! `train/rl.rs` (the loop) → [`stage`] and [`objective`] (what is learned) → [`generate`] (sampling) → [`model`] (the
//! decoder) → [`ops`] (its operations). Data flow: [`data`] are rendered by [`text`], completed by [`generate`], graded
//! by [`verify`], turned into advantages by [`objective`], into gradients by [`train::batch`], into a step by
//! [`optim`]. [`conflict`] measures the effects of accuracy and length on the same tokens, [`metrics`] and [`report`]
//! record and show a run, [`eval`] evaluates models, [`study`] compares methods.
//!
//! A program that trains with its own reward or problems starts at [`train::Trainer`].

pub mod bench;
#[cfg(feature = "cli")]
pub mod cli;
pub mod config;
pub mod conflict;
mod contain;
pub mod data;
pub mod device;
pub mod doctor;
pub mod error;
pub mod eval;
mod files;
pub mod generate;
pub mod hub;
mod json;
pub mod metrics;
pub mod model;
pub mod noise;
pub mod objective;
pub mod ops;
pub mod optim;
pub mod ranks;
#[cfg(feature = "cli")]
pub mod report;
pub mod reward;
pub mod rollout;
pub mod stage;
pub mod stop;
pub mod study;
pub mod tasks;
pub mod text;
mod threads;
pub mod train;
pub mod verify;

pub use error::{Error, Result};
