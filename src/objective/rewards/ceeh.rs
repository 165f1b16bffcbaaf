//! CEEH (arXiv 2602.22642): lengths are compared with the problem's own record, and only where the model has not become
//! worse.

use serde::{Deserialize, Serialize};

use super::shaped::length_of_each;
use super::{Context, Outcome, RewardState, Visit, pass_rate, positive, require};
use crate::metrics::mean;
use crate::objective::Parts;

/// `max(lowest, scale · (L* − len) / L*)` for right answers, where L* is the problem's record of its shortest right length;
/// 0 for wrong ones, at the first visit, and where the group's pass rate is below the problem's record of it.
///
/// Records are running means that move by `up` towards what is better (a higher pass rate, a shorter length) and by `down`
/// towards what is worse. The groups with a pass rate of at most the mean record of all problems seen are *hard*
/// ([`RewardState::is_hard`]); the published code counts problems not seen yet as −1 in that mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CeehLength {
    /// Weight.
    pub scale: f32,
    /// The reward is never below.
    pub lowest: f32,
    /// How fast a record improves, within (0, 1].
    pub up: f32,
    /// How fast it decays, within [0, 1].
    pub down: f32,
}

impl Default for CeehLength {
    fn default() -> Self {
        Self { scale: 0.5, lowest: -0.9, up: 0.2, down: 0.05 }
    }
}

/// What is remembered of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Running mean of its pass rate.
    pass_rate: f64,
    /// Running mean of its shortest right length; none before the first right completion.
    shortest: Option<f64>,
}

impl CeehLength {
    pub(super) fn mistake(&self) -> Option<String> {
        positive("scale", self.scale)
            .or_else(|| require(self.lowest < 0.0, "lowest", self.lowest, "negative"))
            .or_else(|| require(self.up > 0.0 && self.up <= 1.0, "up", self.up, "above 0 and at most 1"))
            .or_else(|| require((0.0..=1.0).contains(&self.down), "down", self.down, "within 0 and 1"))
    }

    pub(super) fn score(&self, group: &[Outcome], context: &Context) -> Vec<Option<Parts>> {
        let record = context.state.records.get(&context.problem);
        let rate = pass_rate(group);
        let target = record.filter(|record| rate >= record.pass_rate).and_then(|record| record.shortest);
        length_of_each(group, |outcome, right| match target {
            Some(target) if right => {
                let saved = (target - outcome.length as f64) / target;
                (f64::from(self.scale) * saved).max(f64::from(self.lowest)) as f32
            }
            _ => 0.0,
        })
    }

    pub(super) fn update(&self, state: &mut RewardState, visits: &[Visit]) {
        let (up, down) = (f64::from(self.up), f64::from(self.down));
        for visit in visits {
            let rate = pass_rate(visit.group);
            let shortest = super::right_lengths(visit.group).into_iter().reduce(f64::min);
            let record = state.records.entry(visit.problem).or_insert(Record { pass_rate: rate, shortest });
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
}

impl RewardState {
    /// Whether a group is hard as CEEH has it: its pass rate is at most the mean record of all problems seen. Never, before
    /// there is a record.
    pub fn is_hard(&self, group: &[Outcome]) -> bool {
        let records: Vec<f64> = self.records.values().map(|record| record.pass_rate).collect();
        !records.is_empty() && pass_rate(group) <= mean(&records)
    }
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::outcome;
    use super::*;

    fn lengths(reward: &CeehLength, state: &RewardState, group: &[Outcome]) -> Vec<f32> {
        let context = Context { max_completion_length: 100, step: 0, problem: 7, state, own: &[] };
        reward.score(group, &context).into_iter().map(|parts| parts.unwrap().length).collect()
    }

    /// First visit: L* becomes 40, the record of the pass rate 0.5. Second: lengths are compared with 40 (the long one at
    /// its floor), then L* moves to 40 − 0.2 · 20 = 36 and the rate to 0.5 + 0.2 · 0.5 = 0.6. A worse group then earns
    /// nothing, moves L* up by a twentieth of the difference and the rate down.
    #[test]
    fn ceehs_records_by_hand() {
        let reward = CeehLength::default();
        let mut state = RewardState::default();
        let mut visit = |group: &[Outcome]| {
            let (hard, lengths) = (state.is_hard(group), lengths(&reward, &state, group));
            reward.update(&mut state, &[Visit { problem: 7, group }]);
            (hard, lengths, state.records[&7])
        };
        let (hard, lengths, record) = visit(&[outcome(true, 40), outcome(false, 10)]);
        assert_eq!((hard, lengths, record), (false, vec![0.0; 2], Record { pass_rate: 0.5, shortest: Some(40.0) }));
        let (hard, lengths, record) = visit(&[outcome(true, 20), outcome(true, 400)]);
        assert!(!hard && lengths == [0.25, -0.9], "{lengths:?}");
        assert!((record.pass_rate - 0.6).abs() < 1e-6 && (record.shortest.unwrap() - 36.0).abs() < 1e-5, "{record:?}");
        let (hard, lengths, record) = visit(&[outcome(true, 56), outcome(false, 10)]);
        assert!(hard && lengths == [0.0, 0.0], "{lengths:?}");
        assert!(
            (record.pass_rate - 0.595).abs() < 1e-6 && (record.shortest.unwrap() - 37.0).abs() < 1e-5,
            "{record:?}"
        );
    }
}
