//! Measures the entropy conflict on the completions of a step, at the cadence of the settings.

use std::path::Path;
use std::time::Instant;

use super::cosine::gradient_cosines;
use super::learner::Learner;
use super::settings::RlTrain;
use super::update::{Example, examples, weights};
use crate::conflict::{ConflictFigures, Connectors, MeasuredCompletion, TokenTypes, Types, measure};
use crate::error::Result;
use crate::files;
use crate::metrics::Metrics;
use crate::model::CausalLm;
use crate::rollout::{Group, Rollout};
use crate::stage::Stage;
use crate::stop::Stop;
use crate::text::tokenizer::Tokenizer;

/// Measures the conflict of steps.
pub(super) struct ConflictMeter<'a> {
    settings: &'a RlTrain,
    /// `None` if no step is measured.
    connectors: Option<Connectors>,
    stop: Stop<'a>,
}

impl<'a> ConflictMeter<'a> {
    pub(super) fn new(settings: &'a RlTrain, tokenizer: &Tokenizer, stop: Stop<'a>) -> Self {
        Self { settings, connectors: (settings.conflict_steps > 0).then(|| Connectors::new(tokenizer)), stop }
    }

    /// Write the metrics `conflict/…` of a step and the time they took; count the step's tokens in `types`.
    pub(super) fn step(
        &self,
        step: usize,
        model: &CausalLm,
        groups: &[Group],
        stage: &Stage,
        types: &mut TokenTypes,
        metrics: &mut Metrics,
    ) -> Result<()> {
        let due = |every: usize| every > 0 && step.is_multiple_of(every);
        let start = Instant::now();
        if let Some(connectors) = self.connectors.as_ref().filter(|_| due(self.settings.conflict_steps)) {
            let figures = measured(groups, stage, connectors, types);
            metrics.extend("conflict/", figures.metrics());
            if let Some(ranking) = types.ranking() {
                metrics.extend("conflict/types/", ranking.metrics());
            }
            metrics.set("timing_s/conflict", start.elapsed().as_secs_f64());
        }
        if due(self.settings.conflict_cosine_steps) {
            let start = Instant::now();
            self.cosine(model, groups, stage, metrics)?;
            metrics.set("timing_s/conflict_cosine", start.elapsed().as_secs_f64());
        }
        Ok(())
    }

    fn cosine(&self, model: &CausalLm, groups: &[Group], stage: &Stage, metrics: &mut Metrics) -> Result<()> {
        let examples = examples(groups, stage);
        let weights = weights(examples.iter(), stage);
        let parts = groups.iter().flat_map(|group| group.rollouts.iter().map(|rollout| rollout.advantage));
        let moved =
            examples.into_iter().zip(parts).zip(weights).filter(|((_, advantage), weight)| {
                *weight != 0.0 && (advantage.task != 0.0 || advantage.length != 0.0)
            });
        let (moved, weights): (Vec<(Example, _)>, Vec<f32>) = moved.unzip();
        let (sequences, advantages): (Vec<_>, Vec<_>) =
            moved.into_iter().map(|(example, advantage)| (example.sequence, advantage)).unzip();
        let learner = Learner {
            stop: self.stop,
            temperature: stage.sampling.temperature,
            tokens_per_microbatch: self.settings.tokens_per_microbatch,
            activation_checkpointing: self.settings.activation_checkpointing,
            ..Learner::default()
        };
        let layers = &self.settings.conflict_cosine_layers;
        for (layer, cosine) in gradient_cosines(model, &learner, &sequences, &advantages, &weights, layers)? {
            let name = if layer.is_empty() { String::new() } else { format!("/{layer}") };
            metrics.set(format!("conflict/cosine{name}"), cosine);
        }
        Ok(())
    }

    /// Write `token_types.json` for the report.
    pub(super) fn write_types(&self, run: &Path, types: &TokenTypes) -> Result<()> {
        match self.connectors.as_ref().zip(types.ranking()) {
            Some((connectors, ranking)) => {
                files::write_json(&run.join("token_types.json"), &Types::new(&ranking, types.tokens(), connectors))
            }
            None => Ok(()),
        }
    }
}

/// Measure the completions of groups. The weights are those of the stage's loss before any rule excludes tokens: this
/// measures the advantages alone.
pub(super) fn measured(
    groups: &[Group],
    stage: &Stage,
    connectors: &Connectors,
    types: &mut TokenTypes,
) -> ConflictFigures {
    let weights = weights(examples(groups, stage).iter(), stage);
    let rollouts = groups.iter().flat_map(|group| &group.rollouts);
    let samples: Vec<MeasuredCompletion> =
        rollouts.zip(weights).map(|(rollout, weight)| sample(rollout, weight)).collect();
    measure(&samples, stage.sampling.temperature, connectors, types)
}

fn sample(rollout: &Rollout, weight: f32) -> MeasuredCompletion<'_> {
    let completion = &rollout.completion;
    MeasuredCompletion {
        tokens: &completion.tokens,
        log_probs: &completion.log_probs,
        entropies: &completion.entropies,
        sampling_entropies: &completion.sampling_entropies,
        collisions: &completion.collisions,
        collision_logs: &completion.collision_logs,
        advantage: rollout.advantage,
        correct: rollout.answer.correct,
        weight,
    }
}
