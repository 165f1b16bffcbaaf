//! Groups: the completions of one problem in one step, with their rewards and advantages.

use crate::data::Problem;
use crate::generate::Completion;
use crate::objective::advantage::ScoredGroup;
use crate::objective::advantages;
use crate::reward::{Answer, Parts};
use crate::stage::Stage;

/// A completion with its answer, its rewards and its advantage.
#[derive(Debug, Clone)]
pub struct Rollout {
    /// The sampled completion.
    pub completion: Completion,
    /// The graded text of the completion.
    pub answer: Answer,
    /// One value per reward of the stage; `None` where a reward does not apply.
    pub rewards: Vec<Option<Parts>>,
    /// The advantage. Zero until [`assign_advantages`] is called.
    pub advantage: Parts,
}

impl Rollout {
    /// Number of tokens of the completion, including the stop token.
    pub fn length(&self) -> usize {
        self.completion.tokens.len()
    }

    /// Return the weighted sum of the rewards, or `None` if no reward applies.
    pub fn reward(&self, weights: &[f32]) -> Option<f32> {
        let judged = self.rewards.iter().zip(weights).filter_map(|(reward, weight)| Some((*reward)?.total() * weight));
        judged.reduce(|sum, reward| sum + reward)
    }
}

/// The completions of one problem in one step.
#[derive(Debug, Clone)]
pub struct Group {
    /// The problem.
    pub problem: Problem,
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// The completions with their rewards.
    pub rollouts: Vec<Rollout>,
    /// Whether CEEH classifies the problem as hard ([`crate::reward::Memory::is_hard`]).
    pub hard: bool,
}

impl Group {
    /// Iterate over the rollouts' token ids as `(prompt, completion)`.
    pub fn sequences(&self) -> impl Iterator<Item = (&[u32], &[u32])> {
        self.rollouts.iter().map(|rollout| (self.prompt.as_slice(), rollout.completion.tokens.as_slice()))
    }

    /// Whether the rewards of the completions differ. A group with equal rewards has no learning signal.
    pub fn differs(&self, weights: &[f32]) -> bool {
        let reward = |rollout: &Rollout| rollout.reward(weights).unwrap_or(0.0);
        self.rollouts.windows(2).any(|pair| reward(&pair[0]) != reward(&pair[1]))
    }
}

/// Set the advantages of the completions of a step by the rule of `stage`.
pub fn assign_advantages(groups: &mut [Group], stage: &Stage) {
    let inputs = |group: &Group| ScoredGroup {
        rewards: (0..stage.rewards.len()).map(|k| group.rollouts.iter().map(|r| r.rewards[k]).collect()).collect(),
        lengths: group.rollouts.iter().map(Rollout::length).collect(),
        correct: group.rollouts.iter().map(|rollout| rollout.answer.correct).collect(),
    };
    let inputs: Vec<ScoredGroup> = groups.iter().map(inputs).collect();
    let all = advantages(stage.advantage, stage.difficulty_weighting.as_ref(), &inputs, &stage.weights());
    for (group, advantages) in groups.iter_mut().zip(all) {
        group.rollouts.iter_mut().zip(advantages).for_each(|(rollout, advantage)| rollout.advantage = advantage);
    }
}
