//! Grading a step's completions and scoring them by the rewards of a stage, on all cores.

use rayon::prelude::*;

use super::batch::Sequence;
use super::stage::Stage;
use crate::data::Problem;
use crate::error::{Error, Result};
use crate::generate::Completion;
use crate::metrics::Metrics;
use crate::objective::length::Outcome;
use crate::objective::{Parts, RewardKind, advantages};
use crate::reward::{self, Format, Repetition, Reward, RewardCommand, RewardProgram};
use crate::text::tokenizer::Tokenizer;
use crate::verify::{Graded, Verdict, grade};

/// A completion with all that is known of it.
pub(super) struct Scored {
    pub(super) sequence: Sequence,
    pub(super) completion: Completion,
    pub(super) outcome: Outcome,
    pub(super) verdict: Verdict,
    pub(super) lenient: bool,
    pub(super) rewards: Vec<Option<Parts>>,
    pub(super) advantage: Parts,
    /// Whether its problem is a hard one (CEEH).
    pub(super) hard: bool,
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
        stage: &Stage,
        tokenizer: &Tokenizer,
        metrics: &mut Metrics,
    ) -> Result<Vec<Scored>> {
        let texts: Vec<Vec<String>> =
            groups.par_iter().map(|group| group.iter().map(|c| tokenizer.decode(&c.tokens, true)).collect()).collect();
        let seen: Vec<Vec<reward::Completion>> = groups.iter().zip(&texts).map(|(g, t)| seen(g, t)).collect();
        let asked = self.ask(problems, &seen, stage, metrics)?;
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
                score_group(problem, prompt, group, &seen, &own, stage)
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

/// Grades a group and turns its rewards into advantages.
fn score_group(
    problem: &Problem,
    prompt: &[u32],
    group: Vec<Completion>,
    seen: &[reward::Completion],
    own: &dyn Fn(&RewardKind) -> Vec<Option<f32>>,
    stage: &Stage,
) -> Vec<Scored> {
    let graded: Vec<Graded> = seen.iter().map(|c| grade(&problem.answer, c.text, c.finished)).collect();
    let outcome = |(graded, seen): (&Graded, &reward::Completion)| {
        let usable = graded.strict != Verdict::UnparseableGold;
        Outcome {
            correct: usable.then(|| graded.strict.is_right()),
            correct_lenient: usable.then(|| graded.lenient.is_right()),
            formatted: Format.score(problem, seen) == Some(1.0),
            repetition: Repetition::default().score(problem, seen).unwrap_or(0.0),
            length: seen.tokens,
        }
    };
    let outcomes: Vec<Outcome> = graded.iter().zip(seen).map(outcome).collect();
    let rewards: Vec<Vec<Option<f32>>> =
        stage.rewards.iter().map(|kind| kind.score(&outcomes, &own(kind), stage.max_completion_length)).collect();
    let advantages = advantages(stage.advantage, &rewards, &stage.weights());
    let completions = group.into_iter().zip(graded).zip(outcomes).zip(advantages).enumerate();
    completions
        .map(|(i, (((completion, graded), outcome), advantage))| Scored {
            sequence: Sequence { tokens: [prompt, &completion.tokens].concat(), prompt: prompt.len() },
            completion,
            outcome,
            verdict: graded.strict,
            lenient: graded.lenient.is_right(),
            rewards: rewards.iter().map(|reward| reward[i].map(Parts::task)).collect(),
            advantage: Parts::task(advantage),
            hard: false,
        })
        .collect()
}
