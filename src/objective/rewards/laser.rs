//! Rewards with a step at a target length: LASER (arXiv 2505.15612).

use serde::{Deserialize, Serialize};

use super::{Context, Outcome, RewardState, Visit, each, pass_rate, positive, require};
use crate::objective::Parts;

/// `correct`, and `bonus` more when at most `target_length` tokens long; `wrong` for a wrong answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Laser {
    /// Tokens that earn the bonus.
    pub target_length: usize,
    /// What they earn.
    #[serde(default = "half")]
    pub bonus: f32,
    /// Reward of a wrong answer.
    #[serde(default = "minus_half")]
    pub wrong: f32,
}

fn half() -> f32 {
    0.5
}

fn minus_half() -> f32 {
    -0.5
}

impl Laser {
    pub(super) fn mistake(&self) -> Option<String> {
        let target = || require(self.target_length > 0, "target_length", self.target_length, "positive");
        positive("bonus", self.bonus).or_else(target)
    }

    pub(super) fn score(&self, group: &[Outcome]) -> Vec<Option<Parts>> {
        each(group, |outcome, right| Parts {
            task: if right { 1.0 } else { self.wrong },
            length: if right && outcome.length <= self.target_length { self.bonus } else { 0.0 },
        })
    }
}

/// LASER with a target per difficulty (LASER-D), and with a bonus for wrong answers that are longer than the target and do
/// not repeat themselves (LASER-DE).
///
/// A problem is easy when at least 2/3 of its group are right, of middling difficulty when at least 1/3 are, else hard.
/// Every `every` steps the target of each difficulty becomes the shortest of `grid` for which `⌊coverage · n⌋` is at
/// least 1: coverage is the share of completions up to that length, n the right ones a group is sure to have, `⌊2G/3⌋`,
/// `⌊G/3⌋` and 1 of G. The published runs measure coverage on 500 problems kept for it; ours on the groups trained on
/// since the last choice (reconstruction). Until the first choice, and where no grid length covers enough, L is the target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LaserD {
    /// Shortest target, longest, and the step between them, in tokens.
    pub grid: [usize; 3],
    /// Steps between choices.
    pub every: usize,
    /// What the target earns.
    pub bonus: f32,
    /// Reward of a wrong answer.
    pub wrong: f32,
    /// Share of repeated 4-grams of words from which a completion repeats itself (LASER-DE; the published code looks at
    /// tokens).
    pub repetition_limit: f32,
}

impl Default for LaserD {
    fn default() -> Self {
        Self { grid: [4096, 16384, 1024], every: 20, bonus: 0.5, wrong: -0.5, repetition_limit: 0.2 }
    }
}

/// Difficulties: easy, middling, hard.
const LEVELS: usize = 3;

/// Targets, and what the next choice will look at.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Targets {
    /// Target of each difficulty; none before the first choice, or where the grid has none.
    chosen: [Option<usize>; LEVELS],
    /// Lengths of all completions since the last choice, by difficulty.
    lengths: [Vec<usize>; LEVELS],
    /// Steps since the last choice.
    steps: usize,
}

impl Targets {
    /// Those that have been chosen, with the name of their difficulty.
    pub(super) fn named(&self) -> impl Iterator<Item = (&'static str, usize)> + '_ {
        ["easy", "middling", "hard"].into_iter().zip(self.chosen).filter_map(|(name, chosen)| Some((name, chosen?)))
    }
}

fn level(group: &[Outcome]) -> usize {
    match pass_rate(group) {
        rate if rate >= 2.0 / 3.0 => 0,
        rate if rate >= 1.0 / 3.0 => 1,
        _ => 2,
    }
}

impl LaserD {
    pub(super) fn mistake(&self) -> Option<String> {
        let [from, to, step] = self.grid;
        if from == 0 || from > to || step == 0 {
            return Some(format!(
                "grid = [{from}, {to}, {step}] must be [from, to, step] with 0 < from ≤ to and a step"
            ));
        }
        require(self.every > 0, "every", self.every, "positive").or_else(|| positive("bonus", self.bonus))
    }

