//! The state of a reinforcement-learning run, and the choice of its next stage.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::settings::RlConfig;
use crate::conflict::TokenTypes;
use crate::objective::entropy::EntropyControl;
use crate::reward::Memory;
use crate::stage::{Stage, StepFigures};

/// The state that a resumed run needs beside weights and optimiser. Noise and data are functions of seed and draw.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct RlState {
    /// Number of finished steps.
    #[serde(skip)]
    pub(super) step: usize,
    /// Number of finished stages; each cycle through a stage counts.
    pub(super) stage: usize,
    /// Whether the controller, if there is one, is in its enhancing stage.
    enhancing: bool,
    /// The best windowed accuracy that the controller has seen, under the sampling of the current stage.
    best_accuracy: f64,
    /// How far accuracy was below its best when the stage changed. It is kept until the first window of the new stage
    /// determines that best under the new temperature and length clip.
    #[serde(default)]
    deficit: Option<f64>,
    /// Figures of the steps of the current stage; of the last stage if the run is over.
    pub(super) history: Vec<StepFigures>,
    /// Number of problems drawn so far.
    pub(super) next_draw: u64,
    /// Number of tokens sampled so far to learn from, including those of replaced groups.
    #[serde(default)]
    pub(super) sampled_tokens: u64,
    /// Stages that have begun.
    pub(super) stages: Vec<StageRecord>,
    /// Seconds spent so far.
    pub(super) seconds: f64,
    /// Evaluation of the initial model, as in the summary.
    pub(super) base: Value,
    /// Number of updates skipped because of a value that is not finite.
    pub(super) skipped_updates: usize,
    /// The entropy bonus of the current stage.
    pub(super) entropy_control: Option<EntropyControl>,
    /// The memory of rewards.
    pub(super) memory: Memory,
    /// Token types by entropy, over all steps so far.
    pub(super) token_types: TokenTypes,
}

/// A stage that has begun.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct StageRecord {
    name: String,
    first_step: usize,
    last_step: Option<usize>,
    exit: Option<String>,
}

impl RlState {
    /// Return the stage of the next step; `None` if the run is over.
    pub(super) fn stage<'a>(&self, config: &'a RlConfig) -> Option<&'a Stage> {
        let stages = &config.stages;
        if self.is_spent(config) {
            return None;
        }
        match &config.controller {
            Some(controller) if self.step >= controller.max_steps => None,
            Some(controller) => Some(&stages[controller.stage(stages, !self.enhancing)]),
            None => (self.stage < stages.len() * config.cycles).then(|| &stages[self.stage % stages.len()]),
        }
    }

    /// Whether the run has used up its token budget.
    fn is_spent(&self, config: &RlConfig) -> bool {
        config.train.max_sampled_tokens > 0 && self.sampled_tokens >= config.train.max_sampled_tokens
    }

    /// Return the state for the next step, a step of `stage`. `self` stays unchanged until the step is finished.
    pub(super) fn begin_step(&self, stage: &Stage) -> Self {
        let mut next = Self { step: self.step + 1, ..self.clone() };
        if next.history.is_empty() {
            let (name, first_step) = (stage.name.clone(), next.step);
            next.stages.push(StageRecord { name, first_step, last_step: None, exit: None });
        }
        next
    }

    /// Record a finished step. If it is the last step of the stage, end the stage and return why.
    pub(super) fn end_step(&mut self, config: &RlConfig, figures: StepFigures) -> Option<String> {
        self.history.push(figures);
        self.end_stage(config)
    }

    /// End the stage if it is over, and return why. The history of the last stage is kept, so that the run can be
    /// extended.
    fn end_stage(&mut self, config: &RlConfig) -> Option<String> {
        let exit = self.exit(config)?;
        if let Some(record) = self.stages.last_mut() {
            (record.last_step, record.exit) = (Some(self.step), Some(exit.clone()));
        }
        self.stage += 1;
        if self.stage(config).is_some() {
            self.enhancing = !self.enhancing;
            self.history.clear();
            self.entropy_control = None;
        }
        Some(exit)
    }

    /// Return why the current stage is over, if it is.
    fn exit(&mut self, config: &RlConfig) -> Option<String> {
        if self.is_spent(config) {
            return Some("sampled tokens".to_string());
        }
        let Some(controller) = &config.controller else {
            return config.stages[self.stage % config.stages.len()].exit(&self.history).map(str::to_string);
        };
        if self.step >= controller.max_steps {
            return Some("steps".to_string());
        }
        let accuracy = controller.accuracy(&self.history)?;
        if let Some(deficit) = self.deficit.take() {
            self.best_accuracy = accuracy + deficit;
        }
        let reason = controller.switch(!self.enhancing, &self.history, self.best_accuracy);
        self.best_accuracy = self.best_accuracy.max(accuracy);
        self.deficit = reason.is_some().then_some(self.best_accuracy - accuracy);
        reason
    }

    /// Check again whether the current stage of a resumed run is over, since its settings may have changed. Return
    /// whether the run was over and now continues.
    pub(super) fn reopen(&mut self, config: &RlConfig) -> bool {
        let Some(record) = self.stages.last_mut().filter(|_| !self.history.is_empty()) else { return false };
        let was_over = record.last_step.take().is_some();
        record.exit = None;
        self.stage -= usize::from(was_over);
        self.end_stage(config);
        was_over && self.stage(config).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Accuracy fell from 0.9 to 0.7 and is 0.6 at temperature 1.2: it has recovered at 0.75, not at 0.85.
    #[test]
    fn the_best_accuracy_is_one_under_the_sampling_of_the_stage() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/methods/closed_loop.toml");
        let sets = ["controller.window=2", "controller.min_steps=2", "controller.accuracy_drop=0.1"];
        let config: RlConfig = crate::config::load(Some(&file), &sets.map(String::from)).unwrap();
        let mut state = RlState::default();
        let mut run = |accuracies: &[f64]| {
            let ends = accuracies.iter().map(|&accuracy| {
                let stage = state.stage(&config).unwrap();
                state = state.begin_step(stage);
                state.end_step(&config, StepFigures { length: 50.0, entropy: 0.3, accuracy, cancelled: None })
            });
            ends.flatten().collect::<Vec<_>>()
        };
        assert_eq!(run(&[0.9, 0.9, 0.7]), Vec::<String>::new());
        assert_eq!(run(&[0.7]), ["accuracy 0.700 has fallen from 0.900"]);
        assert_eq!(run(&[0.6, 0.6, 0.7, 0.7]), Vec::<String>::new());
        assert_eq!(run(&[0.8]), ["accuracy 0.750 is near its best, 0.800"]);
        // Back at temperature 1, where accuracy is still 0.05 below its best.
        assert_eq!(run(&[0.85, 0.85, 0.79]), Vec::<String>::new());
        assert_eq!(run(&[0.77]), ["accuracy 0.780 has fallen from 0.900"]);
    }
}
