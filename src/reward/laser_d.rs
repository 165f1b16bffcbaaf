//! A bonus up to a target length for each difficulty: LASER-D and LASER-DE (arXiv 2505.15612).

use serde::{Deserialize, Serialize};

use super::repetition::repeated;
use super::{Answer, AnswerGroup, Memory, Parts, Reward, finite, found, positive, require};
use crate::error::Result;
use crate::metrics::Metrics;

/// [`super::Laser`] with a target length per difficulty.
///
/// A problem is easy if at least 2/3 of its group are right, middling if at least 1/3 are, else hard. Every `every`
/// steps the target of each difficulty becomes the shortest of `grid` for which `⌊coverage · n⌋` is at least 1:
/// coverage is the share of completions up to that length, n the least number of right ones in such a group, `⌊2G/3⌋`,
/// `⌊G/3⌋` and 1 of G. The published runs measure coverage on 500 held-out problems; ours on the groups trained on
/// since the last choice (reconstruction). L is the target before the first choice and if no grid length covers enough.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LaserD {
    /// Candidate target lengths in tokens: shortest, longest and increment.
    pub grid: [usize; 3],
    /// Interval in steps between updates of the targets.
    pub every: usize,
    /// Bonus for a correct answer within the target length.
    pub bonus: f32,
    /// Reward of an incorrect answer.
    pub wrong: f32,
}

/// [`LaserD`], with the bonus also for wrong answers that are longer than the target and do not repeat themselves.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LaserDe {
    /// Candidate target lengths in tokens: shortest, longest and increment.
    pub grid: [usize; 3],
    /// Interval in steps between updates of the targets.
    pub every: usize,
    /// Bonus for a correct answer within the target length, and for an incorrect one beyond it.
    pub bonus: f32,
    /// Reward of an incorrect answer.
    pub wrong: f32,
    /// Fraction of repeated 4-grams of words from which a completion is repetitive (the published code uses tokens).
    pub repetition_limit: f32,
}

impl Default for LaserD {
    fn default() -> Self {
        Self { grid: [4096, 16384, 1024], every: 20, bonus: 0.5, wrong: -0.5 }
    }
}

impl Default for LaserDe {
    fn default() -> Self {
        let LaserD { grid, every, bonus, wrong } = LaserD::default();
        Self { grid, every, bonus, wrong, repetition_limit: 0.2 }
    }
}

/// Names of the difficulties.
const LEVELS: [&str; 3] = ["easy", "middling", "hard"];

/// Target lengths, and the lengths collected for the next choice.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Targets {
    /// Target of each difficulty; `None` before the first choice, or if no grid length covers enough.
    chosen: [Option<usize>; LEVELS.len()],
    /// Lengths of all completions since the last choice, by difficulty.
    lengths: [Vec<usize>; LEVELS.len()],
    /// Steps since the last choice.
    steps: usize,
}

impl Targets {
    /// Write the chosen targets as metrics.
    fn describe(&self, name: &str, metrics: &mut Metrics) {
        for (level, target) in LEVELS.iter().zip(self.chosen) {
            if let Some(target) = target {
                metrics.set(format!("rewards/{name}/target_{level}"), target as f64);
            }
        }
    }
}

fn level(group: &AnswerGroup) -> usize {
    match group.pass_rate() {
        rate if rate >= 2.0 / 3.0 => 0,
        rate if rate >= 1.0 / 3.0 => 1,
        _ => 2,
    }
}

impl LaserD {
    /// Score a group; `explores` tells whether a wrong answer longer than the target earns the bonus.
    fn scores(&self, group: &AnswerGroup, memory: &Memory, explores: impl Fn(&Answer) -> bool) -> Vec<Option<Parts>> {
        let target = memory.laser.chosen[level(group)].unwrap_or(group.limit);
        group.each(|answer, right| {
            let long = answer.length() > target;
            let earned = if right { !long } else { long && explores(answer) };
            Parts { task: if right { 1.0 } else { self.wrong }, length: if earned { self.bonus } else { 0.0 } }
        })
    }
}

impl Reward for LaserD {
    fn name(&self) -> &str {
        "laser_d"
    }

    fn mistakes(&self, _max_completion_length: usize) -> Vec<String> {
        let [from, to, step] = self.grid;
        let grid = format!("[{from}, {to}, {step}]");
        let rule = "[from, to, step] with 0 < from ≤ to and a step";
        found([
            require(from > 0 && from <= to && step > 0, "grid", grid, rule),
            require(self.every > 0, "every", self.every, "positive"),
            positive("bonus", self.bonus),
            finite("wrong", self.wrong),
        ])
    }

