//! Grading a step's completions and scoring them by the rewards of a stage.

use rayon::prelude::*;

use super::batch::Sequence;
use super::stage::Stage;
use crate::data::Problem;
use crate::error::Result;
use crate::generate::Completion;
use crate::objective::advantage::Group as Compared;
use crate::objective::{Parts, advantages};
use crate::reward::{Answer, Group, Memory, Rewards, answer};
use crate::text::tokenizer::Tokenizer;
use crate::verify::Verdict;

/// A completion with all that is known of it.
pub(super) struct Scored {
    pub(super) problem: Problem,
    pub(super) sequence: Sequence,
    pub(super) completion: Completion,
    pub(super) outcome: Answer,
    pub(super) verdict: Verdict,
    pub(super) lenient: bool,
    /// One per reward of the stage.
    pub(super) rewards: Vec<Option<Parts>>,
    /// Whether its group is hard as CEEH has it ([`Memory::is_hard`]).
    pub(super) hard: bool,
    /// 0 until [`compare`] has seen the whole step.
    pub(super) advantage: Parts,
}

/// The stage completions are scored for, how many of its steps are over, and what its rewards remember.
#[derive(Clone, Copy)]
pub(super) struct Scoring<'a> {
    pub(super) stage: &'a Stage,
    pub(super) step: usize,
    pub(super) memory: &'a Memory,
    pub(super) rewards: &'a Rewards,
}

/// Whether the completions of a problem have different rewards.
pub(super) fn differ(group: &[Scored], stage: &Stage) -> bool {
    let weights = stage.weights();
    let total = |s: &Scored| -> f32 {
        s.rewards.iter().zip(&weights).filter_map(|(reward, weight)| Some(reward.as_ref()?.total() * weight)).sum()
    };
    group.windows(2).any(|pair| total(&pair[0]) != total(&pair[1]))
}

/// Advantages of the completions of a step, `group` of them per problem.
pub(super) fn compare(scored: &mut [Scored], stage: &Stage, group: usize) {
    let of_problem = |scored: &[Scored]| Compared {
        rewards: (0..stage.rewards.len()).map(|k| scored.iter().map(|s| s.rewards[k]).collect()).collect(),
        lengths: scored.iter().map(|s| s.outcome.length()).collect(),
        correct: scored.iter().map(|s| s.outcome.correct).collect(),
    };
    let groups: Vec<Compared> = scored.chunks(group).map(of_problem).collect();
    let advantages = advantages(stage.advantage, stage.difficulty_weighting.as_ref(), &groups, &stage.weights());
    for (scored, advantage) in scored.iter_mut().zip(advantages.into_iter().flatten()) {
        scored.advantage = advantage;
    }
}

/// What the rewards of a stage keep of a step, `group` completions per problem.
pub(super) fn remember(rewards: &Rewards, memory: &mut Memory, scored: &[Scored], stage: &Stage, group: usize) {
    let answers: Vec<Vec<Answer>> =
        scored.chunks(group).map(|scored| scored.iter().map(|s| s.outcome.clone()).collect()).collect();
    let of_problem =
        |(scored, answers)| Group { problem: scored, answers, limit: stage.sampling.max_completion_length, step: 0 };
    let groups: Vec<Group> =
        scored.chunks(group).map(|scored| &scored[0].problem).zip(&answers).map(of_problem).collect();
    rewards.remember(&stage.rewards, &groups, memory);
}

/// Grades and scores groups of completions, one group per problem with its prompt.
pub(super) fn score(
    problems: &[(Problem, Vec<u32>)],
    completions: Vec<Vec<Completion>>,
    scoring: Scoring,
    tokenizer: &Tokenizer,
) -> Result<Vec<Scored>> {
    let Scoring { stage, step, memory, rewards } = scoring;
    let pieces = rewards.reads_pieces(&stage.rewards);
    let answers: Vec<Vec<Answer>> = (problems.par_iter().zip(&completions))
        .map(|((problem, _), group)| group.iter().map(|c| answer(problem, tokenizer, c, pieces)).collect())
        .collect();
    let limit = stage.sampling.max_completion_length;
    let groups: Vec<Group> = (problems.iter().zip(&answers))
        .map(|((problem, _), answers)| Group { problem, answers, limit, step })
        .collect();
    let scores = rewards.score(&stage.rewards, &groups, memory)?;
    let hard: Vec<bool> = groups.iter().map(|group| memory.is_hard(group)).collect();
    let mut scored = Vec::new();
    for ((((problem, prompt), completions), answers), (scores, hard)) in
        problems.iter().zip(completions).zip(answers).zip(scores.into_iter().zip(hard))
    {
        for (i, (completion, answer)) in completions.into_iter().zip(answers).enumerate() {
            scored.push(Scored {
                problem: problem.clone(),
                sequence: Sequence { tokens: [prompt, &completion.tokens[..]].concat(), prompt: prompt.len() },
                completion,
                verdict: answer.verdicts.strict,
                lenient: answer.verdicts.lenient.is_right(),
                outcome: answer,
                rewards: scores.iter().map(|reward| reward[i]).collect(),
                hard,
                advantage: Parts::default(),
            });
        }
    }
    Ok(scored)
}
