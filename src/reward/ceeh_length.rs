//! CEEH (arXiv 2602.22642): compares lengths with the problem's record, unless the group's pass rate is below the
//! recorded one.

use serde::{Deserialize, Serialize};

use super::{AnswerGroup, Memory, Parts, Reward, found, positive, require};
use crate::error::Result;
use crate::metrics::{Metrics, mean};

/// `max(lowest, scale · (L* − len) / L*)` for right answers, where L* is the problem's record of its shortest right
/// length; 0 for wrong answers, at the first visit, and if the group's pass rate is below the problem's record.
///
/// Records are running means that move by `up` towards better values (a higher pass rate, a shorter length) and by
/// `down` towards worse ones. Groups with a pass rate of at most the mean record of all problems seen are *hard*
/// ([`Memory::is_hard`]); the published code counts problems not seen yet as −1 in that mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CeehLength {
    /// Scale of the reward.
    pub scale: f32,
    /// Minimum reward.
    pub lowest: f32,
    /// Update rate of a record towards a better value, within (0, 1].
    pub up: f32,
    /// Update rate of a record towards a worse value, within [0, 1].
    pub down: f32,
}

impl Default for CeehLength {
    fn default() -> Self {
        Self { scale: 0.5, lowest: -0.9, up: 0.2, down: 0.05 }
    }
}

/// Running means kept for a problem.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct ProblemMeans {
    /// Running mean of the pass rate.
    pass_rate: f64,
    /// Running mean of the shortest right length; `None` before the first right completion.
    shortest: Option<f64>,
}

impl Reward for CeehLength {
    fn name(&self) -> &str {
        "ceeh_length"
    }

    fn mistakes(&self, _max_completion_length: usize) -> Vec<String> {
        found([
            positive("scale", self.scale),
            require(self.lowest < 0.0 && self.lowest.is_finite(), "lowest", self.lowest, "negative"),
            require(self.up > 0.0 && self.up <= 1.0, "up", self.up, "above 0 and at most 1"),
            require((0.0..=1.0).contains(&self.down), "down", self.down, "between 0 and 1"),
        ])
    }

    fn score(&self, group: &AnswerGroup, memory: &Memory) -> Result<Vec<Option<Parts>>> {
        let record = memory.records.get(&group.problem.id);
        let rate = group.pass_rate();
        let target = record.filter(|record| rate >= record.pass_rate).and_then(|record| record.shortest);
        Ok(group.each_length(|answer, right| match target {
            Some(target) if right => {
                let saved = (target - answer.length() as f64) / target;
                (f64::from(self.scale) * saved).max(f64::from(self.lowest)) as f32
            }
            _ => 0.0,
        }))
    }

    fn remember(&self, groups: &[AnswerGroup], memory: &mut Memory) {
        let (up, down) = (f64::from(self.up), f64::from(self.down));
        for group in groups {
            let rate = group.pass_rate();
            let shortest = group.right_lengths().into_iter().reduce(f64::min);
            let record = memory.records.entry(group.problem.id).or_insert(ProblemMeans { pass_rate: rate, shortest });
            let speed = if rate > record.pass_rate { up } else { down };
            // As in the published code, a record of 0 is replaced.
            record.pass_rate =
                if record.pass_rate > 0.0 { record.pass_rate + speed * (rate - record.pass_rate) } else { rate };
            record.shortest = match (record.shortest, shortest) {
                (Some(old), Some(new)) => Some(old + if new < old { up } else { down } * (new - old)),
                (old, new) => old.or(new),
            };
        }
    }

    fn keeps_hardness(&self) -> bool {
        true
    }

    fn describe(&self, memory: &Memory, metrics: &mut Metrics) {
        metrics.set("rewards/ceeh_length/problems", memory.records.len() as f64);
    }
}

impl Memory {
    /// Whether a group is hard in the sense of CEEH: its pass rate is at most the mean record of all problems seen.
    /// False before there is a record ([`Reward::keeps_hardness`]).
    pub fn is_hard(&self, group: &AnswerGroup) -> bool {
        let records: Vec<f64> = self.records.values().map(|record| record.pass_rate).collect();
        !records.is_empty() && group.pass_rate() <= mean(&records)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Answer;
    use super::super::tests::{answer, parts, problem, remember};
    use super::*;

    /// First visit: L* becomes 40, the record of the pass rate 0.5. Second: lengths are compared with 40 (the long one
    /// gets `lowest`), then L* moves to 40 − 0.2 · 20 = 36 and the rate to 0.5 + 0.2 · 0.5 = 0.6. A worse group then
    /// earns nothing, moves L* up by a twentieth of the difference, and lowers the rate.
    #[test]
    fn ceehs_records_by_hand() {
        let reward = CeehLength::default();
        let mut memory = Memory::default();
        let problem = problem(1);
        let mut visit = |answers: &[Answer]| {
            let hard = memory.is_hard(&AnswerGroup { problem: &problem, answers, limit: 100, step: 0 });
            let scored = parts(&reward, answers, &memory);
            remember(&reward, &mut memory, &[(1, answers)]);
            (hard, scored.into_iter().map(|parts| parts.unwrap().length).collect::<Vec<_>>(), memory.records[&1])
        };
        let (hard, lengths, record) = visit(&[answer(true, 40), answer(false, 10)]);
        assert_eq!(
            (hard, lengths, record),
            (false, vec![0.0; 2], ProblemMeans { pass_rate: 0.5, shortest: Some(40.0) })
        );
        let (hard, lengths, record) = visit(&[answer(true, 20), answer(true, 400)]);
        assert!(!hard && lengths == [0.25, -0.9], "{lengths:?}");
        assert!((record.pass_rate - 0.6).abs() < 1e-6 && (record.shortest.unwrap() - 36.0).abs() < 1e-5, "{record:?}");
        let (hard, lengths, record) = visit(&[answer(true, 56), answer(false, 10)]);
        assert!(hard && lengths == [0.0, 0.0], "{lengths:?}");
        assert!(
            (record.pass_rate - 0.595).abs() < 1e-6 && (record.shortest.unwrap() - 37.0).abs() < 1e-5,
            "{record:?}"
        );
    }
}