    fn score(&self, group: &AnswerGroup, memory: &Memory) -> Result<Vec<Option<Parts>>> {
        Ok(self.scores(group, memory, |_| false))
    }

    fn remember(&self, groups: &[AnswerGroup], memory: &mut Memory) {
        let targets = &mut memory.laser;
        for group in groups {
            targets.lengths[level(group)].extend(group.answers.iter().map(Answer::length));
        }
        targets.steps += 1;
        if targets.steps < self.every {
            return;
        }
        let size = groups.iter().map(|group| group.answers.len()).max().unwrap_or(0);
        let [from, to, step] = self.grid;
        for (chosen, (lengths, sure)) in
            targets.chosen.iter_mut().zip(targets.lengths.iter_mut().zip([size * 2 / 3, size / 3, 1]))
        {
            let covers = |target: usize| {
                let covered = lengths.iter().filter(|&&length| length <= target).count();
                covered * sure >= lengths.len()
            };
            // A difficulty without completions keeps its target.
            if !lengths.is_empty() {
                *chosen = (from..=to).step_by(step).find(|&target| covers(target));
            }
            lengths.clear();
        }
        targets.steps = 0;
    }

    fn describe(&self, memory: &Memory, metrics: &mut Metrics) {
        memory.laser.describe(self.name(), metrics);
    }
}

impl LaserDe {
    fn without_search(&self) -> LaserD {
        let Self { grid, every, bonus, wrong, .. } = *self;
        LaserD { grid, every, bonus, wrong }
    }
}

impl Reward for LaserDe {
    fn name(&self) -> &str {
        "laser_de"
    }

    fn mistakes(&self, max_completion_length: usize) -> Vec<String> {
        let mut mistakes = self.without_search().mistakes(max_completion_length);
        mistakes.extend(positive("repetition_limit", self.repetition_limit));
        mistakes
    }

    fn score(&self, group: &AnswerGroup, memory: &Memory) -> Result<Vec<Option<Parts>>> {
        Ok(self.without_search().scores(group, memory, |answer| repeated(&answer.text) < self.repetition_limit))
    }

    fn remember(&self, groups: &[AnswerGroup], memory: &mut Memory) {
        self.without_search().remember(groups, memory);
    }

    fn describe(&self, memory: &Memory, metrics: &mut Metrics) {
        memory.laser.describe(self.name(), metrics);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, parts, remember};
    use super::*;

    fn group(right: usize, lengths: [usize; 4]) -> Vec<Answer> {
        lengths.into_iter().enumerate().map(|(i, length)| answer(i < right, length)).collect()
    }

    /// Groups of 4: an easy one is sure to have ⌊8/3⌋ = 2 right, so half of its completions must fit; a hard one has 1,
    /// so all must fit; no group is middling. Before the choice L = 100 is the target.
    #[test]
    fn targets_are_the_shortest_that_still_cover_a_right_completion() {
        let reward = LaserD { grid: [10, 60, 10], every: 2, ..LaserD::default() };
        let (easy, hard) = (group(4, [12, 18, 33, 70]), group(0, [15, 20, 25, 44]));
        let mut memory = Memory::default();
        for _ in 0..2 {
            assert_eq!(memory.laser.chosen, [None; 3]);
            remember(&reward, &mut memory, &[(1, &easy), (2, &hard)]);
        }
        assert_eq!(memory.laser.chosen, [Some(20), None, Some(50)]);
        let totals = |reward: &dyn Reward, group: &[Answer]| -> Vec<f32> {
            parts(reward, group, &memory).into_iter().map(|parts| parts.unwrap().total()).collect()
        };
        assert_eq!(totals(&reward, &easy), [1.5, 1.5, 1.0, 1.0]);
        // A wrong answer longer than the target of hard problems earns the bonus, unless it repeats itself. Of ten
        // 4-grams, the first text repeats one, the second three.
        let mut wrong = group(0, [60, 60, 40, 60]);
        wrong.iter_mut().for_each(|answer| answer.text = "1 2 3 4 5 6 7 8 9 1 2 3 4".to_string());
        wrong[1].text = "1 2 3 4 5 6 7 1 2 3 4 5 6".to_string();
        let exploring = LaserDe { grid: [10, 60, 10], every: 2, ..LaserDe::default() };
        assert_eq!(totals(&exploring, &wrong), [0.0, -0.5, -0.5, 0.0]);
        assert_eq!(totals(&reward, &wrong), [-0.5; 4]);
        assert!(LaserD { grid: [9, 3, 1], ..reward }.mistakes(100)[0].starts_with("grid = [9, 3, 1] must be"));
    }
}
