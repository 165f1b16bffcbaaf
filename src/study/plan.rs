//! Runs of a study.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use toml::Value;

use super::{Arm, StudyConfig};
use crate::config::{self, to_toml};
use crate::error::{Error, Result};
use crate::files;
use crate::optim::LrScheduler;
use crate::train::{RlConfig, digests_of, settled};

/// Complete run settings for every setting of every arm.
#[derive(Debug)]
pub struct Plan {
    /// The study.
    pub config: StudyConfig,
    /// For each setting of each arm: settings of a run without its seed, and digests of the files it reads.
    runs: Vec<Vec<(RlConfig, String)>>,
}

/// One run of a study.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Index of the arm.
    pub arm: usize,
    /// Index of the setting.
    pub setting: usize,
    /// Settings of the run. Its name contains arm, setting and seed.
    pub config: RlConfig,
    /// Digest of the settings that affect the result, and of the files that the run reads.
    pub key: String,
}

/// Return the keys of a table as dotted paths (`section.key`), including those of nested tables.
pub(super) fn keys(table: &toml::Table) -> impl Iterator<Item = String> {
    flat(table).into_iter().map(|(key, _)| key)
}

fn flat(table: &toml::Table) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => {
                found.extend(flat(inner).into_iter().map(|(rest, value)| (format!("{key}.{rest}"), value)))
            }
            value => found.push((key.clone(), value)),
        }
    }
    found
}

/// Return the keys of a table with their values as text, such as `optim.learning_rate` and `0.0003`.
pub(super) fn described(table: &toml::Table) -> BTreeMap<String, String> {
    flat(table).into_iter().map(|(key, value)| (key, value.to_string())).collect()
}

impl Plan {
    /// Read the settings files of all arms, relative to the study's folder `folder`.
    ///
    /// # Errors
    /// Mistakes in the study or in a run's settings, and differences that would make the comparison uneven: another
    /// model, data, evaluation, prompt or set of learning rates in one arm than in another, or a learning rate that is
    /// not constant.
    pub fn new(config: StudyConfig, folder: &Path) -> Result<Self> {
        let runs = config
            .arms
            .iter()
            .map(|arm| arm.settings.iter().map(|setting| run(&config, arm, setting, folder)).collect())
            .collect::<Result<Vec<Vec<_>>>>()?;
        let rates = |runs: &[(RlConfig, String)]| {
            let mut rates: Vec<f64> = runs.iter().map(|(run, _)| run.optim.learning_rate).collect();
            rates.sort_by(f64::total_cmp);
            rates.dedup();
            rates
        };
        let mut problems = Vec::new();
        let evaluated =
            |run: &RlConfig| [to_toml(&run.model), to_toml(&run.data), to_toml(&run.eval), to_toml(&run.prompt)];
        for (arm, settings) in config.arms.iter().zip(&runs) {
            if settings.iter().any(|(run, _)| evaluated(run) != evaluated(&runs[0][0].0)) {
                problems.push(format!(
                    "arm {:?}: {} has a different section model, data, eval or prompt than {} of arm {:?}: put shared \
                     settings in [set]",
                    arm.name,
                    arm.file.display(),
                    config.arms[0].file.display(),
                    config.arms[0].name
                ));
            }
            let (own, first) = (rates(settings), rates(&runs[0]));
            if own != first {
                problems.push(format!(
                    "arm {:?} has the learning rates {own:?}, but arm {:?} has {first:?}: give all arms the same \
                     learning rates",
                    arm.name, config.arms[0].name
                ));
            }
            if settings.iter().any(|(run, _)| run.optim.lr_scheduler_type != LrScheduler::Constant) {
                problems.push(format!(
                    "arm {:?}: optim.lr_scheduler_type must be \"constant\": runs end after a number of tokens, so the \
                        number of steps is not known in advance",
                    arm.name
                ));
            }
        }
        if problems.is_empty() {
            Ok(Self { config, runs })
        } else {
            Err(Error::Config { origin: "study".to_string(), problems })
        }
    }

