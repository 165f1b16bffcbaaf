//! What rewards remember from one step to the next.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ceeh::Record;
use super::laser::Targets;
use super::{Outcome, RewardKind};
use crate::metrics::Metrics;

/// The memory of all rewards of a run. It is part of a checkpoint, so that a resumed run goes on to the bit; a run's stages
/// share it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RewardState {
    /// Running mean of the pass rate of steps ([`super::DeepCompress`]).
    pub(super) pass_rate: Option<f64>,
    /// Target lengths ([`super::LaserD`]).
    pub(super) laser: Targets,
    /// Per problem ([`super::CeehLength`]).
    pub(super) records: BTreeMap<u64, Record>,
}

/// A problem that a step has met, with its graded completions.
#[derive(Debug, Clone, Copy)]
pub struct Visit<'a> {
    /// Which problem.
    pub problem: u64,
    /// Its completions.
    pub group: &'a [Outcome],
}

impl RewardState {
    /// Writes down what the rewards of a stage go by in the next step.
    pub fn describe(&self, rewards: &[RewardKind], metrics: &mut Metrics) {
        for reward in rewards {
            let name = reward.name();
            match reward {
                RewardKind::DeepCompress(_) => {
                    metrics.set(format!("rewards/{name}/pass_rate"), self.pass_rate.unwrap_or(1.0));
                }
                RewardKind::LaserD(_) | RewardKind::LaserDe(_) => {
                    for (difficulty, target) in self.laser.named() {
                        metrics.set(format!("rewards/{name}/target_{difficulty}"), target as f64);
                    }
                }
                RewardKind::CeehLength(_) => {
                    metrics.set(format!("rewards/{name}/problems"), self.records.len() as f64);
                }
                _ => {}
            }
        }
    }

    /// Learns from a step after its completions have been scored; what no reward of the stage needs is not kept.
    pub fn update(&mut self, rewards: &[RewardKind], visits: &[Visit]) {
        for reward in rewards {
            match reward {
                RewardKind::DeepCompress(reward) => reward.update(self, visits),
                RewardKind::LaserD(reward) | RewardKind::LaserDe(reward) => reward.update(self, visits),
                RewardKind::CeehLength(reward) => reward.update(self, visits),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::outcome;
    use super::super::{CeehLength, DeepCompress, LaserD};
    use super::*;

    /// JSON has no integer keys; a state that comes back otherwise would change a resumed run.
    #[test]
    fn a_state_comes_back_from_a_checkpoint_as_it_was() {
        let rewards = [
            RewardKind::CeehLength(CeehLength::default()),
            RewardKind::LaserD(LaserD { every: 2, ..LaserD::default() }),
            RewardKind::DeepCompress(DeepCompress::default()),
        ];
        let group = [outcome(true, 33), outcome(false, 57), outcome(true, 41)];
        let mut state = RewardState::default();
        for problem in [u64::MAX, 3, u64::MAX] {
            state.update(&rewards, &[Visit { problem, group: &group }]);
        }
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<RewardState>(&text).unwrap(), state);
        assert_eq!(state.records.len(), 2);
    }
}
