//! Grading a step's completions and scoring them by the rewards of a stage, on all cores.

use rayon::prelude::*;

use super::batch::Sequence;
use super::stage::Stage;
use crate::data::Problem;
use crate::error::{Error, Result};
use crate::generate::Completion;
use crate::metrics::Metrics;
use crate::objective::advantage::Group;
use crate::objective::rewards::{Context, Outcome, RewardState, Trace, Visit};
use crate::objective::{Parts, RewardKind, advantages};
use crate::reward::{self, Format, Repetition, Reward, RewardCommand, RewardProgram};
use crate::text::tokenizer::Tokenizer;
use crate::verify::{Graded, Verdict, grade};

/// A completion with all that is known of it.
pub(super) struct Scored {
    /// Its problem.
    pub(super) problem: u64,
    pub(super) sequence: Sequence,
    pub(super) completion: Completion,
    pub(super) outcome: Outcome,
    pub(super) verdict: Verdict,
    pub(super) lenient: bool,
    /// One per reward of the stage.
    pub(super) rewards: Vec<Option<Parts>>,
    /// Whether its group is hard as CEEH has it ([`RewardState::is_hard`]).
    pub(super) hard: bool,
    /// 0 until [`compare`] has seen the whole step.
    pub(super) advantage: Parts,
}

/// The stage completions are scored for, how many of its steps are over, and what its rewards remember.
#[derive(Clone, Copy)]
pub(super) struct Scoring<'a> {
    pub(super) stage: &'a Stage,
    pub(super) step: usize,
    pub(super) state: &'a RewardState,
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
    let of_problem = |scored: &[Scored]| Group {
        rewards: (0..stage.rewards.len()).map(|k| scored.iter().map(|s| s.rewards[k]).collect()).collect(),
        lengths: scored.iter().map(|s| s.outcome.length).collect(),
        correct: scored.iter().map(|s| s.outcome.correct).collect(),
    };
    let groups: Vec<Group> = scored.chunks(group).map(of_problem).collect();
    let advantages = advantages(stage.advantage, stage.difficulty_weighting.as_ref(), &groups, &stage.weights());
    for (scored, advantage) in scored.iter_mut().zip(advantages.into_iter().flatten()) {
        scored.advantage = advantage;
    }
}

/// What the rewards of a stage keep of a step, `group` completions per problem.
pub(super) fn remember(state: &mut RewardState, scored: &[Scored], stage: &Stage, group: usize) {
    let outcomes: Vec<(u64, Vec<Outcome>)> = (scored.chunks(group))
        .map(|scored| (scored[0].problem, scored.iter().map(|s| s.outcome.clone()).collect()))
        .collect();
    let visits: Vec<Visit> = outcomes.iter().map(|(problem, group)| Visit { problem: *problem, group }).collect();
    state.update(&stage.rewards, &visits);
}

/// The rewards that are the user's own.
pub(super) struct OwnRewards<'a> {
    program: Option<RewardProgram>,
    custom: &'a [&'a dyn Reward],
}

impl<'a> OwnRewards<'a> {
    /// Starts the program, if there is one, and looks for the custom rewards that the stages name.
    pub(super) fn new(command: &RewardCommand, custom: &'a [&'a dyn Reward], stages: &[Stage]) -> Result<Self> {
        for kind in stages.iter().flat_map(|stage| &stage.rewards) {
            if let RewardKind::Custom { name } = kind
                && custom.iter().all(|reward| reward.name() != name)
            {
                let known: Vec<&str> = custom.iter().map(|reward| reward.name()).collect();
                return Err(Error::Invalid(format!(
                    "a stage has the custom reward name = {name:?}, but the program that trains offers {known:?}: such \
                     rewards are Rust types given to tempering::train::rl::run_with"
                )));
            }
        }
        let program = if command.command.is_empty() { None } else { Some(RewardProgram::start(command)?) };
        Ok(Self { program, custom })
    }

    /// Scores groups of completions, one group per problem with its prompt.
    pub(super) fn score(
        &mut self,
        problems: &[(Problem, Vec<u32>)],
        groups: Vec<Vec<Completion>>,
        scoring: Scoring,
        tokenizer: &Tokenizer,
        metrics: &mut Metrics,
    ) -> Result<Vec<Scored>> {
        let texts: Vec<Vec<String>> = groups
            .par_iter()
            .map(|group| group.iter().map(|c| tokenizer.completion_text(&c.tokens)).collect())
            .collect();
        let seen: Vec<Vec<reward::Completion>> = groups.iter().zip(&texts).map(|(g, t)| seen(g, t)).collect();
        let asked = self.ask(problems, &seen, scoring.stage, metrics)?;
        let custom = self.custom;
        let scored = problems.par_iter().zip(groups.into_par_iter().zip(seen).zip(asked));
        Ok(scored
            .flat_map_iter(|((problem, prompt), ((group, seen), asked))| {
                let own = |kind: &RewardKind| match kind {
                    RewardKind::Command => asked.clone(),
                    RewardKind::Custom { name } => {
                        let reward = custom.iter().find(|reward| reward.name() == name);
                        let reward = reward.expect("the names were looked for when the run began");
                        seen.iter().map(|completion| reward.score(problem, completion)).collect()
                    }
                    _ => vec![None; seen.len()],
                };
                score_group(problem, prompt, group, &seen, &own, scoring, tokenizer)
            })
            .collect())
    }

    /// What the program says of each completion: nothing when the stage does not ask it.
    fn ask(
        &mut self,
        problems: &[(Problem, Vec<u32>)],
        groups: &[Vec<reward::Completion>],
        stage: &Stage,
        metrics: &mut Metrics,
    ) -> Result<Vec<Vec<Option<f32>>>> {
        let Some(program) = self.program.as_mut().filter(|_| stage.rewards.contains(&RewardKind::Command)) else {
            return Ok(groups.iter().map(|group| vec![None; group.len()]).collect());
        };
        let before = program.restarts();
        let scores = (problems.iter().zip(groups))
            .map(|((problem, _), group)| group.iter().map(|completion| program.score(problem, completion)).collect())
            .collect::<Result<_>>()?;
        metrics.set("rewards/command/restarts", (program.restarts() - before) as f64);
        Ok(scores)
    }
}