    /// Return the run of a setting with a seed.
    pub fn run(&self, arm: usize, setting: usize, seed: u64) -> Planned {
        let (mut config, reads) = self.runs[arm][setting].clone();
        config.seed = seed;
        let slug: String = (self.config.arms[arm].name.chars())
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
            .collect();
        // Name, location and note do not affect the result: the digest excludes them.
        (config.name, config.output_dir, config.note) = ("run".to_string(), "runs".into(), None);
        let key = files::sha256_of((to_toml(&config) + &reads).as_bytes())[..16].to_string();
        config.name = format!("{arm:02}_{slug}-{setting}-seed{seed}");
        config.output_dir = self.folder();
        Planned { arm, setting, config, key }
    }

    /// Return the runs for choosing settings.
    pub fn choosing(&self) -> Vec<Planned> {
        let seeds = &self.config.choose_seeds;
        // Arms vary fastest, then settings, then seeds, so that a study that is stopped early has results of every arm.
        let settings = self.runs.first().map_or(0, Vec::len);
        let of = |setting: usize, seed: u64| (0..self.runs.len()).map(move |arm| self.run(arm, setting, seed));
        seeds.iter().flat_map(|&seed| (0..settings).flat_map(move |setting| of(setting, seed))).collect()
    }

    /// Return the runs to report, for each arm with a `chosen` setting.
    pub fn reporting(&self, chosen: &[Option<usize>]) -> Vec<Planned> {
        let of = |seed: u64| {
            chosen.iter().enumerate().filter_map(move |(arm, setting)| Some(self.run(arm, (*setting)?, seed)))
        };
        self.config.report_seeds.iter().flat_map(|&seed| of(seed)).collect()
    }

    /// Return the keys of all runs that the study can have: of every setting on every seed.
    pub(super) fn keys(&self) -> BTreeSet<String> {
        let seeds = || self.config.choose_seeds.iter().chain(&self.config.report_seeds);
        let settings = self.runs.iter().enumerate().flat_map(|(arm, runs)| (0..runs.len()).map(move |at| (arm, at)));
        settings.flat_map(|(arm, setting)| seeds().map(move |&seed| self.run(arm, setting, seed).key)).collect()
    }

    /// Return the folder of the study.
    pub fn folder(&self) -> std::path::PathBuf {
        self.config.output_dir.join(&self.config.name)
    }

    /// Return the keys that a setting changes, with their values as text.
    pub fn described(&self, arm: usize, setting: usize) -> BTreeMap<String, String> {
        described(&self.config.arms[arm].settings[setting])
    }
}

fn run(study: &StudyConfig, arm: &Arm, setting: &toml::Table, folder: &Path) -> Result<(RlConfig, String)> {
    let tables = [&study.set, &arm.set, setting];
    let mut sets: Vec<String> =
        tables.into_iter().flat_map(flat).map(|(key, value)| format!("{key}={value}")).collect();
    sets.push(format!("train.max_sampled_tokens={}", study.sampled_tokens));
    let file = folder.join(&arm.file);
    let mut config: RlConfig = config::load(Some(&file), &sets)
        .map_err(|error| Error::Invalid(format!("arm {:?} of study {:?}: {error}", arm.name, study.name)))?;
    // The token budget ends the run, not the number of steps. So the limit of the controller, of the last stage or of
    // the cycles is raised to NO_END. An arm that sets this limit is rejected, since the setting would have no effect.
    const NO_END: usize = 1_000_000;
    let end = match (&mut config.controller, config.cycles) {
        (Some(controller), _) => {
            controller.max_steps = NO_END;
            "controller.max_steps".to_string()
        }
        (None, 1) => {
            let last = config.stages.len() - 1;
            config.stages[last].exit.max_steps = NO_END;
            format!("stages.{last}.exit.max_steps")
        }
        (None, _) => {
            config.cycles = NO_END;
            "cycles".to_string()
        }
    };
    if tables.into_iter().flat_map(keys).any(|key| key == end) {
        return Err(Error::Invalid(format!(
            "arm {:?} of study {:?}: {end} has no effect, because sampled_tokens ends the run: remove it",
            arm.name, study.name
        )));
    }
    (config.train.save_steps, config.train.eval_steps, config.train.log_completions_steps) = (0, 0, 0);
    // Resolves Hub names to commits: all runs of a study use the same one, even if a branch moves meanwhile.
    let config = settled(&config, None)?;
    let reads = digests_of(&config)?.into_iter().map(|(key, digest)| format!("{key} {digest}\n")).collect();
    Ok((config, reads))
}
