//! Studies: comparisons of methods (arms), each with several settings and seeds, at an equal budget of sampled tokens.
//!
//! [`StudyConfig`] describes the comparison and rejects uneven ones. [`Plan`] lists its runs. [`work`] executes them,
//! several at a time, each in its own process, and stores one line for every finished run ([`RunOutcome`]), so that a
//! study can be resumed, also on another machine. [`Findings`] are the results: the setting of each arm that is best on
//! the selection seeds, and its figures on the report seeds.

mod findings;
mod outcome;
mod plan;
mod work;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use findings::{ArmFindings, Findings, HeldOutFigures, Spread};
pub use outcome::{CurvePoint, RunOutcome, SourceResults, Store};
pub use plan::{Plan, Planned};
pub use work::{ProcessEnd, work};

use crate::config::{self, COUNTS, Settings};

/// A study. Its `set` overrides the settings files of all arms, an arm's `set` overrides both, and a setting overrides
/// all three. Each is a table as in a settings file, with stages by index: `stages.0.exit.max_steps = 40`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StudyConfig {
    /// Name of the study: its directory within `output_dir`.
    pub name: String,
    /// Directory that contains all runs.
    pub output_dir: PathBuf,
    /// File with the results of finished runs, relative to the study file; empty for a file in the directory of the
    /// study.
    pub results: PathBuf,
    /// Number of tokens that each run samples for training; it ends after the step that reaches this number.
    pub sampled_tokens: u64,
    /// Seeds of the runs that select the setting of each arm.
    pub choose_seeds: Vec<u64>,
    /// Seeds of the reported runs with the selected settings; must not include any of `choose_seeds`.
    pub report_seeds: Vec<u64>,
    /// Maximum completion length of a selected setting, as a fraction of the base model's. The most accurate setting of
    /// an arm within this budget is selected.
    pub length_budget: f64,
    /// Name of the arm that the others are compared with; empty for the first.
    pub against: String,
    /// Number of runs in parallel, which share the CPU cores; 0 for one per core.
    pub processes: usize,
    /// Settings that apply to all arms.
    pub set: toml::Table,
    /// Arms to compare: one method each.
    pub arms: Vec<Arm>,
}

/// One method with the settings that are tried of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Arm {
    /// Name of the arm in tables and plots.
    pub name: String,
    /// Settings file, relative to the study file.
    pub file: PathBuf,
    /// Whether to ignore the length budget in the selection, for a method that does not shorten completions.
    pub any_length: bool,
    /// Settings that apply to all runs of the arm.
    pub set: toml::Table,
    /// Candidate settings, one table each; every arm needs the same number of tables and the same learning rates.
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

/// Settings that arms must not set. `[set]` of the study must not set the first six either: the study sets them itself.
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
    /// Return the index of the arm that the others are compared with.
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
                mistakes.push(format!("{key} = {seeds:?} must list at least one seed, and each only once"));
            }
        }
        if let Some(seed) = self.report_seeds.iter().find(|seed| self.choose_seeds.contains(seed)) {
            mistakes.push(format!(
                "report_seeds has {seed}, which is also in choose_seeds: settings selected on a seed look better on it \
                 by chance; use another seed"
            ));
        }
        if self.arms.is_empty() {
            mistakes.push("arms is empty: add at least one [[arms]] table".to_string());
        }
        if !self.against.is_empty() && self.arms.iter().all(|arm| arm.name != self.against) {
            mistakes.push(format!("against = {:?} is not the name of an arm", self.against));
        }
        for (index, arm) in self.arms.iter().enumerate() {
            let at = format!("arms.{index}");
            if !ordinary(&arm.name) || self.arms[..index].iter().any(|other| other.name == arm.name) {
                mistakes.push(format!("{at}.name = {:?} must be a unique name without slashes", arm.name));
            }
            if arm.file.as_os_str().is_empty() {
                mistakes.push(format!("{at}.file is empty: give the path of a settings file"));
            }
            let (count, first) = (arm.settings.len(), self.arms[0].settings.len());
            if count == 0 {
                mistakes.push(format!("{at}.settings is empty: add {{}} to use the file unchanged"));
            } else if count != first {
                mistakes.push(format!(
                    "{at}.settings has {count} tables, but arms.0 has {first}: an arm with more settings has an \
                     advantage in the selection; give each arm the same number"
                ));
            }
            let tables = [&arm.set].into_iter().chain(&arm.settings);
            for key in tables.flat_map(plan::keys) {
                if RESERVED.iter().any(|own| key == *own || own.ends_with('.') && key.starts_with(own)) {
                    mistakes.push(format!("{at} sets {key}, which must be equal in all arms: put it in [set]"));
                }
            }
        }
        for key in plan::keys(&self.set).filter(|key| RESERVED[..6].contains(&key.as_str())) {
            mistakes.push(format!("set.{key} is set by the study: remove it"));
        }
        mistakes
    }
}

#[cfg(test)]
mod tests;