    pub(super) fn score(&self, group: &[Outcome], context: &Context, exploring: bool) -> Vec<Option<Parts>> {
        let target = context.state.laser.chosen[level(group)].unwrap_or(context.max_completion_length);
        each(group, |outcome, right| {
            let long = outcome.length > target;
            let searching = exploring && long && -outcome.repetition < self.repetition_limit;
            Parts {
                task: if right { 1.0 } else { self.wrong },
                length: if (right && !long) || (!right && searching) { self.bonus } else { 0.0 },
            }
        })
    }

    pub(super) fn update(&self, state: &mut RewardState, visits: &[Visit]) {
        let targets = &mut state.laser;
        for visit in visits {
            targets.lengths[level(visit.group)].extend(visit.group.iter().map(|outcome| outcome.length));
        }
        targets.steps += 1;
        if targets.steps < self.every {
            return;
        }
        let size = visits.iter().map(|visit| visit.group.len()).max().unwrap_or(0);
        let [from, to, step] = self.grid;
        for (chosen, (lengths, sure)) in
            targets.chosen.iter_mut().zip(targets.lengths.iter_mut().zip([size * 2 / 3, size / 3, 1]))
        {
            let covers = |target: usize| {
                let covered = lengths.iter().filter(|&&length| length <= target).count();
                covered * sure >= lengths.len()
            };
            // A difficulty that was not met keeps its target.
            if !lengths.is_empty() {
                *chosen = (from..=to).step_by(step).find(|&target| covers(target));
            }
            lengths.clear();
        }
        targets.steps = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::RewardKind;
    use super::super::outcome::tests::{assert_near, outcome, scores};
    use super::*;

    #[test]
    fn laser_pays_a_bonus_up_to_its_target() {
        let kind = RewardKind::Laser(Laser { target_length: 50, bonus: 0.5, wrong: -0.5 });
        let group = [outcome(true, 50), outcome(true, 51), outcome(false, 10)];
        assert_near(&scores(&kind, &group), &[1.5, 1.0, -0.5]);
    }

    fn group(right: usize, lengths: [usize; 4]) -> Vec<Outcome> {
        lengths.into_iter().enumerate().map(|(i, length)| outcome(i < right, length)).collect()
    }

    /// Groups of 4: an easy one is sure to have ⌊8/3⌋ = 2 right, so half of its completions must fit; a hard one has 1, so
    /// all must; the middling difficulty does not occur. Before the choice L = 100 is the target.
    #[test]
    fn targets_are_the_shortest_that_still_cover_a_right_completion() {
        let reward = LaserD { grid: [10, 60, 10], every: 2, ..LaserD::default() };
        let (easy, hard) = (group(4, [12, 18, 33, 70]), group(0, [15, 20, 25, 44]));
        let mut state = RewardState::default();
        for _ in 0..2 {
            let visits = [(1, &easy), (2, &hard)].map(|(problem, group)| Visit { problem, group });
            assert_eq!(state.laser.chosen, [None; 3]);
            reward.update(&mut state, &visits);
        }
        assert_eq!(state.laser.chosen, [Some(20), None, Some(50)]);
        let context = Context { max_completion_length: 100, step: 2, problem: 1, state: &state, own: &[] };
        let totals = |group: &[Outcome], exploring: bool| -> Vec<f32> {
            reward.score(group, &context, exploring).into_iter().map(|parts| parts.unwrap().total()).collect()
        };
        assert_eq!(totals(&easy, false), [1.5, 1.5, 1.0, 1.0]);
        // A wrong answer longer than the target of hard problems earns the bonus, unless it repeats itself.
        let mut wrong = group(0, [60, 60, 40, 60]);
        wrong.iter_mut().for_each(|outcome| outcome.repetition = -0.1);
        wrong[1].repetition = -0.3;
        assert_eq!(totals(&wrong, true), [0.0, -0.5, -0.5, 0.0]);
        assert_eq!(totals(&wrong, false), [-0.5; 4]);
        assert!(LaserD { grid: [9, 3, 1], ..reward }.mistake().unwrap().starts_with("grid = [9, 3, 1] must be"));
    }
}
