//! The completions that a run shows and keeps, and its summary.

use std::path::Path;

use serde_json::{Value, json};

use super::state::RlState;
use super::trainer::RlJob;
use crate::error::Result;
use crate::eval::{Evaluation, Figures};
use crate::files;
use crate::metrics::follow::StepData;
use crate::metrics::peak_rss_gb;
use crate::reward::Parts;
use crate::rollout::{Group, Rollout};

impl RlJob<'_> {
    /// Return a sample of a step's completions, with the texts of its first group if `shown`.
    pub(super) fn sample(&self, groups: &[Group], shown: bool) -> StepData {
        let rollouts = || groups.iter().flat_map(|group| &group.rollouts);
        let tokenizer = &self.rollouts.tokenizer;
        let text = |group: &Group, rollout: &Rollout| {
            let prompt = tokenizer.decode(&group.prompt, false);
            format!("{prompt}\n\n---\n\n{}", tokenizer.decode(&rollout.completion.tokens, false))
        };
        let first = groups.iter().take(usize::from(shown));
        StepData {
            lengths: rollouts().map(|rollout| rollout.length() as f64).collect(),
            entropies: rollouts().flat_map(|r| &r.completion.entropies).map(|&entropy| entropy.into()).collect(),
            texts: first.flat_map(|group| group.rollouts.iter().map(move |rollout| text(group, rollout))).collect(),
        }
    }

    /// Write the first completions of a step with their rewards and advantages.
    pub(super) fn write_completions(&self, dir: &Path, step: usize, groups: &[Group]) -> Result<()> {
        let tokenizer = &self.rollouts.tokenizer;
        let rows = groups.iter().take(2).flat_map(|group| {
            group.rollouts.iter().map(move |rollout| {
                json!({
                    "step": step,
                    "prompt": tokenizer.decode(&group.prompt, false),
                    "completion": tokenizer.decode(&rollout.completion.tokens, false),
                    "verdict": rollout.answer.verdicts.strict,
                    "length": rollout.length(),
                    "rewards": rollout.rewards.iter().map(|reward| reward.map(Parts::total)).collect::<Vec<_>>(),
                    "advantage": rollout.advantage,
                })
            })
        });
        files::write_json_lines(&dir.join(format!("completions/step_{step:05}.jsonl")), rows)
    }

    /// Return the content of `summary.json`.
    pub(super) fn summary(&self, state: &RlState, evaluation: &Evaluation) -> Value {
        let (base, last, figures) = (&state.base, evaluation.summary(), evaluation.overall());
        let number = |path: &str| base.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);
        let family = |(name, figures): (String, Figures)| {
            let row =
                json!({ "floor": figures.floor, "base": base["families"][&name], "final": last["families"][&name] });
            (name, row)
        };
        let families: serde_json::Map<String, Value> = evaluation.families().into_iter().map(family).collect();
        json!({
            "name": self.config.name,
            "seed": self.config.seed,
            "model": self.config.model.path,
            "device": self.config.device,
            "steps": state.step,
            "seconds": self.seconds().round(),
            "peak_rss_gb": peak_rss_gb(),
            "base": base["overall"],
            "final": last["overall"],
            "verdicts": { "base": base["verdicts"], "final": last["verdicts"] },
            "length_ratio": figures.mean_length / number("/overall/mean_length"),
            "accuracy_delta": figures.accuracy - number("/overall/accuracy"),
            "families": families,
            "stages": state.stages,
            "skipped_updates": state.skipped_updates,
            "note": self.config.note,
        })
    }
}
