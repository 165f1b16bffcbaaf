//! The section `sampling` of a stage: the distribution of its completions, and their length clips.

use serde::{Deserialize, Serialize};

use crate::config::{self, LENGTHS};
use crate::generate::Distribution;

/// The distribution of a stage's completions, and their length clips.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StageSampling {
    /// Sampling temperature, also applied in the loss.
    pub temperature: f32,
    /// Top-k sampling: number of most probable tokens to keep; 0 disables. The loss uses the full distribution,
    /// regardless of this and the next three settings.
    pub top_k: usize,
    /// Nucleus sampling: cumulative probability of the most probable tokens to keep; 1 disables.
    pub top_p: f32,
    /// Min-p sampling: minimum probability of a token relative to that of the most probable token; 0 disables.
    pub min_p: f32,
    /// Repetition penalty: divides positive and multiplies negative logits of tokens that occurred before; 1 disables.
    pub repetition_penalty: f32,
    /// Maximum completion length L in tokens; a completion that reaches it unfinished is truncated and graded as
    /// incorrect.
    pub max_completion_length: usize,
    /// Later values of `max_completion_length`, each from a given step of the stage (ThinkPrune, arXiv 2504.01296).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub max_completion_length_schedule: Vec<LengthClip>,
    /// Dynamic sampling: maximum number of batches sampled per step to replace groups whose completions all have the
    /// same reward. A step that still has too few groups continues with those it has. 0 and 1 disable replacement.
    pub max_num_gen_batches: usize,
}

impl Default for StageSampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_completion_length: 512,
            max_completion_length_schedule: Vec::new(),
            max_num_gen_batches: 0,
        }
    }
}

/// A length clip that applies from a given step of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LengthClip {
    /// Number of completed steps of the stage from which the value applies, at least 1.
    pub step: usize,
    /// Value of `max_completion_length` from then on.
    pub value: usize,
}

impl StageSampling {
    /// Return the sampling distribution of completions.
    pub fn distribution(&self) -> Distribution {
        let Self { repetition_penalty, temperature, top_k, top_p, min_p, .. } = *self;
        Distribution { repetition_penalty, temperature, top_k, top_p, min_p }
    }

    /// Return all length clips of the stage, in the order of their steps.
    pub fn clips(&self) -> impl Iterator<Item = usize> {
        let later = self.max_completion_length_schedule.iter().map(|clip| clip.value);
        [self.max_completion_length].into_iter().chain(later)
    }

    /// Return the mistakes in these settings, one line each.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = self.distribution().mistakes();
        if self.temperature == 0.0 {
            mistakes.push(
                "temperature = 0 must be positive: training needs different completions of a problem".to_string(),
            );
        }
        let greedy =
            "= 1 keeps only the most probable token, and all completions of a group would be equal: set another value";
        for (key, _) in [("top_k", self.top_k == 1), ("min_p", self.min_p == 1.0)].iter().filter(|(_, one)| *one) {
            mistakes.push(format!("{key} {greedy}"));
        }
        mistakes.extend(config::count("max_completion_length", self.max_completion_length, 1, LENGTHS));
        let mut before = 0;
        for (k, LengthClip { step, value }) in self.max_completion_length_schedule.iter().copied().enumerate() {
            let key = format!("max_completion_length_schedule.{k}");
            mistakes.extend(config::count(&format!("{key}.value"), value, 1, LENGTHS));
            if step <= before {
                mistakes.push(format!("{key}.step = {step} must be above {before}"));
            }
            before = step;
        }
        mistakes.extend(config::count("max_num_gen_batches", self.max_num_gen_batches, 0, 10_000));
        mistakes
    }
}
