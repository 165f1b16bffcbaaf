//! Groups: the completions of one problem in one step, with what is known of them.

use crate::data::Problem;
use crate::generate::Completion;
use crate::objective::advantage::Group as Compared;
use crate::objective::advantages;
use crate::reward::{Answer, Parts};
use crate::stage::Stage;

/// A completion with what is known of it.
#[derive(Debug, Clone)]
pub struct Rollout {
    /// As it was sampled.
    pub completion: Completion,
    /// Its text, graded.
    pub answer: Answer,
    /// One per reward of the stage; none where a reward cannot judge it.
    pub rewards: Vec<Option<Parts>>,
    /// Zero until [`assign_advantages`] has seen the whole step.
    pub advantage: Parts,
}

impl Rollout {
    /// Tokens of the completion, the stop token included.
    pub fn length(&self) -> usize {
        self.completion.tokens.len()
    }

    /// The weighted sum of its rewards; none when no reward judges it.
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
    /// Tokens of its prompt.
    pub prompt: Vec<u32>,
    /// Its completions.
    pub rollouts: Vec<Rollout>,
    /// Whether the problem is hard by the record that CEEH keeps ([`crate::reward::Memory::is_hard`]).
    pub hard: bool,
}

impl Group {
    /// Prompt and completion of each rollout, in tokens.
    pub fn sequences(&self) -> impl Iterator<Item = (&[u32], &[u32])> {
        self.rollouts.iter().map(|rollout| (self.prompt.as_slice(), rollout.completion.tokens.as_slice()))
    }

    /// Whether the rewards of its completions differ: a group without spread teaches nothing.
    pub fn differs(&self, weights: &[f32]) -> bool {
        let reward = |rollout: &Rollout| rollout.reward(weights).unwrap_or(0.0);
        self.rollouts.windows(2).any(|pair| reward(&pair[0]) != reward(&pair[1]))
    }
}

/// Sets the advantages of a step's completions, by the rule of a stage.
pub fn assign_advantages(groups: &mut [Group], stage: &Stage) {
    let compared = |group: &Group| Compared {
        rewards: (0..stage.rewards.len()).map(|k| group.rollouts.iter().map(|r| r.rewards[k]).collect()).collect(),
        lengths: group.rollouts.iter().map(Rollout::length).collect(),
        correct: group.rollouts.iter().map(|rollout| rollout.answer.correct).collect(),
    };
    let compared: Vec<Compared> = groups.iter().map(compared).collect();
    let found = advantages(stage.advantage, stage.difficulty_weighting.as_ref(), &compared, &stage.weights());
    for (group, found) in groups.iter_mut().zip(found) {
        group.rollouts.iter_mut().zip(found).for_each(|(rollout, advantage)| rollout.advantage = advantage);
    }
}