/// Completions as rewards see them.
fn seen<'a>(group: &[Completion], texts: &'a [String]) -> Vec<reward::Completion<'a>> {
    let one = |(completion, text): (&Completion, &'a String)| reward::Completion {
        text,
        tokens: completion.tokens.len(),
        finished: completion.finished(),
    };
    group.iter().zip(texts).map(one).collect()
}

/// Grades a group and scores it by each reward of the stage.
fn score_group(
    problem: &Problem,
    prompt: &[u32],
    group: Vec<Completion>,
    seen: &[reward::Completion],
    own: &dyn Fn(&RewardKind) -> Vec<Option<f32>>,
    scoring: Scoring,
    tokenizer: &Tokenizer,
) -> Vec<Scored> {
    let Scoring { stage, step, state } = scoring;
    let graded: Vec<Graded> = seen.iter().map(|c| grade(&problem.answer, c.text, c.finished)).collect();
    let reads_trace = stage.rewards.iter().any(RewardKind::reads_trace);
    let outcome = |((graded, seen), completion): ((&Graded, &reward::Completion), &Completion)| {
        let usable = graded.strict != Verdict::UnparseableGold;
        let stated = seen.finished && graded.strict.is_right()
            || !seen.finished && grade(&problem.answer, seen.text, true).strict.is_right();
        Outcome {
            correct: usable.then(|| graded.strict.is_right()),
            correct_lenient: usable.then(|| graded.lenient.is_right()),
            correct_cut: usable.then_some(stated),
            finished: seen.finished,
            formatted: Format.score(problem, seen) == Some(1.0),
            repetition: Repetition::default().score(problem, seen).unwrap_or(0.0),
            length: seen.tokens,
            trace: if reads_trace { trace(completion, tokenizer) } else { Trace::default() },
        }
    };
    let outcomes: Vec<Outcome> = graded.iter().zip(seen).zip(&group).map(outcome).collect();
    let score = |kind: &RewardKind| {
        let max_completion_length = stage.sampling.max_completion_length;
        kind.score(&outcomes, &Context { max_completion_length, step, problem: problem.id, state, own: &own(kind) })
    };
    let rewards: Vec<Vec<Option<Parts>>> = stage.rewards.iter().map(score).collect();
    let hard = state.is_hard(&outcomes);
    let completions = group.into_iter().zip(graded).zip(outcomes).enumerate();
    completions
        .map(|(i, ((completion, graded), outcome))| Scored {
            problem: problem.id,
            sequence: Sequence { tokens: [prompt, &completion.tokens].concat(), prompt: prompt.len() },
            completion,
            outcome,
            verdict: graded.strict,
            lenient: graded.lenient.is_right(),
            rewards: rewards.iter().map(|reward| reward[i]).collect(),
            hard,
            advantage: Parts::default(),
        })
        .collect()
}

fn trace(completion: &Completion, tokenizer: &Tokenizer) -> Trace {
    Trace {
        pieces: completion.tokens.iter().map(|&token| tokenizer.token_text(token)).collect(),
        entropies: completion.sampling_entropies.clone(),
    }
}
