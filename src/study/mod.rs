//! Studies: arms of a comparison, each with several settings and seeds, at an equal budget of sampled tokens.
//!
//! [`StudyConfig`] says what is compared and refuses what would be uneven; [`Plan`] is the list of runs that follows from
//! it; [`work`] does them, several at a time, each by a process of its own, and keeps one line of every run that is done
//! ([`Outcome`]), so that a study goes on where it was left, on another machine too. [`Findings`] are what comes out: the
//! setting of each arm that is best on some seeds, and what it is worth on others.

mod findings;
mod outcome;
mod plan;
mod work;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use findings::{ArmFindings, Findings, Measured, Spread};
pub use outcome::{Moment, Outcome, Source, Store};
pub use plan::{Plan, Planned};
pub use work::{Done, work};

use crate::config::{self, COUNTS, Settings};

/// A study. Its `set` lies over the files of all arms, an arm's `set` over that, a setting over both; each is a table of
/// settings as they stand in a file of settings, with the number of a stage for a name: `stages.0.exit.max_steps = 40`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StudyConfig {
    /// Its folder within `output_dir`.
    pub name: String,
    /// Folder of all runs.
    pub output_dir: PathBuf,
    /// File of the results of finished runs, relative to the study's own; within its folder when empty.
    pub results: PathBuf,
    /// Tokens that each run samples to learn from: it is over with the step that reaches them.
    pub sampled_tokens: u64,
    /// Seeds on which the setting of an arm is chosen.
    pub choose_seeds: Vec<u64>,
    /// Seeds on which the chosen settings are reported; none of them is a seed to choose by.
    pub report_seeds: Vec<u64>,
    /// An arm's setting is the most accurate one whose completions are at most this share of the base's length.
    pub length_budget: f64,
    /// The arm that the others are compared with; the first when empty.
    pub against: String,
    /// Runs at a time, which share the processor's cores; 0 for one per core.
    pub processes: usize,
    /// Settings of all arms.
    pub set: toml::Table,
    /// What is compared.
    pub arms: Vec<Arm>,
}

/// One method with the settings that are tried of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Arm {
    /// Its name in tables and plots.
    pub name: String,
    /// File of settings, relative to the study's own.
    pub file: PathBuf,
    /// Whether its setting is chosen without the length budget: for a method that does not shorten.
    pub any_length: bool,
    /// Settings of the arm.
    pub set: toml::Table,
    /// What is tried: as many tables as every other arm has, with the same learning rates.
    pub settings: Vec<toml::Table>,
}

impl Default for StudyConfig {
    fn default() -> Self {
        Self {
            name: "study".to_string(),
            output_dir: "runs".into(),
            results: PathBuf::new(),
            sampled_tokens: 500_000,
            choose_seeds: vec![0],
            report_seeds: vec![1, 2],
            length_budget: 0.4,
            against: String::new(),
            processes: 0,
            set: toml::Table::new(),
            arms: Vec::new(),
        }
    }
}

/// What only the study says, since it must be alike in all arms, or is the study's own to give.
const RESERVED: [&str; 9] = [
    "seed",
    "name",
    "output_dir",
    "train.max_sampled_tokens",
    "train.eval_steps",
    "train.save_steps",
    "data.",
    "model.",
    "eval.",
];

impl StudyConfig {
    /// The arm that the others are compared with.
    pub fn against(&self) -> usize {
        self.arms.iter().position(|arm| arm.name == self.against).unwrap_or(0)
    }
}

impl Settings for StudyConfig {
    fn validate(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let ordinary = |name: &str| !name.is_empty() && !name.contains(['/', '\\']) && !name.starts_with('.');
        if !ordinary(&self.name) {
            mistakes.push(format!("name = {:?} must be the name of a folder", self.name));
        }
        mistakes.extend(config::count("sampled_tokens", self.sampled_tokens as usize, 1, COUNTS));
        mistakes.extend(config::count("processes", self.processes, 0, 1024));
        if !(self.length_budget > 0.0 && self.length_budget <= 1.0) {
            mistakes.push(format!("length_budget = {} must be above 0 and at most 1", self.length_budget));
        }
        for (key, seeds) in [("choose_seeds", &self.choose_seeds), ("report_seeds", &self.report_seeds)] {
            if seeds.is_empty() || seeds.iter().collect::<BTreeSet<_>>().len() < seeds.len() {
                mistakes.push(format!("{key} = {seeds:?} must be one seed or more, each once"));
            }
        }
        if let Some(seed) = self.report_seeds.iter().find(|seed| self.choose_seeds.contains(seed)) {
            mistakes.push(format!(
                "report_seeds has {seed}, by which settings are chosen: what is best there is so by chance, too"
            ));
        }
        if self.arms.is_empty() {
            mistakes.push("arms is empty: add at least one [[arms]] table".to_string());
        }
        if !self.against.is_empty() && self.arms.iter().all(|arm| arm.name != self.against) {
            mistakes.push(format!("against = {:?} is the name of no arm", self.against));
        }
        for (index, arm) in self.arms.iter().enumerate() {
            let at = format!("arms.{index}");
            if !ordinary(&arm.name) || self.arms[..index].iter().any(|other| other.name == arm.name) {
                mistakes.push(format!("{at}.name = {:?} must be a name of its own, without slashes", arm.name));
            }
            if arm.file.as_os_str().is_empty() {
                mistakes.push(format!("{at}.file is empty: name a file of settings"));
            }
            let (count, first) = (arm.settings.len(), self.arms[0].settings.len());
            if count == 0 {
                mistakes.push(format!("{at}.settings is empty: add {{}} for the file as it is"));
            } else if count != first {
                mistakes.push(format!(
                    "{at}.settings has {count} tables where arms.0 has {first}: more tries are a better choice; give each \
                     arm as many"
                ));
            }
            let tables = [&arm.set].into_iter().chain(&arm.settings);
            for key in tables.flat_map(plan::keys) {
                if RESERVED.iter().any(|own| key == *own || own.ends_with('.') && key.starts_with(own)) {
                    mistakes.push(format!("{at} sets {key}, which must be alike in all arms: put it in [set]"));
                }
            }
        }
        for key in plan::keys(&self.set).filter(|key| RESERVED[..6].contains(&key.as_str())) {
            mistakes.push(format!("set.{key} is the study's own to give: remove it"));
        }
        mistakes
    }
}

#[cfg(test)]
mod tests;
